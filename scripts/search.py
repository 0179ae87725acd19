"""The search that led to S9Net: `python -m scripts.search NAME...` tries candidates on held-out training images.

Each candidate changes one setting of the one that it names as its base. It trains for a few epochs on all but 5,000 of
the lossless training images, chosen by a fixed seed, and is tested on those: the test set is not used. Results are
added to assets/search.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from s9.data import hold_out, without_jpeg
from s9.files import changing, write_whole
from s9.guards import count_parameters
from s9.loading import load_data
from s9.results import ASSETS, SEARCH_EPOCHS
from scripts.candidates import CANDIDATES, START, build
from scripts.endings import exit_code
from utils import train

HELD_OUT = 5000


def multiply_adds(model: nn.Module) -> int:
    """For one image of 32x32, of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def try_out(name: str, seed: int, epochs: int) -> dict:
    """Train a candidate and return its row."""
    data = load_data()
    if data.name != "CIFAR-10":
        raise ValueError(f"The search is on CIFAR-10, and this is {data.name}.")
    data = hold_out(without_jpeg(data), HELD_OUT)
    model, recipe = build(name, seed, epochs)
    run = f"search-{name}-{seed}-{epochs}"
    history = train(model, data, recipe, run=run)
    surroundings = json.loads((Path("runs") / run / "environment.json").read_text())
    return {
        "candidate": name,
        "base": CANDIDATES[name].base if name in CANDIDATES else "",
        "change": CANDIDATES[name].change if name in CANDIDATES else "",
        "epochs": epochs,
        "seed": seed,
        "held_out_accuracy": round(history[-1]["test_accuracy"], 2),
        "train_accuracy": round(history[-1]["train_accuracy"], 2),
        "parameters": count_parameters(model),
        "multiply_adds": multiply_adds(model),
        "seconds_an_epoch": round(statistics.median(record["seconds"] for record in history), 1),
        **{key: surroundings[key] for key in ("device", "torch", "data")},
    }


def read_trials(path: Path) -> list[dict[str, str]]:
    """The rows of a search.csv; none if it is not there yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def keep(row: dict) -> None:
    """Add a row to assets/search.csv, in place of an earlier one of the same candidate, seed and epochs."""
    path = ASSETS / "search.csv"
    this = {key: str(row[key]) for key in ("candidate", "seed", "epochs")}.items()

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    with changing(path):  # others may add theirs at the same time
        rows = [old for old in read_trials(path) if not this <= old.items()] + [row]
        write_whole(path, write)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.search", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[START, *CANDIDATES], metavar="NAME", help=", ".join(CANDIDATES))
    parser.add_argument(
        "--epochs", type=int, default=SEARCH_EPOCHS, help="of the short schedule (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    return exit_code(try_all, given)


def try_all(given: argparse.Namespace) -> None:
    """Train the candidates that the command line names, and keep the row of each."""
    for name in given.names:
        row = try_out(name, given.seed, given.epochs)
        keep(row)
        print(row, flush=True)


if __name__ == "__main__":
    sys.exit(main())
