"""The candidates of the search for S9Net: each is one that came before with a single setting changed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import nn

from s9.layers import Conv2d
from s9.recipes import S9_RECIPE, Recipe


class Block(nn.Module):
    """x plus what a depthwise convolution and pointwise ones make of it, as models.ResidualBlock, with more options."""

    def __init__(self, channels: int, dilation: int, expansion: int, kernel: int, activation: type[nn.Module]):
        super().__init__()
        inner, padding = expansion * channels or channels, dilation * (kernel // 2)
        widen = [nn.Conv2d(channels, inner, 1, bias=False)] if expansion else []
        self.branch = nn.Sequential(
            Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=False),
            *widen,
            nn.BatchNorm2d(inner),
            activation(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Network(nn.Module):
    """S9Net with its choices as settings; as they are here, it is the S9Net that the search began with.

    Args:
        stages: (blocks, channels, expansion of the blocks) at 32x32, at 16x16 and at 8x8.
        kernel: side of the depthwise convolutions. Every second one at 16x16 is dilated by two.
        activation: the name of a module of torch.nn.
        passes: how many times an image goes through each block at 16x16, with the same weights.
        dropout: probability, before the classifier.
    """

    def __init__(
        self,
        stages: tuple = ((1, 32, 0), (8, 64, 2), (1, 96, 2)),
        kernel: int = 3,
        activation: str = "ReLU",
        passes: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.settings = {
            "stages": stages, "kernel": kernel, "activation": activation, "passes": passes, "dropout": dropout
        }  # fmt: skip
        act = getattr(nn, activation)
        before = stages[0][1]
        layers = [nn.Sequential(nn.Conv2d(3, before, 3, padding=1, bias=False), nn.BatchNorm2d(before), act())]
        for number, (blocks, channels, expansion) in enumerate(stages):
            if number:
                pointwise = nn.Conv2d(before, channels, 1, bias=False)
                layers.append(nn.Sequential(nn.AvgPool2d(2), pointwise, nn.BatchNorm2d(channels)))
            dilations = [1 + index % 2 if number == 1 else 1 for index in range(blocks)]
            for block in [Block(channels, dilation, expansion, kernel, act) for dilation in dilations]:
                layers += [block] * (passes if number == 1 else 1)
            before = channels
        self.features = nn.Sequential(*layers, act())
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(before, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Candidate(NamedTuple):
    """The candidate `base` with another value of one setting, of the network or of the recipe."""

    base: str
    setting: str
    value: object

    @property
    def change(self) -> str:
        """What it changes, for people."""
        return f"{self.setting}={self.value}"


START = "start"  # S9Net as it was when the search began, which has no base
CANDIDATES = {
    "32x32": Candidate(START, "stages", ((2, 48, 2), (7, 64, 2), (1, 96, 2))),
    "32x32-more": Candidate(START, "stages", ((2, 64, 2), (6, 64, 2), (1, 96, 2))),
    "twice": Candidate(START, "passes", 2),
    "5x5": Candidate(START, "kernel", 5),
    "silu": Candidate(START, "activation", "SiLU"),
    "dropout": Candidate(START, "dropout", 0.1),
    "cutout": Candidate(START, "cutout", 8),
    "smoothing": Candidate(START, "label_smoothing", 0.2),
    "batch-128": Candidate(START, "batch_size", 128),
    "momentum": Candidate(START, "momentum", 0.95),
    "decay": Candidate(START, "weight_decay", 2e-3),
    "kernel-rate": Candidate(START, "kernel_rate", 0.035),
}


def settings(name: str) -> dict[str, object]:
    """All settings of a candidate that are not as at the start."""
    if name == START:
        return {}
    candidate = CANDIDATES[name]
    return settings(candidate.base) | {candidate.setting: candidate.value}


def build(name: str, seed: int, epochs: int) -> tuple[nn.Module, Recipe]:
    """The network of a candidate, with the initial weights of `seed`, and its recipe."""
    chosen, of_recipe = settings(name), {field.name for field in fields(Recipe)}
    recipe = replace(S9_RECIPE, **{key: chosen[key] for key in chosen.keys() & of_recipe}, epochs=epochs, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network(**{key: chosen[key] for key in chosen.keys() - of_recipe}), recipe
