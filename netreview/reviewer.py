"""Runs the checks over copies of a network, and leaves the network as it was."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from netreview import affine, basics, behaviour, inputs, losses, rates, residuals, settings, structure
from netreview.copies import DoesNotRun
from netreview.findings import CHECKS, Check, Finding, Findings
from netreview.randomness import kept_random_states
from netreview.subject import Subject, Unanswerable

# The order of the questions, which is that of their findings: what causes others first.
_CHECKING = (basics, inputs, losses, structure, residuals, affine, settings, behaviour, rates)
_MODULES = [module.__name__ for module in _CHECKING]
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
        images: (N, C, H, W), or (N, features), as the network gets them; 32 to 256 of them, of all classes, shuffled.
        labels: (N,), or as `loss_fn` takes them; arrays of numpy will do, too.
        loss_fn: from logits, or all that the model returns, and labels to a number.
        optimizer: of the model's parameters; without it what concerns the optimiser is not checked.

    All work is done on copies, and the random states are put back: model, mode, gradients, buffers and optimiser are
    as they were.

    Raises:
        ValueError: `images` and `labels` do not fit each other.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"review: the model is a {type(model).__name__}, and has to be an nn.Module.")
    if np.ndim(images) < 2 or len(images) != len(labels) or len(images) < 2:
        raise ValueError("review: give images (N, C, H, W) and labels (N,), at least two of each.")
    with kept_random_states():
        subject = Subject(model, images, labels, loss_fn, optimizer)
        findings: list[Finding] = []
        for check in _ORDER:
            if not any(found.check in check.unless or found.severity in check.unless for found in findings):
                new = [finding for finding in _asked(check, subject) if finding not in findings]
                findings += new
                if new and check.stops:
                    break
        return Findings(findings)


def _asked(check: Check, subject: Subject) -> list[Finding]:
    """What a check finds; where it cannot be made, that."""
    try:
        return list(check(subject))
    except Unanswerable:
        return []
    except DoesNotRun as error:
        return [Finding("does-not-run", "error", error.where, str(error), CHECKS["does-not-run"].advice)]
    except Exception as error:  # one check that fails takes nothing from the others
        evidence = f"The check {check.id} could not be made: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return [Finding("not-checked", "note", "", evidence, "Nothing is known to be wrong: look at this yourself.")]
