"""Cost against number of images, batch size and image size: seconds per epoch and peak memory.

`python -m scripts.benchmarks.cost [--rounds N]` measures each point in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace

import torch

import utils
from s9.data import subset
from s9.results import ROOT
from scripts.benchmarks import measuring
from scripts.experiments import EXPERIMENTS

NAME = "ladder-4"
AXES = {  # what varies, and for each the values of (images, batch size, image size)
    "cost-images": [(images, 256, 32) for images in (1000, 4000, 16_000, 50_000)],
    "cost-batch": [(8192, batch, 32) for batch in (64, 128, 256, 512, 1024, 2048)],
    "cost-size": [(2048, 256, size) for size in (32, 64, 96)],
}


def one(images: int, batch: int, size: int) -> dict:
    """Train for one epoch on this many images; its seconds and the peak growth of memory in MB."""
    generator = torch.Generator().manual_seed(0)
    data = utils.load_data()
    if size == 32:
        data = subset(data, images)
    else:
        noise = torch.randint(0, 256, (images, 3, size, size), generator=generator, dtype=torch.uint8)
        data = data._replace(train_images=noise, train_labels=torch.arange(images) % 10)
        data = data._replace(test_images=noise[:2], test_labels=torch.arange(2))
    data = data._replace(test_images=data.test_images[:2], test_labels=data.test_labels[:2])
    experiment = EXPERIMENTS[NAME]
    recipe = replace(experiment.recipe, epochs=1, batch_size=batch, warmup=0.3)
    model = experiment.build()
    if size != 32:
        model.classifier[1] = torch.nn.AdaptiveAvgPool2d(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (epoch,) = utils.train(model, data, recipe, verbose=False)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": epoch["seconds"], "megabytes": (after - before) / 1024}


def named(images: int, batch: int, size: int) -> str:
    """A point in words, as its records have it."""
    return f"{images} images, batches of {batch}, {size}x{size} pixels"


def main() -> None:
    """Measure all points and record them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, type=int, metavar=("IMAGES", "BATCH", "SIZE"), help="one point, as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*given.one)))
        return
    data = utils.load_data()
    for bench, points in AXES.items():
        for point in points:
            command = [sys.executable, "-m", "scripts.benchmarks.cost", "--one", *map(str, point)]
            runs = [
                json.loads(subprocess.check_output(command, cwd=ROOT).splitlines()[-1]) for _ in range(given.rounds)
            ]
            times, memory = ([run[key] for run in runs] for key in ("seconds", "megabytes"))
            measuring.record(bench, {f"ours: {named(*point)}": times}, "s/epoch", data)
            measuring.record(bench, {f"ours: memory, {named(*point)}": memory}, "MB", data)


if __name__ == "__main__":
    main()
