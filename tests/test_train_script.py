import json
import re
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from dask.distributed import LocalCluster

import models
import utils
from s9 import training
from scripts import train


@pytest.fixture
def assets(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "ASSETS", tmp_path / "assets")
    return tmp_path / "assets"


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


def test_a_rung_changes_what_it_says():
    rungs = [train.EXPERIMENTS[name] for name in [*train.LADDER, "ladder-5", "ladder-6", "s9net"]]
    changes = []
    for before, after in pairwise(rungs):
        recipes = asdict(before.recipe), asdict(after.recipe)
        changes.append(
            {field for field in recipes[0] if recipes[0][field] != recipes[1][field]}
            | {name for name in after.options if after.options[name] != before.options.get(name)}
            | ({"network"} if before.network != after.network else set())
        )
    assert changes == [
        {"apply_relu"},
        {"schedule", "learning_rate", "momentum", "nesterov"},
        {"norm_strided", "pad_strided"},
        {"dropout", "crop", "flip", "label_smoothing"},
        {"network"},
        {"batch_size", "learning_rate", "weight_decay"},
        {"optimizer"},
    ]


def test_a_run_is_recorded_and_can_be_built_again_from_the_record(tmp_path, assets, capsys):
    arguments = ["seednet", "--set", "epochs=1", "learning_rate=0.02", "--record", "--weights"]
    assert run(tmp_path, *arguments) == 0
    (row,) = json.loads((assets / "results.json").read_text())
    assert set(row) >= {
        "run", "network", "parameters", "epochs", "seed", "test_accuracy", "test_loss", "seconds", "device", "torch",
        "data", "command", "recipe",
    }  # fmt: skip
    assert row["command"].startswith("python train.py seednet --set epochs=1 learning_rate=0.02 --record")
    assert utils.Recipe(**row["recipe"]) == replace(utils.SEED_RECIPE, epochs=1, learning_rate=0.02)
    (record,) = utils.read_history(assets / "runs" / "seednet.jsonl")
    assert (row["test_accuracy"], row["test_loss"]) == (record["test_accuracy"], record["test_loss"])
    model = models.SeedNet(apply_relu=False)
    model.load_state_dict(torch.load(assets / "weights" / "seednet.pt", weights_only=True))
    digits = utils.load_data("digits")
    predicted, _ = utils.predict(model, digits, device="cpu")
    assert (predicted == digits.test_labels.numpy()).sum() == record["test_correct"]
    _, probabilities = utils.predict(model, digits, device="cpu", flip=True)
    right = (probabilities.argmax(1) == digits.test_labels.numpy()).mean()
    assert row["flip_averaged_accuracy"] == pytest.approx(100 * right, abs=0.005)

    assert run(tmp_path, "ladder-1", "--set", "epochs=1", "--record") == 0
    assert run(tmp_path, *arguments) == 0  # loaded, and recorded in the same place
    assert [row["run"] for row in json.loads((assets / "results.json").read_text())] == ["ladder-1", "seednet"]


def test_validation_tests_on_held_out_images(tmp_path, capsys):
    assert run(tmp_path, "seednet", "--run", "search", "--set", "epochs=1", "--validation", "37") == 0
    assert "/37 (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["seednet", "--set", "lr=1"], "no field 'lr'"),
        (["seednet", "--set", "epochs=many"], "epochs is of type int, not 'many'"),
        (["seednet", "--set", "flip=yes"], "flip is True or False"),
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
        (["seednet", "--set", "epochs=0"], "epochs=0"),
        (["seednet", "--validation", "99999"], "held out"),
    ],
)
def test_values_that_cannot_work_end_in_one_sentence(tmp_path, capsys, arguments, message):
    assert run(tmp_path, *arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_sweep_trains_every_experiment_with_every_seed(tmp_path, capsys):
    settings = ["--set", "epochs=1", "batch_size=256", "precision=fp32"]
    names = ["--sweep", "seednet", "ladder-1", "--seeds", "3", "4"]
    assert run(tmp_path, *names, *settings, "--jobs", "2") == 0
    said = capsys.readouterr().out.splitlines()
    accuracies = {}
    for name in ("seednet", "ladder-1"):
        for seed in (3, 4):
            home = tmp_path / "runs" / f"{name}-{seed}"
            assert json.loads((home / "recipe.json").read_text())["seed"] == seed
            accuracies.setdefault(name, []).append(utils.read_history(home / "history.jsonl")[0]["test_accuracy"])
    assert said == [
        f"{name}: {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} % (n = 2)" for name, values in accuracies.items()
    ]


def test_a_sweep_on_a_dask_cluster_gives_the_same(tmp_path, capsys):
    arguments = ["--sweep", "seednet", "--seeds", "0", "1", "--set", "epochs=1", "batch_size=256", "precision=fp32"]
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert run(tmp_path / "dask", *arguments, "--dask", cluster.scheduler_address) == 0
    on_dask = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"seednet: \d+\.\d\d ± \d+\.\d\d % \(n = 2\)", on_dask)
    assert run(tmp_path / "here", *arguments) == 0
    for seed in (0, 1):
        here, there = (
            utils.read_history(tmp_path / where / "runs" / f"seednet-{seed}" / "history.jsonl")[0]
            for where in ("here", "dask")
        )
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seednet", "ladder-1"], "give one NAME, or --sweep"),
        (["--sweep", "seednet", "--record"], "does not go with --run or --record"),
    ],
)
def test_several_runs_need_a_sweep(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert message in capsys.readouterr().err


def test_ctrl_c_ends_the_script_with_130_and_records_nothing(tmp_path, assets, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Training, "_descend", stop)
    assert run(tmp_path, "seednet", "--set", "epochs=1", "--record") == 130
    assert "Stopped after 0 whole epochs" in capsys.readouterr().out
    assert not assets.exists()
