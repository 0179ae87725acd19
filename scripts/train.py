"""Trains the course's networks without a notebook: `python train.py NAME`.

A run lives in runs/NAME/. Stopped at any time, the same command goes on at the last whole epoch.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, fields
from pathlib import Path

import torch
from joblib import Parallel, delayed, parallel_config
from sklearn.metrics import accuracy_score

from s9.data import Data, DataError, hold_out
from s9.files import write_whole
from s9.loading import load_data
from s9.processes import joined
from s9.recipes import Recipe, default_device, resolve_precision
from s9.results import ASSETS
from s9.training import count_parameters, predict, train
from scripts.experiments import EXPERIMENTS, Experiment


def flip_averaged_accuracy(model: torch.nn.Module, data: Data) -> float:
    """Percent of the test images right by the mean logits of each and its mirror image."""
    predicted, _ = predict(model, data, flip=True)
    return 100 * accuracy_score(data.test_labels, predicted)


def record(
    name: str, experiment: Experiment, history: list[dict], flip_averaged: float, command: str, root: Path, assets: Path
) -> None:
    """Add a finished run to `assets`/results.json, with its history beside it as runs/`name`.jsonl."""
    results = assets / "results.json"
    rows = json.loads(results.read_text()) if results.exists() else []
    surroundings = json.loads((root / name / "environment.json").read_text())
    row = {
        "run": name,
        "network": str(experiment),
        "parameters": count_parameters(experiment.build()),
        "epochs": len(history),
        "seed": experiment.recipe.seed,
        "test_accuracy": history[-1]["test_accuracy"],
        "test_loss": history[-1]["test_loss"],
        "flip_averaged_accuracy": round(flip_averaged, 2),
        "seconds": round(sum(epoch["seconds"] for epoch in history), 1),
        **surroundings,
        "precision": str(resolve_precision(experiment.recipe.precision, default_device())).removeprefix("torch."),
        "command": command,
        "recipe": asdict(experiment.recipe),
    }
    rows = sorted([other for other in rows if other["run"] != name] + [row], key=lambda row: row["run"])
    (assets / "runs").mkdir(parents=True, exist_ok=True)
    history_text = (root / name / "history.jsonl").read_text()
    write_whole(assets / "runs" / f"{name}.jsonl", lambda path: path.write_text(history_text))
    write_whole(results, lambda path: path.write_text(json.dumps(rows, indent=2) + "\n"))


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write parameters and buffers, on the CPU, for torch.load(..., weights_only=True)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    write_whole(path, lambda temporary: torch.save(weights, temporary))


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


def chosen_data(given: argparse.Namespace) -> Data:
    """The data that the command line names."""
    data = load_data(given.data)
    return hold_out(data, given.validation) if given.validation else data


def run_experiment(
    experiment: Experiment, run: str, data: Data, given: argparse.Namespace
) -> tuple[list[dict], torch.nn.Module]:
    """Train `experiment` as the run `run`, as the command line says, and return its history and network."""
    model = experiment.build()
    history = train(
        model, data, experiment.recipe, run=run, root=given.root, verbose=not given.sweep, compile_mode=given.compile
    )  # fmt: skip
    return history, model


def sweep(experiments: dict[str, Experiment], given: argparse.Namespace) -> list[list[dict]]:
    """Train all `experiments`, from a run's name to what it trains, in `given.jobs` processes or on a Dask cluster."""
    tasks = [delayed(train_only)(experiment, run, given) for run, experiment in experiments.items()]
    if given.dask is None:
        return Parallel(n_jobs=given.jobs)(tasks)
    from dask.distributed import Client

    with Client(given.dask), parallel_config("dask"):
        return Parallel()(tasks)


def train_only(experiment: Experiment, run: str, given: argparse.Namespace) -> list[dict]:
    """What `run_experiment` returns without the network: all that a sweep sends back."""
    return run_experiment(experiment, run, chosen_data(given), given)[0]


def summary(results: dict[str, list[float]]) -> str:
    """A line an experiment: its name, and mean and spread of its test accuracies."""
    lines = []
    for name, accuracies in results.items():
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        lines.append(f"{name}: {statistics.mean(accuracies):.2f}{spread} % (n = {len(accuracies)})")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="+", choices=EXPERIMENTS, metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--run", help="name of the run, if it is not the experiment's")
    parser.add_argument(
        "--set", nargs="+", default=[], type=parse_setting, metavar="FIELD=VALUE", help="change the recipe"
    )
    parser.add_argument("--data", help="folder or tar archive of images, or digits (see load_data)")
    parser.add_argument("--validation", type=int, metavar="N", help="hold out N training images and test on those")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--record", action="store_true", help="add the finished run to assets/")
    parser.add_argument("--weights", action="store_true", help="with --record: its weights too")
    parser.add_argument("--compile", metavar="MODE", help='a mode of torch.compile, such as "reduce-overhead"')
    several = parser.add_argument_group("many runs at once")
    several.add_argument("--sweep", action="store_true", help="train every NAME with every one of --seeds")
    several.add_argument("--seeds", nargs="+", type=int, default=[0], help="the seeds of a sweep (default: 0)")
    several.add_argument("--jobs", type=int, default=1, help="trainings at a time on this machine (default: 1)")
    several.add_argument("--dask", metavar="ADDRESS", help="spread them over the Dask cluster there instead")
    given = parser.parse_args(arguments)
    if not given.sweep and len(given.names) > 1:
        parser.error("give one NAME, or --sweep")
    if given.sweep and (given.run or given.record):
        parser.error("--sweep names its runs NAME-SEED, and does not go with --run or --record")
    return given


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: 0 where all went well, 1 where it did not, 130 where it was stopped."""
    given = parse(arguments)
    try:
        if given.sweep:
            experiments = {
                (name, seed): EXPERIMENTS[name].changed(given.set, seed) for name in given.names for seed in given.seeds
            }
            runs = {f"{name}-{seed}": experiment for (name, seed), experiment in experiments.items()}
            results: dict[str, list[float]] = {}
            for (name, _), history in zip(experiments, sweep(runs, given), strict=True):
                results.setdefault(name, []).append(history[-1]["test_accuracy"])
            print(summary(results))
            return 0
        (name,) = given.names
        experiment, run = EXPERIMENTS[name].changed(given.set), given.run or name
        with joined() as world:
            data = chosen_data(given)
            history, model = run_experiment(experiment, run, data, given)
    except (DataError, ValueError, FloatingPointError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 1
    if len(history) < experiment.recipe.epochs:
        return 130  # as the shell has it for Ctrl-C
    if given.record and world.is_main:
        command = "python train.py " + " ".join(arguments if arguments is not None else sys.argv[1:])
        record(run, experiment, history, flip_averaged_accuracy(model, data), command, given.root, ASSETS)
        if given.weights:
            save_weights(model, ASSETS / "weights" / f"{run}.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
