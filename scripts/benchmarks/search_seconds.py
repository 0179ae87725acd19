"""Seconds an epoch of each candidate of the search, measured in turns: `python -m scripts.benchmarks.search_seconds`.

Puts them into assets/search.csv, in place of the clock's of the training itself, which other work and another machine
may have slowed.
"""

import argparse
import statistics

import utils
from s9.results import ASSETS
from scripts import search
from scripts.benchmarks import measuring
from scripts.benchmarks.training_speed import our_run, seconds_an_epoch
from scripts.experiments import Experiment


class Tried(Experiment):
    """A candidate of the search, as what train.py trains."""

    def build(self):
        return search.CANDIDATES[self.network].build()


def main() -> None:
    """Measure the candidates that have a row, and rewrite their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rows, data = search.read_trials(ASSETS / "search.csv"), utils.load_data()
    share = 1 - search.HELD_OUT / len(data.train_labels)  # of the images that the search trains on
    tried = {row["candidate"]: Tried(row["candidate"], {}, search.CANDIDATES[row["candidate"]].recipe) for row in rows}
    sides = {
        name: lambda one=one: share * seconds_an_epoch(our_run, one, data, given.steps) for name, one in tried.items()
    }
    seconds = measuring.take_turns(sides, given.rounds)
    for row in rows:
        row["seconds_an_epoch"] = round(statistics.median(seconds[row["candidate"]]), 1)
        print(row["candidate"], row["seconds_an_epoch"], flush=True)
        search.keep(row)


if __name__ == "__main__":
    main()
