"""The search that led to S9Net: `python search.py NAME...` tries candidates on held-out training images.

Each candidate changes one thing about the one that it names as its base. It trains for a few epochs, one-cycle, on all
but 5,000 of the training images, chosen by a fixed seed, and is tested on those: the test set plays no part. What came
out is a row of assets/search.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from checkpoints import environment
from dataset import DataError, hold_out, load_data
from files import write_whole
from models import DepthwiseDilatedConv2d, StrideDilatedConv2d
from recipe import Recipe, default_device
from train import ASSETS
from training import count_parameters, train

HELD_OUT = 5000
EPOCHS = 5
RECIPE = Recipe(
    batch_size=256, learning_rate=0.15, momentum=0.9, nesterov=True, weight_decay=5e-4, schedule="one-cycle", crop=4,
    flip=True, label_smoothing=0.1,
)  # fmt: skip


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
        layers = [DepthwiseDilatedConv2d(channels, dilation)]
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
            StrideDilatedConv2d(32, 72, 3, stride=2, padding=2, bias=False), nn.BatchNorm2d(72), nn.ReLU(),
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


def multiply_adds(model: nn.Module) -> int:
    """For one image of 32x32, of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def try_out(name: str, seed: int, epochs: int) -> dict:
    """Train a candidate and return its row."""
    candidate = CANDIDATES[name]
    data = hold_out(load_data(), HELD_OUT)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = candidate.build()
    recipe = replace(candidate.recipe, epochs=epochs, seed=seed)
    history = train(model, data, recipe, run=f"search-{name}-{seed}-{epochs}")
    surroundings = environment(data, default_device())
    return {
        "candidate": name,
        "base": candidate.base,
        "change": candidate.change,
        "epochs": epochs,
        "seed": seed,
        "held_out_accuracy": round(history[-1]["test_accuracy"], 2),
        "train_accuracy": round(history[-1]["train_accuracy"], 2),
        "parameters": count_parameters(model),
        "multiply_adds": multiply_adds(model),
        "seconds_an_epoch": round(statistics.median(record["seconds"] for record in history), 1),
        "device": surroundings["device"],
        "torch": surroundings["torch"],
        "data": surroundings["data"],
    }


def read_trials(path: Path) -> list[dict[str, str]]:
    """The rows of a search.csv; none if it is not there yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def compared(path: Path) -> pd.DataFrame:
    """A row a candidate of a search.csv, the best first.

    `held_out_accuracy` is the mean over its seeds, of which there are `seeds`, and `gain` the mean of what it has more
    than its base on the seeds that both have.
    """
    trials = pd.read_csv(path, keep_default_na=False)
    trials = trials[trials.epochs == EPOCHS]
    accuracy = trials.pivot(index="candidate", columns="seed", values="held_out_accuracy")
    rows = trials.drop_duplicates("candidate").drop(columns="seed").set_index("candidate")
    rows["seeds"], rows["held_out_accuracy"] = accuracy.count(axis=1), accuracy.mean(axis=1)
    rows["gain"] = (accuracy - accuracy.reindex(rows.base.reindex(accuracy.index)).to_numpy()).mean(axis=1)
    return rows.sort_values("held_out_accuracy", ascending=False).reset_index()


def keep(row: dict) -> None:
    """Add a row to assets/search.csv, in place of an earlier one of the same candidate, seed and epochs."""
    path = ASSETS / "search.csv"
    rows = read_trials(path)
    same = [{key: str(row[key]) for key in ("candidate", "seed", "epochs")}.items() <= old.items() for old in rows]
    rows = [old for old, is_same in zip(rows, same, strict=True) if not is_same] + [row]

    def write(temporary) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="search.py", description=__doc__)
    parser.add_argument("names", nargs="+", choices=CANDIDATES, metavar="NAME", help=", ".join(CANDIDATES))
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of the short schedule (default: {EPOCHS})")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        for name in given.names:
            row = try_out(name, given.seed, given.epochs)
            keep(row)
            print(row, flush=True)
    except (DataError, ValueError, FloatingPointError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
