import json
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

import models
import train
import utils


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
    rungs = [train.EXPERIMENTS[name] for name in ("seednet", "ladder-1", "ladder-2", "ladder-3", "ladder-4")]
    changes = []
    for before, after in pairwise(rungs):
        recipes = asdict(before.recipe), asdict(after.recipe)
        changes.append(
            {field for field in recipes[0] if recipes[0][field] != recipes[1][field]}
            | {name for name in after.options if after.options[name] != before.options.get(name)}
        )
    assert changes == [
        {"apply_relu"},
        {"schedule", "learning_rate", "momentum", "nesterov"},
        {"mend_strides"},
        {"dropout", "crop", "flip", "label_smoothing"},
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
