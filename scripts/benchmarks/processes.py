"""Scaling: seconds an epoch in one and in two processes on this machine, the same global batch.

`python -m scripts.benchmarks.processes [--rounds N]`
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import utils
from scripts.benchmarks import measuring

NAME, IMAGES = "ladder-4", 5120
SCRIPT = """
import json, sys
sys.path.insert(0, {root!r})
from dataclasses import replace
import torch
torch.set_num_threads(int(sys.argv[1]))
import parallel, utils
from scripts.experiments import EXPERIMENTS
data = utils.subset(utils.load_data(), {images})
data = data._replace(test_images=data.test_images[:2], test_labels=data.test_labels[:2])
with parallel.joined() as world:
    experiment = EXPERIMENTS[{name!r}]
    history = utils.train(experiment.build(), data, replace(experiment.recipe, epochs=3), verbose=False)
    if world.is_main:
        print(json.dumps([record["seconds"] for record in history]))
"""


def epoch_seconds(processes: int, threads: int) -> float:
    """Seconds of the quickest epoch of three, for 50,000 images, in so many processes of so many threads."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(SCRIPT.format(root=str(measuring.ROOT), images=IMAGES, name=NAME))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        output = subprocess.check_output([*command, str(script), str(threads)], env=environment, text=True)
    return min(json.loads(output.splitlines()[-1])) * 50_000 / IMAGES


def main() -> None:
    """Measure one process on one and on all cores, and two processes that share them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    cores = torch.get_num_threads()
    sides = {
        "ours: 1 process on 1 core": lambda: epoch_seconds(1, 1),
        f"ours: 1 process on {cores} cores": lambda: epoch_seconds(1, cores),
        f"ours: 2 processes on {cores // 2} core each": lambda: epoch_seconds(2, cores // 2),
    }
    measuring.record("ddp", measuring.take_turns(sides, given.rounds), "s/epoch", utils.load_data())


if __name__ == "__main__":
    main()
