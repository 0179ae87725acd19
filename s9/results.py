"""What assets/ holds: the histories of recorded runs, the ladder that they make, and the search."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent  # of the kit
ASSETS = ROOT / "assets"
SEARCH_EPOCHS = 5  # of the schedule on which the candidates of the search are compared

LADDER = {  # the runs in order, and what each changes
    "student": "as it was",
    "ladder-1": "ReLU applied, nothing else",
    "ladder-2": "+ Nesterov momentum, one-cycle learning rate",
    "ladder-3": "+ BatchNorm and ReLU on the strided convolutions, padding that keeps maps of 16, 8, 4",
    "ladder-4": "+ flip and crop, label smoothing; dropout off",
}
LAST_RUNGS = {
    "ladder-4": "StudentNet, mended",
    "ladder-5": "S9Net in its place",
    "ladder-6": "+ batches of 256, a rate of 0.15, weight decay",
    "s9net": "+ Muon for the kernels that mix channels",
}


def read_history(path: str | Path) -> list[dict]:
    """The history of a recorded run, one record per epoch, from a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def recorded_history(run: str) -> list[dict]:
    """The history of a run in assets/runs."""
    return read_history(ASSETS / "runs" / f"{run}.jsonl")


def compared(path: Path) -> pd.DataFrame:
    """A row a candidate of a search.csv, the best first.

    `held_out_accuracy` is the mean over its seeds, of which there are `seeds`, and `gain` the mean of what it has more
    than its base on the seeds that both have.
    """
    trials = pd.read_csv(path, keep_default_na=False)
    trials = trials[trials.epochs == SEARCH_EPOCHS]
    accuracy = trials.pivot(index="candidate", columns="seed", values="held_out_accuracy")
    rows = trials.drop_duplicates("candidate").drop(columns="seed").set_index("candidate")
    rows["seeds"], rows["held_out_accuracy"] = accuracy.count(axis=1), accuracy.mean(axis=1)
    rows["gain"] = (accuracy - accuracy.reindex(rows.base.reindex(accuracy.index)).to_numpy()).mean(axis=1)
    return rows.sort_values("held_out_accuracy", ascending=False).reset_index()


def test_line(record: dict, total: int) -> str:
    """How an epoch's record is printed, with `total` test images."""
    score = f"{record['test_correct']}/{total} ({record['test_accuracy']:.2f}%)"
    return f"Test set: Average loss: {record['test_loss']:.4f}, Accuracy: {score}"


def history_log(history: list[dict], total: int) -> str:
    """A history as the lines that training printed; `total` is the number of test images."""
    lines = []
    for record in history:
        lines += [
            f"Epoch {record['epoch']}",
            f"Train: Loss={record['last_batch_loss']:.4f} Accuracy={record['train_accuracy']:.2f} "
            f"[{record['seconds']:.0f} s, learning rate {record['learning_rate']:.4e}]",
            test_line(record, total),
            "",
        ]
    return "\n".join(lines)
