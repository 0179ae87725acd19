"""Trains the course's networks without a notebook: `python train.py NAME`.

A run lives in runs/NAME/. Stopped at any time, the same command resumes after the last complete epoch.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from dataclasses import asdict, fields
from pathlib import Path

import torch

from s9.data import Data, hold_out, without_jpeg
from s9.files import changing, write_whole
from s9.guards import count_parameters
from s9.loading import load_data
from s9.processes import joined
from s9.recipes import Recipe
from s9.results import ASSETS
from s9.weights import save_weights
from scripts.endings import exit_code
from scripts.experiments import EXPERIMENTS, Experiment
from utils import predict, train

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def other_accuracies(model: torch.nn.Module, data: Data) -> dict[str, float]:
    """Test accuracy in percent with flip averaging, and on the test images that are not JPEGs."""
    labels = data.test_labels.numpy()
    (plain, _), (averaged, _) = predict(model, data), predict(model, data, flip=True)
    lossless = slice(None) if data.test_jpeg is None else ~data.test_jpeg.numpy()
    return {
        "flip_averaged_accuracy": round(100 * (averaged == labels).mean(), 2),
        "lossless_accuracy": round(100 * (plain == labels)[lossless].mean(), 2),
    }


def read_rows(assets: Path) -> list[dict]:
    """The rows of results.json; none if it is not there yet."""
    results = assets / "results.json"
    return json.loads(results.read_text()) if results.exists() else []


def check_record(name: str, experiment: Experiment, data: str, assets: Path) -> None:
    """Refuse to replace a recorded run by another one, or by one that is worth less.

    Raises:
        ValueError: `data` is not CIFAR-10, or the record there is of another network, seed or copy, or of more epochs.
    """
    if not data.startswith("CIFAR-10, "):
        raise ValueError(f"--record is for runs on CIFAR-10, and this is {data.partition(', ')[0]}.")
    this = {"network": str(experiment), "seed": experiment.recipe.seed, "data": data}
    for row in [row for row in read_rows(assets) if row["run"] == name]:
        for field, value in this.items():
            if row[field] != value:
                raise ValueError(f"The record of {name} is of {field} {row[field]}, not {value}: give another --name.")
        if row["epochs"] > (epochs := experiment.recipe.epochs):
            raise ValueError(f"The record of {name} is of {row['epochs']} epochs, not {epochs}: give another --name.")


def record(
    name: str, experiment: Experiment, history: list[dict], others: dict, command: str, root: Path, assets: Path
) -> None:
    """Add a finished run to `assets`/results.json, with its history beside it as runs/`name`.jsonl.

    `others` are its `other_accuracies`.

    Raises:
        ValueError: the run is not finished, or `check_record` refuses it.
    """
    if len(history) != experiment.recipe.epochs:
        raise ValueError(f"{name} has {len(history)} of {experiment.recipe.epochs} epochs, and is not recorded.")
    surroundings = json.loads((root / name / "environment.json").read_text())
    row = {
        "run": name,
        "network": str(experiment),
        "parameters": count_parameters(experiment.build()),
        "epochs": len(history),
        "seed": experiment.recipe.seed,
        "test_accuracy": history[-1]["test_accuracy"],
        "test_loss": history[-1]["test_loss"],
        **others,
        "seconds": round(sum(epoch["seconds"] for epoch in history), 1),
        **surroundings,
        "command": command,
        "recipe": asdict(experiment.recipe),
    }
    history_text = (root / name / "history.jsonl").read_text()
    (assets / "runs").mkdir(parents=True, exist_ok=True)
    with changing(assets / "results.json"):  # others may record at the same time
        check_record(name, experiment, surroundings["data"], assets)
        rows = sorted(
            [other for other in read_rows(assets) if other["run"] != name] + [row], key=lambda row: row["run"]
        )
        write_whole(assets / "runs" / f"{name}.jsonl", lambda path: path.write_text(history_text))
        write_whole(assets / "results.json", lambda path: path.write_text(json.dumps(rows, indent=2) + "\n"))


def parse_setting(text: str) -> tuple[str, object]:
    """ "epochs=5" -> ("epochs", 5), in the type of the recipe's field."""
    name, _, value = text.partition("=")
    types = {field.name: type(field.default) for field in fields(Recipe)}
    if name not in types:
        raise argparse.ArgumentTypeError(f"a recipe has no field {name!r}; it has {', '.join(types)}")
    if types[name] is bool and value not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"{name} is True or False, not {value!r}")
    try:
        return name, value == "True" if types[name] is bool else types[name](value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name} is of type {types[name].__name__}, not {value!r}") from None


def setting_or_name(text: str) -> str | tuple[str, object]:
    """A setting, or the NAME that follows the last of them."""
    return text if text in EXPERIMENTS else parse_setting(text)


def seed_or_name(text: str) -> str | int:
    """A seed, or the NAME that follows the last of them."""
    if text not in EXPERIMENTS and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 up, not {text!r}")
    return text if text in EXPERIMENTS else int(text)


def chosen_data(given: argparse.Namespace) -> Data:
    """The data that the command line names."""
    data = load_data(given.data)
    data = without_jpeg(data) if given.without_jpeg else data
    return hold_out(data, given.validation) if given.validation is not None else data


def train_one(
    experiment: Experiment, run: str, data: Data, given: argparse.Namespace
) -> tuple[list[dict], torch.nn.Module]:
    """Train `experiment` as the run `run`, as the command line says, and return its history and network."""
    if len(data.classes) != 10:
        experiment = experiment._replace(options=experiment.options | {"num_classes": len(data.classes)})
    model = experiment.build()
    history = train(
        model, data, experiment.recipe, run=run, root=given.root, verbose=not given.sweep, compile_mode=given.compile
    )  # fmt: skip
    return history, model


def sweep(given: argparse.Namespace) -> None:
    """Train every NAME with every seed, in `--jobs` processes or on a Dask cluster, and print means and spreads."""
    from joblib import Parallel, delayed, parallel_config  # here, since all else starts sooner without

    experiments = {
        (name, seed): EXPERIMENTS[name].changed(given.set, seed) for name in given.names for seed in given.seeds
    }
    tasks = [
        delayed(train_only)(experiment, f"{name}-{seed}", given) for (name, seed), experiment in experiments.items()
    ]
    if given.dask is None:
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the processes that start here:
        try:  # Ctrl-C is for this one alone, which then ends them
            running = Parallel(n_jobs=given.jobs, return_as="generator")(tasks)
        finally:
            signal.signal(signal.SIGINT, interrupted)
        histories = list(running)
    else:
        from dask.distributed import Client

        with Client(given.dask, timeout=30), parallel_config("dask"):
            histories = Parallel()(tasks)
    results: dict[str, list[float]] = {}
    for (name, _), history in zip(experiments, histories, strict=True):
        results.setdefault(name, []).append(history[-1]["test_accuracy"])
    for name, accuracies in results.items():
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        print(f"{name}: {statistics.mean(accuracies):.2f}{spread} % (n = {len(accuracies)})")


def train_only(experiment: Experiment, run: str, given: argparse.Namespace) -> list[dict]:
    """What `train_one` returns without the network: all that a sweep sends back."""
    history, _ = train_one(experiment, run, chosen_data(given), given)
    print(f"{run}: {history[-1]['test_accuracy']:.2f} % after {len(history)} epochs", flush=True)
    return history


def single(given: argparse.Namespace, command: str) -> None:
    """Train one NAME, and record it if that is asked for."""
    (name,) = given.names
    experiment, run = EXPERIMENTS[name].changed(given.set), name if given.run is None else given.run
    with joined() as team:
        data = chosen_data(given)
        if given.record:
            check_record(run, experiment, f"{data.name}, {data.copy}", ASSETS)
        history, model = train_one(experiment, run, data, given)
        if given.record and team.is_main:
            record(run, experiment, history, other_accuracies(model, data), command, given.root, ASSETS)
            if given.weights:
                save_weights(model, ASSETS / "weights" / f"{run}.pt")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument(
        "--name", "--run", dest="run", help="name of the run, if it is not the experiment's (torchrun takes --run)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], type=setting_or_name, metavar="FIELD=VALUE",
        help=f"change the recipe: {', '.join(field.name for field in fields(Recipe))}",
    )  # fmt: skip
    parser.add_argument("--data", help="folder or tar archive of images, or digits (see load_data)")
    parser.add_argument("--without-jpeg", action="store_true", help="leave training images out whose files are JPEGs")
    parser.add_argument("--validation", type=int, metavar="N", help="hold out N training images and test on those")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--record", action="store_true", help="add the finished run to assets/")
    parser.add_argument("--weights", action="store_true", help="with --record: its weights too")
    parser.add_argument(
        "--compile", choices=COMPILE_MODES, metavar="MODE", help=f"torch.compile's mode: {', '.join(COMPILE_MODES)}"
    )
    several = parser.add_argument_group("many runs at once")
    several.add_argument("--sweep", action="store_true", help="train every NAME with every one of --seeds")
    several.add_argument(
        "--seeds", nargs="+", action="extend", type=seed_or_name, help="the seeds of a sweep (default: 0)"
    )
    several.add_argument("--jobs", type=int, help="trainings at a time on this machine (default: 1)")
    several.add_argument("--dask", metavar="ADDRESS", help="spread them over the Dask cluster there instead")
    given = parser.parse_intermixed_args(arguments)
    for option in ("set", "seeds"):  # a NAME behind one of these is not its value
        values = getattr(given, option) or []
        given.names += [value for value in values if isinstance(value, str)]
        setattr(given, option, [value for value in values if not isinstance(value, str)])
    for name in given.names:
        if name not in EXPERIMENTS:
            parser.error(f"argument NAME: invalid choice: {name!r} (choose from {', '.join(EXPERIMENTS)})")
    if not given.names:
        parser.error(f"give a NAME: {', '.join(EXPERIMENTS)}")
    if not given.sweep and len(given.names) > 1:
        parser.error("give one NAME, or --sweep")
    if given.sweep and (given.run is not None or given.record or given.weights):
        parser.error("--sweep names its runs NAME-SEED, and does not go with --name, --record or --weights")
    if given.sweep and "seed" in dict(given.set):
        parser.error("the seeds of a sweep are given by --seeds, not by --set")
    for option in ("seeds", "jobs", "dask"):
        if getattr(given, option) not in (None, []) and not given.sweep:
            parser.error(f"--{option} is for a --sweep")
    if given.weights and not given.record:
        parser.error("--weights goes with --record")
    if given.record and given.validation is not None:
        parser.error("--record is of the test set, not of --validation")
    if given.dask and given.jobs:
        parser.error("give --jobs or --dask, not both")
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"--jobs {given.jobs} does nothing: give 1 or more")
    given.seeds, given.jobs = given.seeds or [0], given.jobs or 1
    return given


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    given = parse(arguments)
    if given.sweep:
        return exit_code(sweep, given)
    return exit_code(single, given, "python train.py " + " ".join(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
