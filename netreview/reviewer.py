"""Runs the checks on a network, and reads a history of training."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from netreview import affine, behaviour, rates, structure
from netreview.findings import CHECKS, Check, Finding, Findings
from netreview.randomness import kept_random_states
from netreview.subject import Subject


def review(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy,
    optimizer: torch.optim.Optimizer | None = None,
) -> Findings:
    """Examine an image classifier and its training set-up, and say with evidence what holds it back.

    Args:
        model: from `images` to logits (N, classes).
        images: float (N, C, H, W), as the network gets them; 32 to 256 of them, of all classes.
        labels: int64 (N,).
        loss_fn: from logits and labels to a number.
        optimizer: of the model's parameters; without it what concerns the optimiser is not checked.

    All work is done on copies, and the random states are put back: model, mode, gradients, buffers and optimiser are
    as they were.

    Raises:
        ValueError: `images` and `labels` do not fit each other.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1] or len(images) < 2:
        raise ValueError("review: give float images (N, C, H, W) and labels (N,), at least two of each.")
    with kept_random_states():
        subject = Subject(model, images, labels, loss_fn, optimizer)
        output = subject.eval_output
        if output.ndim != 2 or len(output) != len(images):
            first = ("input-scale", "unregistered-parameter")  # which need no logits
            findings = [finding for name in first for finding in CHECKS[name].findings(subject)]
            leak = CHECKS["batch-leak"]
            evidence = f"{len(images)} images go in, and an output of shape {tuple(output.shape)} comes out."
            return Findings([*findings, Finding(leak.id, leak.severity, "", evidence, leak.advice)])
        return Findings([finding for check in ordered_checks() for finding in check.findings(subject)])


def ordered_checks() -> list[Check]:
    """All registered checks, those of causes before those of symptoms."""
    modules = [module.__name__ for module in (structure, affine, behaviour, rates)]
    return sorted(CHECKS.values(), key=lambda check: modules.index(check.function.__module__))


def review_history(history: list[dict]) -> Findings:
    """What a history, one record per epoch, says about the training; each finding is about the last epochs."""
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
    if train - test > 10:
        advice = "Augment the images, smooth the labels, or use weight decay."
        findings.append(Finding("overfitting", "warning", "", numbers, advice))
    if train < 70 and train < test + 5:
        advice = "The network cannot learn even its own lesson: look at its structure and at the learning rate first."
        findings.append(Finding("underfitting", "warning", "", numbers, advice))
    if test - train > 2:
        advice = "Lessen augmentation and dropout: training is harder than the test, in a short schedule too hard."
        findings.append(Finding("over-regularised", "warning", "", numbers, advice))
    half = history[len(history) // 2]
    if (
        len(history) >= 6
        and half["test_loss"] - min(record["test_loss"] for record in history) < 0.01 * half["test_loss"]
    ):
        evidence = (
            f"The test loss was {half['test_loss']:.4f} after epoch {half['epoch']} and is {last['test_loss']:.4f}."
        )
        advice = "More epochs of this will not help: change the learning rate, or the network."
        findings.append(Finding("plateau", "warning", "", evidence, advice))
    return Findings(findings)
