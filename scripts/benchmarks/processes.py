"""Scaling: seconds per epoch in one and in two processes on this machine, the same global batch.

`python -m scripts.benchmarks.processes [--rounds N]`
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace

import torch

import utils
from s9.data import subset
from s9.processes import joined
from s9.results import ROOT
from scripts.benchmarks import measuring
from scripts.experiments import EXPERIMENTS

NAME, IMAGES = "ladder-4", 5120


def one(threads: int) -> None:
    """What each process runs: three epochs, the main one printing their seconds."""
    torch.set_num_threads(threads)
    data = subset(utils.load_data(), IMAGES)
    data = data._replace(test_images=data.test_images[:2], test_labels=data.test_labels[:2])
    experiment = EXPERIMENTS[NAME]
    with joined() as team:
        history = utils.train(experiment.build(), data, replace(experiment.recipe, epochs=3), verbose=False)
        if team.is_main:
            print(json.dumps([record["seconds"] for record in history]))


def epoch_seconds(processes: int, threads: int) -> float:
    """Seconds of the quickest epoch of three, for 50,000 images, for the given numbers of processes and threads."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "scripts.benchmarks.processes", "--one", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    output = subprocess.check_output(command, env=environment, text=True, cwd=ROOT)
    return min(json.loads(output.splitlines()[-1])) * 50_000 / IMAGES


def main() -> None:
    """Measure one process on one and on all cores, and two processes that share them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=int, metavar="THREADS", help="what each process runs")
    given = parser.parse_args()
    if given.one:
        one(given.one)
        return
    cores = torch.get_num_threads()
    sides = {
        "ours: 1 process on 1 core": lambda: epoch_seconds(1, 1),
        f"ours: 1 process on {cores} cores": lambda: epoch_seconds(1, cores),
        f"ours: 2 processes on {cores // 2} core each": lambda: epoch_seconds(2, cores // 2),
    }
    measuring.record("ddp", measuring.take_turns(sides, given.rounds), "s/epoch", utils.load_data())


if __name__ == "__main__":
    main()
