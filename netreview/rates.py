"""Which learning rates a network learns at."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from netreview.findings import Found, check
from netreview.subject import Subject
from netreview.traces import tensors_in


@check("learning-rate", "warning", advice="Take the rate that the range test shows to be better.")
def learning_rate(subject: Subject):
    """Where the given rate lies on the curve of the range test."""
    if subject.optimizer is None or not subject.labels_fit:
        return
    curve = learning_rate_range(
        subject.original, subject.images[:64], subject.labels[:64], subject.loss_fn, subject.optimizer
    )
    given = subject.optimizer.param_groups[0]["lr"]
    best, limit = curve.steepest, curve.diverges
    evidence = f"The rate is {given:.2g}; the loss falls fastest at {best:.2g}" + (
        f" and diverges from {limit:.2g}." if limit else "."
    )
    if given < best / 10:
        advice = f"Raise the learning rate towards {best:.1g}, best with momentum and a warm-up."
        yield Found("", evidence, advice=advice)
    elif given > 10 * best or (limit and given >= limit):
        advice = f"Lower the learning rate towards {best:.1g}."
        yield Found("", evidence, advice=advice)


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
    model, optimizer = copy.deepcopy((model, optimizer))  # together, so that the one holds the other's parameters
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
    smooth = np.convolve(np.pad(losses, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    # losses[i] is what the steps up to rates[i - 1] made of it.
    steepest = rates[max(0, int(np.diff(smooth).argmin()))] if len(smooth) > 1 else rates[0] if rates else math.nan
    over = [rate for rate, loss in zip(rates, losses, strict=True) if loss > 1.5 * losses[0] and rate > steepest]
    return RangeTest(rates, losses, steepest, over[0] if over else None)
