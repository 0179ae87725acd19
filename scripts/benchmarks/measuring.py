"""What all benchmarks share: implementations measured in turns, and records in assets/benchmarks.json."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from s9.data import Data
from s9.files import write_whole
from s9.machine import default_device, device_name
from s9.results import ROOT

RECORDS = ROOT / "assets" / "benchmarks.json"


def take_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure all sides one after the other, `rounds` times, so that none has the machine at a better hour.

    Each side returns its number; a first round that warms up is not counted.
    """
    values: dict[str, list[float]] = {side: [] for side in sides}
    for round_number in range(rounds + 1):
        for side, measure in sides.items():
            value = measure()
            if round_number:
                values[side].append(value)
    return values


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, on a GPU until it is through."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def record(bench: str, values: dict[str, list[float]], unit: str, data: Data | None, digits: int = 3) -> None:
    """Print median and spread (largest minus smallest) of each side, and keep them in assets/benchmarks.json.

    A side may be "ours: some case" where a side has several.
    """
    rows = json.loads(RECORDS.read_text()) if RECORDS.exists() else []
    new = []
    for name, numbers in values.items():
        side, _, case = name.partition(": ")
        row = {
            "bench": bench,
            "side": side,
            "case": case,
            "value": float(f"{statistics.median(numbers):.{digits}g}"),
            "unit": unit,
            "n": len(numbers),
            "spread": float(f"{max(numbers) - min(numbers):.2g}"),
            "device": device_name(default_device()),
            "torch": torch.__version__,
            "data": f"{data.name}, {data.copy}" if data else "none",
            "command": "python -m scripts.benchmarks." + " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
        }
        new.append(row)
        print(f"{bench}: {name}: {row['value']:g} {unit} (n = {row['n']}, spread {row['spread']:g})", flush=True)
    replaced = {identity(row) for row in new}
    rows = [row for row in rows if identity(row) not in replaced] + new
    rows.sort(key=lambda row: row["bench"])  # stable: the sides stay in their order
    write_whole(RECORDS, lambda path: path.write_text(json.dumps(rows, indent=1) + "\n"))


def identity(row: dict) -> tuple:
    """What a record is about: a new one of the same replaces it."""
    return tuple(row[key] for key in ("bench", "side", "case", "unit", "device"))
