"""The candidates of the search that led to S9Net: each changes one thing about the one that it names as its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from s9.layers import Conv2d
from s9.recipes import S9_RECIPE, Recipe

RECIPE = replace(S9_RECIPE, optimizer="sgd")


class Candidate(NamedTuple):
    """A network and a recipe to try."""

    change: str  # what it changes
    base: str  # about which other candidate
    build: Callable[[], nn.Module]
    recipe: Recipe = RECIPE


class Gate(nn.Module):
    """Squeeze-and-excitation: scales each channel by what all of them look like on average (arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return x * weights[:, :, None, None]


class Block(nn.Module):
    """A residual block: a depthwise convolution looks around, one or two pointwise ones mix the channels.

    Args:
        expansion: how many times as many channels there are between two pointwise convolutions; 0 for a single one.
        gate: channels that a gate on the branch squeezes to; 0 for none.
        relu_after: a ReLU behind the sum.
        norm_between: BatchNorm between the depthwise and the pointwise convolution.
    """

    def __init__(self, channels, dilation=1, expansion=0, gate=0, relu_after=True, norm_between=True):
        super().__init__()
        inner = expansion * channels if expansion else channels
        layers = [Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)]
        layers += [nn.BatchNorm2d(channels)] if norm_between else []
        if expansion:
            layers += [nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)]
        layers += [nn.ReLU()]
        layers += [nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        layers += [Gate(channels, gate)] if gate else []
        self.body = nn.Sequential(*layers)
        self.after = nn.ReLU() if relu_after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(x + self.body(x))


class Stages(nn.Module):
    """A stem, stages of blocks with an average pool and a pointwise convolution before each, the mean, a linear layer.

    Args:
        stages: (blocks, channels, size of the pool before, options of the blocks) each.
        dilated: in these stages every second block is dilated by two.
    """

    def __init__(self, *stages: tuple, dilated: tuple[int, ...] = (1,)):
        super().__init__()
        before = stages[0][1]
        layers = [nn.Conv2d(3, before, 3, padding=1, bias=False), nn.BatchNorm2d(before), nn.ReLU()]
        for index, (blocks, channels, pool, options) in enumerate(stages):
            if index:
                layers += [nn.AvgPool2d(pool), nn.Conv2d(before, channels, 1, bias=False), nn.BatchNorm2d(channels)]
                layers += [nn.ReLU()] if options.get("relu_after", True) else []
            for number in range(blocks):
                dilation = 2 if index in dilated and number % 2 else 1
                layers.append(Block(channels, dilation, **options))
            before = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))


class Prototype(nn.Module):
    """After the network that was tried first: a dense dilated convolution leads to 16x16, and most of it is at 8x8."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            Block(32), Block(32),
            Conv2d(32, 72, 3, stride=2, padding=2, dilation=2, bias=False), nn.BatchNorm2d(72), nn.ReLU(),
            *[Block(72) for _ in range(4)],
            nn.AvgPool2d(2), nn.Conv2d(72, 160, 1, bias=False), nn.BatchNorm2d(160), nn.ReLU(),
            *[Block(160) for _ in range(4)],
        )  # fmt: skip
        self.classifier = nn.Linear(160, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


LINEAR = {"relu_after": False}


def expanding(**options) -> Stages:
    """The stages of `expand-2` with other options of their blocks."""
    wide = LINEAR | {"expansion": 2} | options
    return Stages((1, 32, 1, LINEAR), (8, 64, 2, wide), (1, 96, 2, wide))


def lean() -> Stages:
    """The stages of `muon-lean`."""
    return expanding(norm_between=False)


def longer() -> Stages:
    """The stages of `longer-16`."""
    return Stages((1, 32, 1, {}), (12, 96, 2, {}), (2, 128, 2, {}))


CHOSEN = "muon-lean"  # S9Net in models.py, and "s9net" in train.py
MUON = replace(RECIPE, optimizer="muon")
CANDIDATES = {
    "prototype": Candidate("two blocks at 32x32, four at 16x16, four at 8x8", "", Prototype),
    "longer-16": Candidate("twelve blocks at 16x16 and two at 8x8, every second at 16x16 dilated", "prototype", longer),
    "expand-2": Candidate("blocks of two pointwise convolutions, twice as wide between", "longer-16", expanding),
    "expand-2-muon": Candidate("Muon", "expand-2", expanding, MUON),
    "muon-gate": Candidate(
        "squeeze-and-excitation to 4", "expand-2-muon", lambda: expanding(gate=4), MUON
    ),
    "muon-lean": Candidate(
        "no BatchNorm behind the depthwise convolutions of these blocks", "expand-2-muon", lean, MUON
    ),
    "muon-rate-0.1": Candidate("kernels turn twice as far", "expand-2-muon", expanding, replace(MUON, kernel_rate=0.1)),
    "lean-rate-0.025": Candidate("kernels turn half as far", "muon-lean", lean, replace(MUON, kernel_rate=0.025)),
}  # fmt: skip
