"""What was seen of a training loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from netreview.findings import Finding, Findings

LOOKED_AT = 32  # steps whose numbers are looked at; later ones are only counted


@dataclass
class Step:
    """What was seen between two steps of an optimiser; tensors of one number are read at the end."""

    backwards: int = 0
    passes: int = 0  # through the network with gradients
    evaluating: int = 0  # of these, in eval mode
    without_graph: int = 0  # passes in train mode whose result has no graph
    left_over: torch.Tensor | None = None  # the largest gradient that was there before the last backward pass
    accumulated: bool = False  # whether a parameter got a gradient
    gradient: torch.Tensor | None = None  # the largest norm of a parameter's gradient
    change: torch.Tensor | None = None  # the largest change of a parameter that is looked at
    rates: tuple[float, ...] = ()
    scheduled: int = 0  # calls of a scheduler since the step before


@dataclass
class Batch:
    """A batch of training images as the network got it."""

    count: int
    mean: torch.Tensor
    deviation: torch.Tensor
    largest: torch.Tensor
    sum: torch.Tensor


@dataclass
class Loss:
    """A call of a loss function in training."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    value: torch.Tensor
    labels: torch.Tensor | None  # of classification
    classes: int
    step: int


class Watched:
    """What was seen of a loop; `findings` judges it."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        judged: Callable[[Watched], Iterable[Finding]],
    ):
        self.model, self.given, self.judged = model, optimizer, judged
        self.optimizers = weakref.WeakSet([optimizer] if optimizer else [])
        self.steps: list[Step] = []
        self.current = Step()
        self.batches: list[Batch] = []
        self.losses: list[Loss] = []
        self.backwards = 0
        self.reached: set[str] = set()  # parameters that got a gradient
        self.error: BaseException | None = None
        self.kept: list[weakref.ref] = []  # losses that were made
        self.chained = 0  # additions of losses of several steps, with their graphs
        self.early_schedules = 0  # calls of a scheduler before the first step
        self.schedulers: list[tuple[str, int]] = []  # (class, calls) of those that were there

    @property
    def findings(self) -> Findings:
        """What is wrong with the loop, the worst first."""
        return Findings(self.judged(self))
