"""Diagnoses a training history."""

import math
from collections.abc import Iterator
from itertools import pairwise

from netreview.findings import Finding, Findings


def review_history(history: list[dict]) -> Findings:
    """What a training's history says about it; each finding is about the last epochs.

    `history` has one record per epoch: train_loss, and as far as they are known epoch, test_loss, train_accuracy and
    test_accuracy in percent (or all as shares of 1), and learning_rate. Losses are means per image.

    Raises:
        ValueError: a record has no train_loss.
    """
    if not history:
        return Findings()
    if any("train_loss" not in record for record in history):
        raise ValueError("review_history: each record needs a train_loss.")
    findings = [*_divergence(history), *_early_end(history)]
    train, test = _accuracies(history, "train"), _accuracies(history, "test")
    broken = [*_metric(history, "train", train), *_metric(history, "test", test)]
    if broken:  # with wrong accuracies nothing else can be said about them
        return Findings([*findings, *broken])
    if train and test:
        findings += list(_test(history, train, test)) or list(_gap(history, train, test))
    if all(finding.severity == "note" for finding in findings):
        findings += [*_underfitting(history, train, test), *_plateau(history, train, test)]
    return Findings(findings)


def _accuracies(history: list[dict], split: str) -> list[float]:
    """In percent; none where a record lacks one. Shares of 1 are told by their size, and by a loss that fits them."""
    name = f"{split}_accuracy"
    if any(name not in record for record in history):
        return []
    values = [float(record[name]) for record in history]
    shares = 0 < max(values) <= 1 and (max(values) >= 0.5 or _least(history, split) < 100 * values[-1] + 10)
    return [100 * value for value in values] if shares and len(set(values)) > 1 else values


def _least(history: list[dict], split: str) -> float:
    """The accuracy, in percent, that a cross-entropy at the end allows.

    The class of an image that is not hit has a probability of at most one half, and so a loss of ln 2 or more.
    """
    loss = float(history[-1].get(f"{split}_loss", math.inf))
    return 100 * (1 - loss / math.log(2)) if math.isfinite(loss) else -math.inf


def _divergence(history: list[dict]) -> Iterator[Finding]:
    losses = [float(record["train_loss"]) for record in history]
    least = min((loss for loss in losses if math.isfinite(loss)), default=math.nan)
    if not math.isfinite(losses[-1]) or losses[-1] > 1.5 * least + 0.05 or losses[-1] > 1.02 * losses[0]:
        evidence = f"The training loss was {losses[0]:.3g}, at best {least:.3g}, and is {losses[-1]:.3g}."
        rates = _rates(history)
        if rates:
            worst = next((i for i, (a, b) in enumerate(pairwise(losses), 1) if not b <= 1.2 * a), len(losses) - 1)
            evidence += f" It rose in epoch {history[worst].get('epoch', worst + 1)}, at a rate of {rates[worst]:.2g}."
        yield Finding("divergence", "error", "", evidence, "Lower the learning rate, or warm it up.")


def _rates(history: list[dict]) -> list[float]:
    """The learning rates; none where a record lacks one."""
    known = all("learning_rate" in record for record in history)
    return [float(record["learning_rate"]) for record in history] if known else []


def _early_end(history: list[dict]) -> Iterator[Finding]:
    """A learning rate that is as good as zero for most of the training, or all of it."""
    rates = _rates(history)
    if len(rates) < 4:
        return
    gone = next((i for i in range(len(rates)) if max(rates[i:]) <= 1e-3 * max(rates)), len(rates))
    if gone <= len(rates) // 2:
        first = history[gone].get("epoch", gone + 1)
        evidence = f"From epoch {first} of {len(rates)} on the learning rate is {rates[gone]:.2g} or less."
        evidence += f" It began at {rates[0]:.2g}."
        advice = "Call the scheduler once per epoch if its numbers are epochs, or give it the number of all steps."
        yield Finding("rate-gone-early", "warning", "", evidence, advice)


def _metric(history: list[dict], split: str, accuracies: list[float]) -> Iterator[Finding]:
    """Accuracies that cannot be, by themselves or by the loss."""
    if not accuracies:
        return
    advice = "Look at how hits are counted: argmax(1), .sum().item(), and a division of floats, not of integers."
    if not all(0 <= value <= 100.0001 for value in accuracies):
        wrong = next(value for value in accuracies if not 0 <= value <= 100.0001)
        evidence = f"There is a {split} accuracy of {wrong:.4g} %."
        advice = "Divide the hits by the number of images that were counted, not by that of batches."
        yield Finding("accuracy-not-counted", "error", "", evidence, advice)
        return
    losses = [float(record.get(f"{split}_loss", math.nan)) for record in history]
    fallen = losses[-1] < 0.3 * losses[0]  # losses of other kinds are small from the start
    if len(losses) > 1 and fallen and accuracies[-1] < 0.5 * _least(history, split):
        evidence = (
            f"The {split} loss falls to {losses[-1]:.3g}, and the accuracy is {accuracies[-1]:.1f} %; "
            f"a cross-entropy of {losses[-1]:.3g} needs at least {_least(history, split):.0f} %."
        )
        yield Finding("accuracy-not-counted", "error", "", evidence, advice)


def _test(history: list[dict], train: list[float], test: list[float]) -> Iterator[Finding]:
    """Test accuracies that never had anything to do with what was learnt."""
    late = slice(len(test) // 2, None)
    far = [there > 3 * here for there, here in zip(train[late], test[late], strict=True)]
    if train[-1] < 60 or len(test) < 2:
        return
    numbers = f"Training accuracy ends at {train[-1]:.1f} %, test accuracy at {test[-1]:.1f} %"
    spread = max(test[late]) - min(test[late])
    constant = len(test) >= 4 and all(far) and spread == 0 and len(set(test)) <= len(test) // 2
    jumping = len(test) >= 6 and sum(far) >= max(2, len(far) / 3) and spread > 15
    if constant or jumping:
        how = f", the same in {len(test[late])} epochs" if constant else f", and jumps by {spread:.0f} points"
        advice = (
            "Test in train mode: if the accuracy is right there, look at what differs, as BatchNorm's stored "
            "statistics (its momentum, small batches, layers used twice) and what is switched by self.training."
        )
        yield Finding("eval-mode-broken", "error", "", f"{numbers}{how}.", advice)
    elif all(far) and max(test) - min(test) < 8:
        rises = float(history[-1].get("test_loss", math.nan)) > 1.1 * float(history[0].get("test_loss", math.nan))
        sure = ", while the test loss rises: it is sure of other answers" if rises else ""
        advice = (
            "Prepare the test images as the training images are: the same classes in the same order (print "
            "class_to_idx of both), the same scale; and look whether the training labels belong to their images."
        )
        yield Finding("test-set-differs", "error", "", f"{numbers}{sure}.", advice)


def _gap(history: list[dict], train: list[float], test: list[float]) -> Iterator[Finding]:
    """Training and test accuracies that are far apart."""
    gap, numbers = (
        train[-1] - test[-1],
        f"Training accuracy ends at {train[-1]:.1f} %, test accuracy at {test[-1]:.1f} %.",
    )
    if gap > 10:
        losses = [float(record.get("test_loss", math.nan)) for record in history]
        worse = losses[-1] > 1.15 * min(losses) or test[-1] < max(test) - 2
        if worse:
            numbers += f" The test loss was {min(losses):.3g} at best, and is {losses[-1]:.3g}."
        advice = "Augment the images, or use label smoothing or weight decay."
        yield Finding("overfitting", "warning" if worse or gap > 30 else "note", "", numbers, advice)
    elif gap < -2 and len(train) > 1:  # usual with strong augmentation, and in the first epochs
        advice = "Reduce augmentation or dropout if the schedule is short: training is harder than the test."
        yield Finding("over-regularised", "note", "", numbers, advice)


def _underfitting(history: list[dict], train: list[float], test: list[float]) -> Iterator[Finding]:
    """A training set that is not learnt, and no longer gets better."""
    if len(train) < 3 or train[-1] >= 60 or (test and test[-1] >= 60):
        return
    before = train[-1 - max(1, len(train) // 4)]
    if train[-1] - before <= 2:
        evidence = f"Training accuracy ends at {train[-1]:.1f} %, and was {before:.1f} % before the last quarter."
        advice = "The network does not fit its training set: check its architecture and the learning rate first."
        yield Finding("underfitting", "warning", "", evidence, advice)


def _plateau(history: list[dict], train: list[float], test: list[float]) -> Iterator[Finding]:
    """Neither split gets better in the second half, at a rate that stands."""
    rates, half = _rates(history), len(history) // 2
    learnt = train and train[-1] > 95
    if len(history) < 6 or learnt or (rates and rates[-1] < 0.5 * max(rates)):
        return
    losses = [float(record["train_loss"]) for record in history]
    later = min(losses[half:]) < 0.97 * losses[half] or (test and max(test[half:]) > test[half] + 1)
    if not later:
        name = history[half].get("epoch", half + 1)
        evidence = f"The training loss was {losses[half]:.4f} after epoch {name} and is {losses[-1]:.4f}."
        if rates:
            evidence += f" The learning rate is {rates[-1]:.2g} still."
        advice = "Lower the learning rate now, by a schedule, or raise it if it was low from the start."
        yield Finding("plateau", "warning", "", evidence, advice)
