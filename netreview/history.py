"""Diagnoses a training history."""

import math

from netreview.findings import Finding, Findings


def review_history(history: list[dict]) -> Findings:
    """What a training's history says about it; each finding is about the last epochs.

    `history` has one record per epoch: epoch, train_loss, test_loss, and train_accuracy and test_accuracy in percent.
    """
    if not history:
        return Findings()
    first, last = history[0], history[-1]
    train, test = last["train_accuracy"], last["test_accuracy"]
    numbers = f"Training accuracy ends at {train:.1f} %, test accuracy at {test:.1f} %."
    findings = []
    losses = [record["train_loss"] for record in history]
    if not math.isfinite(losses[-1]) or losses[-1] > 1.5 * min(losses) or losses[-1] > losses[0]:
        evidence = (
            f"The training loss was {first['train_loss']:.3g}, at best {min(losses):.3g}, and is {losses[-1]:.3g}."
        )
        findings.append(Finding("divergence", "error", "", evidence, "Lower the learning rate, or warm it up."))
    if train < 1 and losses[-1] < 0.3 * losses[0]:
        evidence = f"The training loss falls to {losses[-1]:.3g}, and the accuracy stays at {train:.1f} %."
        advice = "Look at how hits are counted: argmax(1), .sum().item(), and a division of floats, not of integers."
        return Findings([*findings, Finding("accuracy-not-counted", "error", "", evidence, advice)])
    tested = [record["test_accuracy"] for record in history]
    if train > 80 and train > 3 * test and max(tested) - min(tested) < 5:
        advice = (
            "Prepare the test images as the training images are: the same classes in the same order, the same scale."
        )
        return Findings([*findings, Finding("test-set-differs", "error", "", numbers, advice)])
    if train - test > 10:
        advice = "Augment the images, or use label smoothing or weight decay."
        findings.append(Finding("overfitting", "warning", "", numbers, advice))
    if train < 70 and train < test + 5:
        advice = "The network does not fit its training set: check its architecture and the learning rate first."
        findings.append(Finding("underfitting", "warning", "", numbers, advice))
    if test - train > 2:
        advice = "Reduce augmentation or dropout: too strong for this schedule."
        findings.append(Finding("over-regularised", "warning", "", numbers, advice))
    half = history[len(history) // 2]
    if (
        len(history) >= 6
        and half["test_loss"] - min(record["test_loss"] for record in history) < 0.01 * half["test_loss"]
    ):
        evidence = (
            f"The test loss was {half['test_loss']:.4f} after epoch {half['epoch']} and is {last['test_loss']:.4f}."
        )
        advice = "More epochs with these settings will not help: change the learning rate or the network."
        findings.append(Finding("plateau", "warning", "", evidence, advice))
    return Findings(findings)
