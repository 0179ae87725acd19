"""What `netreview.watch` costs, in seconds a step of S9Net: `python -m scripts.benchmarks.watching`."""

import argparse
import contextlib

import torch
import torch.nn.functional as F

import models
import netreview
from scripts.benchmarks import measuring


def seconds_a_step(watched: bool, batch: int, steps: int) -> float:
    """Of a plain loop of S9Net, on random images."""
    torch.manual_seed(0)
    model = models.S9Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def loop():
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

    with netreview.watch(model, optimizer) if watched else contextlib.nullcontext():
        return measuring.seconds(loop) / steps


def main() -> None:
    """Measure in turns and record both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256)
    given = parser.parse_args()
    sides = {
        name: lambda watched=name == "watched": seconds_a_step(watched, given.batch, given.steps)
        for name in ("alone", "watched")
    }
    measuring.record("watching", measuring.take_turns(sides, given.rounds), "seconds a step", None)


if __name__ == "__main__":
    main()
