"""Kills training runs at various points, damages their files, and counts the failures.

`python -m scripts.survival` does so many times and writes assets/survival.json, from which the README's table is made;
test_survival.py does the same a few times.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

import utils
from s9 import files
from s9.results import ROOT
from s9.runs import read_checkpoint

RECIPE = utils.Recipe(
    epochs=6, batch_size=64, learning_rate=0.05, momentum=0.9, nesterov=True, schedule="one-cycle", crop=4, flip=True,
    precision="fp32",
)  # fmt: skip

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["scripts.survival"])


def start(target, *arguments) -> multiprocessing.Process:
    """Start a process from one that has imported all of this already, and that the first call starts."""
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        process = PROCESSES.Process(target=target, args=arguments)
        process.start()
    return process


class Drawing(nn.Module):
    """A small network that draws from all random generators: torch's, numpy's and Python's."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x = x * (1 + 0.1 * random.random() * np.random.random())  # noqa: NPY002
        return self.layers(x)


def train(root: str, sabotage: str = "") -> None:
    """What a process does: train or resume, and perhaps be killed at a certain point."""
    torch.set_num_threads(1)
    if sabotage:
        SABOTAGE[sabotage]()
    torch.manual_seed(0)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        utils.train(Drawing(), utils.load_data("digits"), RECIPE, run="run", root=root, device="cpu", verbose=False)


def train_slowly(root: str) -> None:
    """The same with a pause after each step, so that there is time to stop it."""
    train_quickly = utils.train

    def paused(*arguments, **options):
        return train_quickly(*arguments, on_step=lambda *_: time.sleep(0.02), **options)

    utils.train = paused  # of this process alone
    train(root)


def die() -> None:
    """Kill this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_the_write() -> None:
    """Half of the third checkpoint is on the disk when the process is killed."""
    write_bytes, saves = Path.write_bytes, []

    def half(path: Path, content) -> int:
        saves.append(path)
        if len(saves) == 3:
            write_bytes(path, bytes(content)[: len(content) // 2])
            die()
        return write_bytes(path, content)

    Path.write_bytes = half


def _die_before_the_rename_to(name: str) -> None:
    """The third file of this name is whole beside the old one, and has not its name yet."""
    replace, calls = os.replace, []

    def never(*names) -> None:
        if str(names[1]).endswith(name):
            calls.append(names)
            if len(calls) == 3:
                die()
        replace(*names)

    files.os.replace = never


SABOTAGE = {
    "killed inside the checkpoint's write": _die_in_the_write,
    "killed before the checkpoint's rename": partial(_die_before_the_rename_to, "checkpoint.pt"),
    "killed before the history's rename": partial(_die_before_the_rename_to, "history.jsonl"),
}


def run(root: Path, sabotage: str = "", seconds: float | None = None) -> int | None:
    """Train in a process of its own and kill it after `seconds`, if they are given; its exit code."""
    process = start(train, str(root), sabotage)
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def content(root: Path) -> dict:
    """All that must be the same, bit for bit, as in a run that was never interrupted."""
    checkpoint = read_checkpoint(root / "run" / "checkpoint.pt")
    for record in checkpoint["history"]:
        del record["seconds"]
    del checkpoint["identity"]
    return checkpoint


def same(a, b) -> bool:
    """Whether two nested structures of tensors and plain Python are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


DAMAGES = {  # from how a checkpoint is damaged to its new content, given its path and its old content
    "cut in half": lambda path, whole: whole[: len(whole) // 2],
    "empty": lambda path, whole: b"",
    "one bit of a weight changed": lambda path, whole: _flipped(whole, whole.find(next_weight(path))),
    "another kind of file": lambda path, whole: b"<html>" + whole[:100],
    "a pickle that runs code": lambda path, whole: pickle.dumps(Bomb(path.parent.parent / "exploded")),
}


def next_weight(path: Path) -> bytes:
    """The bytes of some weights in a checkpoint."""
    weight = torch.load(path, weights_only=True)["model"]["layers.5.weight"]
    return weight.numpy().tobytes()[:64]


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def kills(count: int, root: Path, expected: dict, seed: int = 0) -> dict:
    """Kill a run at `count` random moments, starting it again each time and anew when it is through."""
    moments, done, lost = random.Random(seed), 0, 0
    duration = timed(root / "timed")
    while done < count:
        folder = root / f"kills-{done}"
        while done < count and run(folder, seconds=moments.uniform(0, duration)) == -signal.SIGKILL:
            done += 1
        assert run(folder) == 0
        lost += not same(content(folder), expected)
    return {"tried": "killed at a random moment", "times": done, "lost": lost}


def timed(root: Path) -> float:
    """Seconds that an uninterrupted run takes, the start of its process included."""
    started = time.perf_counter()
    assert run(root) == 0
    return time.perf_counter() - started


def sabotages(count: int, root: Path, expected: dict) -> list[dict]:
    """Kill a run at the worst moments of saving."""
    rows = []
    for name in SABOTAGE:
        lost = 0
        for index in range(count):
            folder = root / f"{name}-{index}"
            assert run(folder, sabotage=name) == -signal.SIGKILL
            assert run(folder) == 0
            lost += not same(content(folder), expected) or any((folder / "run").glob(f"{files.UNFINISHED}*"))
        rows.append({"tried": name, "times": count, "lost": lost})
    return rows


def damages(count: int, root: Path, expected: dict) -> list[dict]:
    """Damage the last checkpoint, and resume from the previous one."""
    rows = []
    for how, damage in DAMAGES.items():
        lost = 0
        for index in range(count):
            folder = root / f"{how}-{index}"
            assert run(folder, sabotage="killed before the history's rename") == -signal.SIGKILL
            path = folder / "run" / "checkpoint.pt"
            path.write_bytes(damage(path, path.read_bytes()))
            assert run(folder) == 0
            aside = list((folder / "run").glob("damaged-*.pt"))
            lost += not same(content(folder), expected) or len(aside) != 1 or (folder / "exploded").exists()
        rows.append({"tried": f"last checkpoint damaged: {how}", "times": count, "lost": lost})
    return rows


def main() -> None:
    """Try everything many times and record the failures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        assert run(root / "whole") == 0
        expected = content(root / "whole")
        rows = [kills(60, root, expected), *sabotages(5, root, expected), *damages(5, root, expected)]
    report = {"torch": torch.__version__, "command": "python -m scripts.survival", "rows": rows}
    files.write_whole(
        ROOT / "assets" / "survival.json", lambda path: path.write_text(json.dumps(report, indent=2) + "\n")
    )
    for row in rows:
        print(f"{row['tried']}: {row['times']} times, lost {row['lost']}")


if __name__ == "__main__":
    sys.modules["scripts.survival"] = sys.modules["__main__"]
    __spec__ = None  # or each process would warn that it has this module already
    main()
