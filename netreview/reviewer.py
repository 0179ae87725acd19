"""Runs the checks over copies of a network, and leaves the network as it was."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from netreview import affine, behaviour, rates, structure
from netreview.findings import CHECKS, Finding, Findings
from netreview.randomness import kept_random_states
from netreview.subject import Subject

# The order of the questions, which is that of their findings: what causes others first.
_MODULES = [module.__name__ for module in (structure, affine, behaviour, rates)]
_ORDER = sorted(CHECKS.values(), key=lambda check: _MODULES.index(check.finds.__module__))


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
        output = subject.outputs(training=False)
        if output.ndim != 2 or len(output) != len(images):
            evidence = f"{len(images)} images go in, and an output of shape {tuple(output.shape)} comes out."
            return Findings([Finding("batch-leak", "error", "", evidence, CHECKS["batch-leak"].advice)])
        return Findings(finding for check in _ORDER for finding in check(subject))
