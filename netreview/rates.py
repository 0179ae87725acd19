"""Which learning rates a network learns at."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from netreview.copies import copied, located
from netreview.findings import Found, check
from netreview.randomness import kept_random_states
from netreview.settings import highest_rate
from netreview.subject import Subject
from netreview.traces import tensors_in

STEPS = 40  # of each trial


@check(
    "learning-rate",
    "warning",
    advice="Take a rate that these images can be learnt with.",
    unless=("error", "optimizer-settings"),
)
def learning_rate(subject: Subject):
    """Rates that some steps of training on copies show to be bad, where another is shown to be clearly better."""
    optimizer = subject.optimizer
    if optimizer is None or isinstance(optimizer, torch.optim.LBFGS) or not subject.labels_fit:
        return
    start = float(subject.loss(subject.run(subject.images, training=True)))
    rates = [highest_rate(group) for group in optimizer.param_groups]
    if not start > 0 or 0 in rates:
        return
    if _trial(subject, rates, 6)[0] < 0.998 * start:  # it learns: nothing to suspect
        return
    end, is_constant = _trial(subject, rates, STEPS)
    diverged, stands = not end < 1.3 * start, abs(end - start) <= 0.002 * start
    if not (diverged or stands or is_constant):
        return
    for factor in (10, 100, 1000, 10_000) if stands and not is_constant else (0.1, 0.01, 1e-3, 1e-4):
        for scaled in _scaled(rates, factor):
            better, _ = _trial(subject, scaled, STEPS)
            if better < (0.98 if diverged else 0.8) * start:
                yield _advised(rates, scaled, start, end, better)
                return


def _advised(rates: list[float], better: list[float], *losses: float) -> Found:
    """What two trials showed: the losses are that of the start, with the given rates, and with the better ones."""
    index = next(index for index, (old, new) in enumerate(zip(rates, better, strict=True)) if old != new)
    old, new = rates[index], better[index]
    alone = len(rates) > 1 and sum(a != b for a, b in zip(rates, better, strict=True)) == 1
    group = f" of group {index}" if alone else ""
    start, end, reached = losses
    evidence = (
        f"{STEPS} steps on these images bring the loss from {start:.3g} to {end:.3g} with a rate of {old:.2g}{group}, "
        f"and to {reached:.3g} with {new:.2g}."
    )
    return Found("", evidence, f"{'Raise' if new > old else 'Lower'} the learning rate{group} towards {new:.1g}.")


def _scaled(rates: list[float], factor: float) -> list[list[float]]:
    """All rates times a factor; before that, those of one group at a time."""
    single = [[rate * factor if i == k else rate for i, rate in enumerate(rates)] for k in range(len(rates))]
    return [*single, [rate * factor for rate in rates]] if len(rates) > 1 else single


def _trial(subject: Subject, rates: list[float], steps: int) -> tuple[float, bool]:
    """Train copies on mini-batches, with these rates of the optimiser's groups.

    Returns the loss after it, and whether the output is then the same for all images.
    """
    model, optimizer = copied(subject.original, subject.optimizer)
    model.train()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    count = len(subject.images)
    size = max(2, min(32, count // 2)) if len(subject.few) == 2 else count
    generator = torch.Generator().manual_seed(0)
    with kept_random_states(), located(model):
        torch.manual_seed(0)
        for _ in range(steps):
            batch = torch.randperm(count, generator=generator)[:size]
            optimizer.zero_grad()
            loss = subject.loss(model(subject.images[batch].clone()), subject.labels[batch])
            if not loss.requires_grad or not loss.isfinite():
                return loss.item(), False
            loss.backward()
            optimizer.step()
    logits = subject.logits(subject.run(subject.images, model=model))
    is_constant = bool((logits - logits[:1]).abs().max() <= 1e-4 * logits.abs().max())
    return float(subject.loss(subject.run(subject.images, training=True, model=model))), is_constant


class RangeTest(NamedTuple):
    """Loss against learning rate, one step each."""

    rates: list[float]
    losses: list[float]
    steepest: float  # where the loss falls fastest
    diverges: float | None  # from where it is over half as large again as at the start


def learning_rate_range(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int = 40,
) -> RangeTest:
    """Train copies of model and optimiser for some steps on one batch, the rate rising from 1e-5 to 10 (Smith 2015).

    Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186.
    """
    model, optimizer = copied(model, optimizer)
    model.train()
    rates, losses = [], []
    for rate in torch.logspace(-5, 1, steps).tolist():
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = loss_fn(tensors_in(model(images))[0], labels)
        if not loss.requires_grad or not math.isfinite(loss.item()):
            break
        losses.append(loss.item())
        rates.append(rate)
        if loss.item() > 4 * losses[0]:
            break
        loss.backward()
        optimizer.step()
    if not losses:
        raise ValueError("learning_rate_range: the first loss is not finite, or no parameter gets a gradient.")
    smooth = np.convolve(np.pad(losses, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    # losses[i] is what the steps up to rates[i - 1] made of it.
    steepest = rates[max(0, int(np.diff(smooth).argmin()))] if len(smooth) > 1 else rates[0] if rates else math.nan
    over = [rate for rate, loss in zip(rates, losses, strict=True) if loss > 1.5 * losses[0] and rate > steepest]
    return RangeTest(rates, losses, steepest, over[0] if over else None)
