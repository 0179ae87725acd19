"""Training: seconds per epoch of 50,000 images, a standard pipeline against the kit's, and the lower bound.

`python -m scripts.benchmarks.training_speed NAME [--steps N] [--rounds N]` for a NAME of train.py.
`--accuracy EPOCHS` trains both for that many epochs instead, and compares their accuracy.
"""

import argparse
from dataclasses import replace

import torch

import utils
from s9.data import Data, subset
from s9.optimizers import make_optimizer
from s9.schedules import make_scheduler
from scripts.benchmarks import measuring, plain
from scripts.benchmarks.floor import floor, work_of_a_step
from scripts.experiments import EXPERIMENTS

EPOCH = 50_000


def plain_run(experiment, data: Data, epochs: int) -> tuple[torch.nn.Module, float]:
    """Train the plain way; the network, and seconds of training, without the making of the data set."""
    model, recipe = plain.network(experiment.build()), replace(experiment.recipe, epochs=epochs)
    batches = plain.loader(data, recipe)
    optimizer = make_optimizer(model, recipe)
    scheduler = make_scheduler(optimizer, recipe, len(batches))

    def epochs_of_it() -> None:
        for _ in range(epochs):
            plain.train_epoch(model, batches, optimizer, scheduler, recipe.label_smoothing)

    return model, measuring.seconds(epochs_of_it)


def our_run(experiment, data: Data, epochs: int) -> tuple[torch.nn.Module, float]:
    """Train with the kit; the network, and the seconds of all epochs."""
    model = experiment.build()
    history = utils.train(model, data, replace(experiment.recipe, epochs=epochs), verbose=False)
    return model, sum(record["seconds"] for record in history)


def seconds_an_epoch(run, experiment, data: Data, steps: int) -> float:
    """How long `run` takes for `steps` steps, for all 50,000 images."""
    count = steps * experiment.recipe.batch_size
    part = subset(data, count)._replace(test_images=data.test_images[:2], test_labels=data.test_labels[:2])
    return run(experiment, part, 1)[1] * EPOCH / count


def main() -> None:
    """Measure both ways, and record them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--steps", type=int, default=12, help="steps of an epoch that are timed (default: 12)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accuracy", type=int, metavar="EPOCHS")
    given = parser.parse_args()
    experiment, data = EXPERIMENTS[given.name], utils.load_data()
    bench = f"train-{given.name}"
    runs = {"ours": our_run, "plain fp32 NCHW with DataLoader": plain_run}
    if given.accuracy:
        for side, run in runs.items():
            model, _ = run(experiment, data, given.accuracy)
            predicted, _ = utils.predict(model, data, precision="fp32")
            accuracy = 100 * (predicted == data.test_labels.numpy()).mean()
            case = f"{side}: test accuracy after {given.accuracy} epochs"
            measuring.record(bench, {case: [accuracy]}, "percent", data, digits=4)
        return
    sides = {side: lambda run=run: seconds_an_epoch(run, experiment, data, given.steps) for side, run in runs.items()}
    values = measuring.take_turns(sides, given.rounds)
    measuring.record(bench, values, "s/epoch", data)
    work = work_of_a_step(experiment, data)
    bounds = floor(work, EPOCH / experiment.recipe.batch_size)
    measuring.record(bench, {name: [value] for name, value in bounds.items()}, "s/epoch", None)
    units = {"arithmetic": (work.arithmetic / 1e9, "GFLOP"), "traffic": (work.traffic / 1e9, "GB")}
    for case, (value, unit) in (units | {"operations": (work.operations, "operations")}).items():
        measuring.record(bench, {f"a step: {case}": [value]}, unit, None)


if __name__ == "__main__":
    main()
