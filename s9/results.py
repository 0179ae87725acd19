"""What assets/ holds: the histories of recorded runs, the ladder that they make, and the search."""

from __future__ import annotations

import base64
import json
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent  # of the kit
ASSETS = ROOT / "assets"
SEARCH_EPOCHS = 5  # of the schedule on which the candidates of the search are compared

STEPS = {  # from the student's network to S9Net, in order: a run's name, and what it changes about the one before
    "student": "student's network, as published",
    "ladder-1": "use the ReLU's output",
    "student-relu": "use the ReLU's output",
    "student-lr0.1": "learning rate 0.01 to 0.1",
    "student-momentum": "Nesterov momentum 0.9",
    "ladder-2": "momentum, one-cycle, peak rate 0.1",
    "student-one-cycle": "one-cycle schedule",
    "student-norm": "BatchNorm, ReLU on strided convs",
    "ladder-3": "BatchNorm, ReLU, padding on strided",
    "student-padding": "padding on strided convolutions",
    "student-flip-crop": "random flip and crop",
    "student-smoothing": "label smoothing 0.1",
    "ladder-4": "flip, crop, smoothing, no dropout",
    "student-no-dropout": "no dropout",
    "ladder-5": "S9Net's layers",
    "s9net-architecture": "S9Net's layers",
    "s9net-batch-256": "batch size 512 to 256",
    "s9net-lr0.15": "peak learning rate 0.15",
    "ladder-6": "batch 256, peak 0.15, weight decay",
    "s9net-decay": "weight decay 0.0005",
    "s9net": "Muon optimiser",
}
LADDER = {run: change for run, change in STEPS.items() if (ASSETS / "runs" / f"{run}.jsonl").exists()}  # the recorded
LAST_RUNGS = dict(list(LADDER.items())[-4:])


def rounded(value: float, digits: int = 1) -> str:
    """A recorded number with this many digits, halves upwards, so that text, tables and figures agree: 81.85 is
    81.9."""
    return str(Decimal(str(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def read_history(path: str | Path) -> list[dict]:
    """The history of a recorded run, one record per epoch, from a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def recorded_history(run: str) -> list[dict]:
    """The history of a run in assets/runs."""
    return read_history(ASSETS / "runs" / f"{run}.jsonl")


class RecordedFigure:
    """A figure of assets/ as it was recorded on CIFAR-10, where a notebook has no CIFAR-10 to draw it again.

    A notebook shows it under a line that says so; `savefig` is that of a matplotlib figure.
    """

    def __init__(self, name: str):
        self.path = ASSETS / f"{name}.png"

    def savefig(self, file, **_) -> None:
        """Write the picture, a PNG, to an open file."""
        file.write(self.path.read_bytes())

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.path.read_bytes()).decode()
        return (
            f"<p><b>As recorded on CIFAR-10</b>, which is not here (assets/{self.path.name}):</p>"
            f'<img src="data:image/png;base64,{picture}">'
        )

    def __repr__(self) -> str:
        return f"{self.path.name}, as recorded on CIFAR-10, which is not here"


def compared(path: Path) -> pd.DataFrame:
    """One row per candidate of a search.csv, the best first.

    `held_out_accuracy` is the mean over its seeds, of which there are `seeds`, and `gain` the mean difference from its
    base over the seeds that both have.
    """
    trials = pd.read_csv(path, keep_default_na=False)
    trials = trials[trials.epochs == SEARCH_EPOCHS]
    accuracy = trials.pivot(index="candidate", columns="seed", values="held_out_accuracy")
    rows = trials.drop_duplicates("candidate").drop(columns="seed").set_index("candidate")
    rows["seeds"], rows["held_out_accuracy"] = accuracy.count(axis=1), accuracy.mean(axis=1)
    rows["gain"] = (accuracy - accuracy.reindex(rows.base.reindex(accuracy.index)).to_numpy()).mean(axis=1)
    return rows.sort_values("held_out_accuracy", ascending=False).reset_index()


def test_line(record: dict, total: int) -> str:
    """One epoch's record as a line of the log, with `total` test images."""
    score = f"{record['test_correct']}/{total} ({record['test_accuracy']:.2f}%)"
    return f"Test set: Average loss: {record['test_loss']:.4f}, Accuracy: {score}"


def history_log(history: list[dict], total: int) -> str:
    """A history formatted as the training log; `total` is the number of test images."""
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
