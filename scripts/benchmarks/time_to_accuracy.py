"""Seconds until a test accuracy of 38.46 % (the student's result) and 85 % (the assignment's target).

`python -m scripts.benchmarks.time_to_accuracy [--steps N] [--rounds N]`: how many epochs each recorded run of the
ladder took, times the seconds per epoch of that network and recipe, all measured in turns.
"""

import argparse

import utils
from s9.results import LADDER, read_history
from scripts.benchmarks import measuring
from scripts.benchmarks.training_speed import our_run, seconds_an_epoch
from scripts.experiments import EXPERIMENTS

GOALS = (38.46, 85.0)
RUNGS = list(LADDER)


def epochs_until(goal: float, history: list[dict]) -> int | None:
    """The first epoch whose test accuracy reaches `goal`."""
    return next((record["epoch"] for record in history if record["test_accuracy"] >= goal), None)


def main() -> None:
    """Measure an epoch of each step, and record the times of those that reach a goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    data = utils.load_data()
    histories = {run: read_history(measuring.ROOT / "assets" / "runs" / f"{run}.jsonl") for run in RUNGS}

    sides = {run: lambda run=run: seconds_an_epoch(our_run, EXPERIMENTS[run], data, given.steps) for run in RUNGS}
    times = measuring.take_turns(sides, given.rounds)
    for goal in GOALS:
        reached = {run: epochs for run, history in histories.items() if (epochs := epochs_until(goal, history))}
        values = {
            f"ours: {run}, to {goal:g} % in {epochs} epochs": [epochs * seconds for seconds in times[run]]
            for run, epochs in reached.items()
        }
        measuring.record("time-to-accuracy", values, "s", data)


if __name__ == "__main__":
    main()
