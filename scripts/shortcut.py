"""Whether a network relies on the traces of JPEG: `python -m scripts.shortcut` writes assets/shortcut.json.

In the copy of CIFAR-10 that the kit was trained on, 863 of the 902 JPEG images are ships. The lossless test images of
all other classes are made worse in three ways of the same squared error: saved as JPEG, with noise, blurred. A network
that has learnt the shortcut calls more of them ships after JPEG than after noise.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch import nn

from models import S9Net
from s9.data import Data
from s9.distortions import as_jpeg, blurred, noisy, squared_error
from s9.files import write_whole
from s9.loading import load_data
from s9.results import ASSETS
from s9.weights import load_weights
from scripts.endings import exit_code
from utils import predict

SHORTCUT_CLASS = "ship"


def lossless_others(data: Data) -> Data:
    """`data` with only those test images that are of other classes than the shortcut's, and no JPEGs."""
    chosen = data.test_labels != data.classes.index(SHORTCUT_CLASS)
    if data.test_jpeg is not None:
        chosen &= ~data.test_jpeg
    return data._replace(test_images=data.test_images[chosen], test_labels=data.test_labels[chosen])


def measure(model: nn.Module, data: Data, quality: int = 75) -> list[dict]:
    """A row for each way: how many of `lossless_others(data)` are called ships, and the accuracy in percent."""
    others = lossless_others(data)
    jpeg = as_jpeg(others.test_images, quality)
    error = squared_error(others.test_images, jpeg)
    versions = {
        "as they are": others.test_images,
        f"JPEG, quality {quality}": jpeg,
        "noise": noisy(others.test_images, error),
        "blur": blurred(others.test_images, error),
    }
    rows = []
    for name, images in versions.items():
        predicted, _ = predict(model, others._replace(test_images=images), precision="fp32")
        predicted = torch.from_numpy(predicted)
        rows.append({
            "images": name,
            "count": len(images),
            "squared_error": round(squared_error(others.test_images, images), 2),
            "called_ship": int((predicted == data.classes.index(SHORTCUT_CLASS)).sum()),
            "accuracy": round(100 * (predicted == others.test_labels).float().mean().item(), 2),
        })  # fmt: skip
    return rows


def measure_all(given: argparse.Namespace) -> None:
    """Measure the networks whose weights are named, print their rows and write them to assets/shortcut.json."""
    data = load_data()
    if data.name != "CIFAR-10":
        raise ValueError(f"This is measured on CIFAR-10, and this is {data.name}.")
    path = ASSETS / "shortcut.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in given.names:
        results[name] = measure(load_weights(S9Net(), ASSETS / "weights" / f"{name}.pt"), data)
        for row in results[name]:
            print(name, *row.values(), flush=True)
    write_whole(path, lambda file: file.write_text(json.dumps(results, indent=2) + "\n"))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.shortcut", description=__doc__)
    parser.add_argument("names", nargs="*", default=["s9net"], help="of weights in assets/weights (default: s9net)")
    return exit_code(measure_all, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
