import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from dask.distributed import LocalCluster

import models
import utils
from s9 import loading
from s9.data import Data
from s9.recipes import STUDENT_RECIPE
from s9.results import ROOT, read_history
from s9.weights import load_weights
from scripts import train


@pytest.fixture
def assets(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "ASSETS", tmp_path / "assets")
    return tmp_path / "assets"


@pytest.fixture
def as_cifar10(digits, monkeypatch) -> Data:
    """The digits under the name of CIFAR-10, which alone is recorded."""
    data = digits._replace(name="CIFAR-10")
    monkeypatch.setattr(train, "load_data", lambda source: data)
    return data


def run(tmp_path, *arguments) -> int:
    return train.main([*arguments, "--data", "digits", "--root", str(tmp_path / "runs")])


@pytest.mark.parametrize("name", train.EXPERIMENTS)
def test_experiments_build_and_their_initial_weights_follow_the_seed(name, state_of_numpy_and_torch):
    experiment = train.EXPERIMENTS[name]
    before = state_of_numpy_and_torch()
    first, second = experiment.build(), experiment.build()
    assert state_of_numpy_and_torch() == before
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert str(eval(str(experiment), vars(models).copy())) == str(first)  # the name in results.json builds it


def test_a_step_changes_one_thing():
    names = list(train.EXPERIMENTS)
    steps = ["student", *names[names.index("student-relu") :]]
    assert steps[-1] == "s9net"
    for name, following in pairwise(steps):
        before, after = train.EXPERIMENTS[name], train.EXPERIMENTS[following]
        recipes = asdict(before.recipe), asdict(after.recipe)
        changed = {field for field in recipes[0] if recipes[0][field] != recipes[1][field]}
        if before.network != after.network:
            changed |= {"network"}
        else:
            changed |= {key for key in after.options if after.options[key] != before.options.get(key)}
        whole = [{"momentum", "nesterov"}, {"flip", "crop"}]  # Nesterov's momentum; the usual augmentation
        assert len(changed) == 1 or changed in whole, (following, changed)


def test_a_run_is_recorded_and_can_be_built_again_from_the_record(tmp_path, assets, as_cifar10):
    arguments = ["student", "--set", "epochs=1", "learning_rate=0.02", "--record", "--weights"]
    assert run(tmp_path, *arguments) == 0
    (row,) = json.loads((assets / "results.json").read_text())
    assert set(row) >= {
        "run", "network", "parameters", "epochs", "seed", "test_accuracy", "test_loss", "seconds", "device", "torch",
        "data", "command", "recipe",
    }  # fmt: skip
    assert row["command"].startswith("python train.py student --set epochs=1 learning_rate=0.02 --record")
    assert utils.Recipe(**row["recipe"]) == replace(STUDENT_RECIPE, epochs=1, learning_rate=0.02)
    (record,) = read_history(assets / "runs" / "student.jsonl")
    assert (row["test_accuracy"], row["test_loss"]) == (record["test_accuracy"], record["test_loss"])
    model = models.StudentNet()
    load_weights(model, assets / "weights" / "student.pt")
    assert model.preprocessing.classes == as_cifar10.classes
    digits = as_cifar10
    predicted, _ = utils.predict(model, digits, device="cpu")
    assert (predicted == digits.test_labels.numpy()).sum() == record["test_correct"]
    _, probabilities = utils.predict(model, digits, device="cpu", flip=True)
    right = (probabilities.argmax(1) == digits.test_labels.numpy()).mean()
    assert row["flip_averaged_accuracy"] == pytest.approx(100 * right, abs=0.005)
    assert row["lossless_accuracy"] == pytest.approx(record["test_accuracy"], abs=0.005)  # none of them is a JPEG

    assert run(tmp_path, "student-relu", "--set", "epochs=1", "--record") == 0
    assert run(tmp_path, *arguments) == 0  # loaded, and recorded in the same place
    assert [row["run"] for row in json.loads((assets / "results.json").read_text())] == ["student", "student-relu"]


def test_validation_tests_on_held_out_images(tmp_path, capsys):
    assert run(tmp_path, "student", "--run", "search", "--set", "epochs=1", "--validation", "37") == 0
    assert "/37 (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["student", "--set", "lr=1"], "no field 'lr'"),
        (["student", "--set", "epochs=many"], "epochs is of type int, not 'many'"),
        (["student", "--set", "flip=yes"], "flip is True or False"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student", "--set", "epochs=0"], "epochs=0"),
        (["student", "--validation", "99999"], "held out"),
    ],
)
def test_values_that_cannot_work_end_in_one_sentence(tmp_path, capsys, arguments, message):
    assert run(tmp_path, *arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_sweep_trains_every_experiment_with_every_seed(tmp_path, capsys):
    settings = ["--set", "epochs=1", "batch_size=256", "precision=fp32"]
    names = ["--sweep", "student", "ladder-1", "--seeds", "3", "4"]
    assert run(tmp_path, *names, *settings, "--jobs", "2") == 0
    said = capsys.readouterr().out.splitlines()
    accuracies = {}
    for name in ("student", "ladder-1"):
        for seed in (3, 4):
            home = tmp_path / "runs" / f"{name}-{seed}"
            assert json.loads((home / "recipe.json").read_text())["seed"] == seed
            accuracies.setdefault(name, []).append(read_history(home / "history.jsonl")[0]["test_accuracy"])
    assert said == [
        f"{name}: {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} % (n = 2)" for name, values in accuracies.items()
    ]


def test_a_sweep_on_a_dask_cluster_gives_the_same(tmp_path, capsys):
    arguments = ["--sweep", "student", "--seeds", "0", "1", "--set", "epochs=1", "batch_size=256", "precision=fp32"]
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert run(tmp_path / "dask", *arguments, "--dask", cluster.scheduler_address) == 0
    on_dask = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"student: \d+\.\d\d ± \d+\.\d\d % \(n = 2\)", on_dask)
    assert run(tmp_path / "here", *arguments) == 0
    for seed in (0, 1):
        here, there = (
            read_history(tmp_path / where / "runs" / f"student-{seed}" / "history.jsonl")[0]
            for where in ("here", "dask")
        )
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student", "ladder-1"], "give one NAME, or --sweep"),
        (["--sweep", "student", "--record"], "does not go with --name, --record or --weights"),
    ],
)
def test_several_runs_need_a_sweep(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert message in capsys.readouterr().err


@pytest.fixture
def stopped(monkeypatch):
    """Somebody presses Ctrl-C in the second epoch of every training."""

    def stop(epoch: int, step: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    whole = utils.train
    monkeypatch.setattr(train, "train", lambda *args, **options: whole(*args, **options, on_step=stop))


@pytest.mark.parametrize(
    "arguments",
    [["student", "--record"], ["--sweep", "student", "ladder-1", "--seeds", "0", "1"]],
    ids=["one", "sweep"],
)
def test_ctrl_c_ends_the_script_with_130_and_records_nothing(tmp_path, assets, as_cifar10, stopped, capsys, arguments):
    assert run(tmp_path, *arguments, "--set", "epochs=3", "batch_size=256", "precision=fp32") == 130
    out, err = capsys.readouterr()
    assert err.strip().endswith("Stopped after 1 of 3 epochs; the same call resumes there.")
    assert "n = " not in out
    assert not assets.exists()
    assert len(list((tmp_path / "runs").iterdir())) == 1  # the others were not begun


def test_ctrl_c_in_a_sweep_of_two_processes(tmp_path):
    command = [sys.executable, "-m", "scripts.train", "--sweep", "student", "--seeds", "0", "1", "2", "--jobs", "2"]
    command += ["--data", "digits", "--root", tmp_path, "--set", "epochs=60", "batch_size=256", "precision=fp32"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not list(tmp_path.glob("*/history.jsonl")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "n = " not in out


def test_records_are_not_replaced_by_what_is_worth_less(tmp_path, assets, as_cifar10, monkeypatch, capsys):
    settings = ["--set", "epochs=2", "batch_size=256", "precision=fp32", "--record", "--weights"]
    assert run(tmp_path, "student", *settings) == 0
    before = {path: path.read_bytes() for path in assets.rglob("*.*")}
    capsys.readouterr()
    for name, other, epochs, said in (
        ("shorter", as_cifar10, 1, "is of 2 epochs, not 1"),
        (
            "another-copy",
            as_cifar10._replace(copy="another"),
            2,
            "digits, not CIFAR-10, another: give another --name",
        ),
        ("digits", as_cifar10._replace(name="digits"), 2, "for runs on CIFAR-10, and this is digits"),
    ):
        monkeypatch.setattr(train, "load_data", lambda source, other=other: other)
        assert run(tmp_path / name, "student", *settings[:1], f"epochs={epochs}", *settings[2:]) == 1
        error = capsys.readouterr().err.strip()
        assert said in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / name).exists()  # refused before it was trained
        assert {path: path.read_bytes() for path in assets.rglob("*.*")} == before
    monkeypatch.setattr(train, "load_data", lambda source: as_cifar10)
    for name, changes, said in (
        ("ladder-1", ["--run", "student"], "is of network StudentNet(), not StudentNet(use_relu=True)"),
        ("student", ["--set", "seed=5"], "is of seed 0, not 5"),
    ):
        assert run(tmp_path / name, name, *settings, *changes) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / name).exists()
        assert {path: path.read_bytes() for path in assets.rglob("*.*")} == before


def test_without_cifar10_nothing_is_trained_or_recorded(tmp_path, assets, monkeypatch, capsys):
    monkeypatch.delenv("S9_DATA_DIR", raising=False)
    monkeypatch.setattr(loading, "CIFAR10_MIRRORS", ())
    monkeypatch.chdir(tmp_path)
    assert train.main(["s9net", "--record", "--weights", "--root", str(tmp_path / "runs")]) == 1
    assert "CIFAR-10 is not here" in capsys.readouterr().err
    assert not assets.exists()
    assert not (tmp_path / "runs").exists()


def _add_rows(assets, root, first: int) -> None:
    experiment = train.EXPERIMENTS["student"].changed([("epochs", 1)])
    history = [{"test_accuracy": 10.0, "test_loss": 2.0, "seconds": 1.0}]
    for number in range(first, first + 5):
        train.record(f"run-{number}", experiment, history, {}, "", root, assets)


def test_recorders_at_the_same_time_lose_no_row(tmp_path):
    for number in range(20):
        home = tmp_path / "runs" / f"run-{number}"
        home.mkdir(parents=True)
        (home / "environment.json").write_text('{"data": "CIFAR-10, a copy"}')
        (home / "history.jsonl").write_text("")
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_add_rows, args=(tmp_path / "assets", tmp_path / "runs", first))
        for first in (0, 5, 10, 15)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = json.loads((tmp_path / "assets" / "results.json").read_text())
    assert sorted(row["run"] for row in rows) == sorted(f"run-{number}" for number in range(20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student", "--seeds", "7"], "--seeds is for a --sweep"),
        (["student", "--jobs", "2"], "--jobs is for a --sweep"),
        (["student", "--dask", "tcp://nowhere:1"], "--dask is for a --sweep"),
        (["student", "--weights"], "--weights goes with --record"),
        (["student", "--record", "--validation", "37"], "--record is of the test set"),
        (["--sweep", "student", "--run", ""], "does not go with --name"),
        (["--sweep", "student", "--weights"], "does not go with --name, --record or --weights"),
        (["--sweep", "student", "--set", "seed=9"], "given by --seeds"),
        (["--sweep", "student", "--jobs", "0"], "--jobs 0 does nothing"),
        (["student", "--compile", "nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_settings_given_twice_add_up(tmp_path):
    arguments = ["--set", "batch_size=500", "--set", "epochs=1", "precision=fp32"]
    assert run(tmp_path, "student", *arguments) == 0
    recipe = json.loads((tmp_path / "runs" / "student" / "recipe.json").read_text())
    assert (recipe["batch_size"], recipe["epochs"]) == (500, 1)


@pytest.mark.parametrize("name", ["..", "a/b", "/tmp/x", "x" * 300])
def test_a_run_stays_inside_its_root(tmp_path, capsys, name):
    assert run(tmp_path, "student", "--run", name, "--set", "epochs=1") == 1
    assert "is no name for a run" in capsys.readouterr().err


def test_a_root_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "runs").write_text("")
    assert run(tmp_path, "student", "--set", "epochs=1") == 1
    error = capsys.readouterr().err.strip()
    assert "runs" in error
    assert len(error.splitlines()) == 1
