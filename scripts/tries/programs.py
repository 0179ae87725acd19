"""Command lines, environments, and disks, as people have them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

import utils
from s9.processes import joined
from s9.results import read_history
from s9.weights import load_weights, save_weights
from scripts import search, train
from scripts.tries.networks import QUICK, network, noise
from scripts.tries.trying import Try, area, as_nobody, full_disk, in_folder, must, program, surroundings


def image_folders(folder: Path, classes: int = 10, count: int = 4) -> Path:
    """train/<class>/ and test/<class>/ with `count` images of noise each."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(classes):
            home = folder / split / f"class {number}"
            home.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(home / f"{index}.png")
    return folder


@area("train.py's options and values")
def options(folder: Path) -> Iterator[Try]:
    """What people type behind `python train.py`."""
    pictures = image_folders(folder / "pictures")
    (folder / "file").write_text("")
    for arguments, says in (
        ([], "give a NAME"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["student", "ladder-1"], "give one NAME, or --sweep"),
        (["student", "--set", "--record"], "--set: expected at least one argument"),
        (["student", "--set", "lr=1"], "no field 'lr'"),
        (["student", "--set", "epochs"], "epochs is of type int, not ''"),
        (["student", "--set", "epochs=many"], "epochs is of type int, not 'many'"),
        (["student", "--set", "epochs=0"], "^Recipe: epochs=0"),
        (["student", "--set", "flip=yes"], "flip is True or False"),
        (["student", "--set", "precision=fp16"], "needs an NVIDIA GPU"),
        (["student", "--set", "seed=99999999999"], "whole number from 0 to 2147483647"),
        (["student", "--set", "learning_rate=nan"], "^Recipe: learning_rate=nan"),
        (["--set", "epochs=0", "student"], "^Recipe: epochs=0"),
        (["--sweep", "--seeds", "0", "1", "nonsense"], "a seed is a whole number from 0 up, not 'nonsense'"),
        (["--sweep", "--seeds", "-1", "student"], "expected at least one argument|from 0 up"),
        (["student", "--epochs", "3"], "unrecognized arguments: --epochs 3"),
        (["student", "--weights"], "--weights goes with --record"),
        (["student", "--seeds", "3"], "--seeds is for a --sweep"),
        (["student", "--jobs", "2"], "--jobs is for a --sweep"),
        (["student", "--dask", "tcp://x:1"], "--dask is for a --sweep"),
        (["--sweep", "student", "--jobs", "0"], "--jobs 0 does nothing"),
        (["--sweep", "student", "--set", "seed=9"], "given by --seeds"),
        (["--sweep", "student", "--record"], "does not go with"),
        (["student", "--compile", "nonsense"], "invalid choice: 'nonsense'"),
        (["student", "--validation", "many"], "invalid int value: 'many'"),
        (["student", "--validation", "99999"], "cannot be held out"),
        (["student", "--validation", "-1"], "cannot be held out"),
        (["student", "--record"], "--record is for runs on CIFAR-10"),
        (["student", "--record", "--validation", "5"], "--record is of the test set"),
        (["student", "--run", "../b"], "is no name for a run"),
        (["student", "--root", folder / "file"], "file"),
        (["student", "--root", "/proc/s9"], "/proc/s9"),
    ):
        line = [*arguments] if "--root" in arguments else [*arguments, "--root", folder / "runs"]
        what = " ".join(map(str, arguments)).replace(str(folder), "")[:70]
        line += ["--data", pictures] + ([] if "--sweep" in line or not line else ["--set", "batch_size=20"])
        yield Try(f"train.py {what}", program(train.main, *line), says)
    yield Try("search.py nonsense", program(search.main, "nonsense"), "nonsense")
    for variables, says in (
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, and RANK is not: start with torchrun, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x is set"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE= is set"),
        ({"S9_DATA_DIR": "/nonexistent"}, "/nonexistent"),
    ):
        what = " ".join(f"{name}={value}" for name, value in variables.items())

        def do(variables=variables) -> None:
            with surroundings(**variables):
                program(train.main, "student", "--root", folder / "runs")()

        yield Try(f"train.py with {what}", do, says)


@area("train.py, trainings", costly=True)
def trainings(folder: Path) -> Iterator[Try]:
    """Short trainings by the command line, one after the other."""
    pictures = image_folders(folder / "pictures")
    quick = ["--data", pictures, "--root", folder / "runs", "--set", "epochs=1", "batch_size=20", "precision=fp32"]
    yield Try("train.py student", program(train.main, "student", *quick))
    yield Try("train.py student, again", program(train.main, "student", *quick))
    yield Try("train.py ... --set precision=fp32 student", program(train.main, *quick, "student", "--name", "behind"))
    yield Try("and it was trained so", lambda: must((folder / "runs" / "behind" / "history.jsonl").exists()))
    yield Try("train.py --set, twice", program(train.main, "student", *quick, "--set", "epochs=2"))
    yield Try(
        "and it went on to the second epoch",
        lambda: must(len(read_history(folder / "runs" / "student" / "history.jsonl")) == 2),
    )
    yield Try(
        "train.py, fewer epochs than there are", program(train.main, "student", *quick), "epochs: 2 there, 1 asked"
    )

    def bare() -> None:
        with surroundings(HOME=None, TERM=None, LANG="C", COLUMNS="10"):
            program(train.main, "student", *quick, "--set", "epochs=2")()

    yield Try("train.py without HOME and TERM, in ten columns", bare)

    def on_other_data() -> None:
        with surroundings(S9_DATA_DIR=str(pictures)):
            program(search.main, "start")()

    yield Try("search.py on other data", on_other_data, "The search is on CIFAR-10, and this is pictures")


@area("disks and folders")
def disks(folder: Path) -> Iterator[Try]:
    """Full disks, folders that cannot be written or read, files where folders should be."""
    data, pictures = noise(), image_folders(folder / "pictures", 2)

    def trained(root: Path, model: nn.Module | None = None) -> list[dict]:
        return utils.train(model or network(), data, QUICK, run="run", root=root, device="cpu", verbose=False)

    def on_a_full_disk(do, size: int = 1000):
        def tried():
            with full_disk(size):
                return do()

        return tried

    def without_rights(do):
        def tried():
            with as_nobody():
                return do()

        return tried

    yield Try(
        "disk full at the recipe", on_a_full_disk(lambda: trained(folder / "a"), 100),
        "epoch 0 could not be saved.*free some space",
    )  # fmt: skip
    yield Try("and then not", lambda: trained(folder / "a"))
    yield Try(
        "disk full at the checkpoint", on_a_full_disk(lambda: trained(folder / "b"), 2000),
        "epoch 0 could not be saved.*free some space",
    )  # fmt: skip
    load = lambda root, source=pictures: utils.load_data(source, root=root)  # noqa: E731
    yield Try("disk full at the cache", on_a_full_disk(lambda: must(len(load(folder / "d").train_images) == 8)))
    yield Try(
        "and nothing is left of it", lambda: must(not [*(folder / "d").rglob("*.pt"), *(folder / "d").glob(".s9-un*")])
    )
    model = network()
    trained(folder / "e", model)
    weights = folder / "weights.pt"
    yield Try(
        "disk full at the weights", on_a_full_disk(lambda: save_weights(model, weights)), "File too large.*weights.pt"
    )
    yield Try("weights", lambda: load_weights(network(), save_weights(model, weights) or weights))
    locked = folder / "locked"
    locked.mkdir(mode=0o700)
    (locked / "pictures").symlink_to(pictures)
    yield Try("runs without permission", without_rights(lambda: trained(locked)), "locked.*Permission denied")
    yield Try(
        "data without permission", without_rights(lambda: load(folder / "nobodys", locked / "pictures")), "locked"
    )
    yield Try("a cache without permission", without_rights(lambda: must(len(load(locked).train_images) == 8)))
    yield Try("weights without permission", without_rights(lambda: load_weights(model, locked / "w.pt")), "w.pt")
    unreadable = image_folders(folder / "unreadable", 2)
    os.chmod(unreadable / "train" / "class 0", 0)
    yield Try("a class without permission", without_rights(lambda: load(folder / "f", unreadable)), "class 0")
    os.chmod(unreadable / "train" / "class 0", 0o755)
    os.chmod(unreadable / "train" / "class 0" / "0.png", 0)
    yield Try("a picture without permission", without_rights(lambda: load(folder / "f", unreadable)), "0.png")
    file = folder / "file"
    file.write_text("")
    yield Try("runs where a file is", lambda: trained(file), "file")
    (folder / "g").mkdir()
    (folder / "g" / "run").write_text("")
    yield Try("a run where a file is", lambda: trained(folder / "g"), "run")
    yield Try("data kept where a file is", lambda: load(file), "file")
    yield Try("runs in /proc", lambda: trained(Path("/proc/s9")), "/proc/s9")
    yield Try("data kept in /proc", lambda: must(len(load(Path("/proc/s9")).train_images) == 8))


@area("S9_DATA_DIR in odd places")
def places(folder: Path) -> Iterator[Try]:
    """Where a folder of images is said to be, and is not."""
    pictures = image_folders(folder / "my pictures", 2)
    (folder / "empty").mkdir()
    (folder / "text").write_text("no archive")
    (folder / "broken").symlink_to(folder / "nowhere")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "linked").symlink_to(pictures)
    os.mkfifo(folder / "pipe")
    inside = image_folders(folder / "with broken links", 2)
    (inside / "train" / "class 0" / "9.png").symlink_to(folder / "nowhere")
    (inside / "train" / "class 0" / "9.txt").symlink_to(folder / "nowhere")
    for place, says in (
        ("/nonexistent", "/nonexistent"), ("/dev/null", "/dev/null"), ("/dev/zero", "/dev/zero"),
        (folder / "pipe", "pipe"), ("/proc", "/proc"), ("/etc/hostname", "/etc/hostname"), ("/", "/"), ("/tmp", "/tmp"),
        (folder / "empty", "empty"), (folder / "text", "text"), (folder / "broken", "broken"),
        (folder / "circle", "circle"), (folder / "with broken links", "9.png"), ("x" * 5000, "x"),
        (f"{folder}/a\nb", "a"), (folder / "linked", None), (pictures, None), (f"{pictures}/", None),
    ):  # fmt: skip

        def do(place=place) -> None:
            with surroundings(S9_DATA_DIR=str(place)):
                must(len(utils.load_data(root=folder / "data").classes) == 2)

        yield Try(f"S9_DATA_DIR={str(place)[:40]!r}", do, says)

    def from_home() -> None:
        with surroundings(HOME=str(folder), S9_DATA_DIR="~/my pictures"):
            must(len(utils.load_data(root=folder / "data").classes) == 2)

    yield Try("S9_DATA_DIR='~/my pictures'", from_home)

    def from_elsewhere() -> None:
        with in_folder(folder), surroundings(S9_DATA_DIR="my pictures"):
            must(len(utils.load_data().classes) == 2)

    yield Try("from another folder", from_elsewhere)


@area("names of runs")
def names(folder: Path) -> Iterator[Try]:
    """What a run is called: one folder inside its root."""
    data = noise()
    for name, says in (
        ("", "is no name"), (".", "is no name"), ("..", "is no name"), ("a/b", "is no name"), ("../b", "is no name"),
        ("/tmp/b", "is no name"), ("a\\b", "is no name"), ("x" * 300, "is no name"), ("a\0b", "is no name"),
        (7, "is no name"), (Path("b"), "is no name"), ("two words", None), ("Ærø", None), ("$HOME", None),
        ("-dash", None), ("x" * 100, None),
    ):  # fmt: skip

        def do(name=name) -> None:
            utils.train(network(), data, QUICK, run=name, root=folder / "runs", device="cpu", verbose=False)
            must((folder / "runs" / name / "history.jsonl").exists())

        yield Try(f"run={str(name)[:20]!r}", do, says)


@area("Ctrl-C")
def interrupts(folder: Path) -> Iterator[Try]:
    """The stop button and Ctrl-C, in any step."""
    data, recipe = noise(), replace(QUICK, epochs=3)
    whole = utils.train(network(), data, recipe, device="cpu", verbose=False)
    for epoch, step in ((0, 0), (0, 1), (1, 0), (2, 1)):

        def stop(*place, at=(epoch, step)) -> None:
            if place == at:
                raise KeyboardInterrupt

        options = {"device": "cpu", "verbose": False, "root": folder / f"{epoch}-{step}"}
        model = network()
        yield Try(
            f"in step {step} of epoch {epoch}",
            lambda m=model, o=options, s=stop: utils.train(m, data, recipe, on_step=s, run="run", **o),
            f"Stopped after {epoch} of 3 epochs; the same call resumes there",
        )
        yield Try(
            "and then resumed",
            lambda o=options: must(_alike(utils.train(network(), data, recipe, run="run", **o), whole)),
        )


def _alike(history: list[dict], other: list[dict]) -> bool:
    """Whether two trainings came to the same, bit for bit, in whatever time."""
    return [record | {"seconds": 0} for record in history] == [record | {"seconds": 0} for record in other]


@area("torchrun")
def processes(folder: Path) -> Iterator[Try]:
    """Whether torchrun lets the options of train.py through, and what its absence looks like."""
    from torch.distributed.run import get_args_parser

    for option in ("--name", "--set", "--data", "--validation", "--root", "--record", "--weights", "--compile"):
        line = ["--nproc-per-node", "2", "train.py", "student", option, "x"]
        yield Try(
            f"torchrun train.py {option}",
            lambda line=line: must(get_args_parser().parse_args(line).training_script_args == line[3:]),
        )

    def join(variables: dict) -> None:
        with surroundings(**variables), joined():
            pass

    yield Try("WORLD_SIZE left over", lambda: join({"WORLD_SIZE": "4"}), "start with torchrun, or unset WORLD_SIZE")
    yield Try("WORLD_SIZE=1", lambda: join({"WORLD_SIZE": "1"}))
