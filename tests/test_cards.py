"""From pictures to use: train on folders, load the run, classify files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import S9Net, StudentNet, load_model
from s9.cards import read_card
from scripts import classify as program
from utils import Recipe, classify, load_data, train

CLASSES = ("blau", "grün", "rot $1")
COLOURS = ((40, 60, 200), (60, 200, 60), (200, 40, 50))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve training and four test images of each of three colours."""
    root, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, colour in zip(CLASSES, COLOURS, strict=True):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(colour, 20, (32, 32, 3)).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    data = load_data(folder, root=tmp_path_factory.mktemp("data"))
    recipe = Recipe(epochs=3, batch_size=12, learning_rate=0.05, momentum=0.9, precision="fp32")
    torch.manual_seed(0)
    model = S9Net(width=8, num_classes=3)
    history = train(model, data, recipe, run="mine", root=root, device="cpu", verbose=False)
    return model, data, history, root / "mine"


def test_a_finished_run_has_a_card(trained):
    model, data, history, run = trained
    card = read_card(run)
    assert card["classes"] == list(CLASSES)
    assert card["options"] == {"width": 8, "num_classes": 3}
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert card["test_accuracy"] == history[-1]["test_accuracy"]
    assert card["recipe"]["epochs"] == 3
    images = data.train_images.double() / 255
    np.testing.assert_allclose(card["mean"], images.mean((0, 2, 3)), atol=1e-4)  # they are rounded


def test_a_run_is_loaded_as_it_was_trained(trained):
    model, _, _, run = trained
    loaded = load_model(run)
    assert not loaded.training
    assert loaded.preprocessing.classes == CLASSES
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert type(load_model(run, S9Net(width=8, num_classes=3))) is S9Net


def test_classify_says_of_the_test_files_what_training_did(trained, folder):
    _, _, history, run = trained
    model = load_model(run)
    files = sorted((folder / "test").glob("*/*.png"))
    hits = [max(said := classify(model, file), key=said.get) == file.parent.name for file in files]
    assert 100 * sum(hits) / len(hits) == pytest.approx(history[-1]["test_accuracy"])


def test_the_program_classifies_all_that_are_pictures(trained, folder, tmp_path, capsys):
    *_, run = trained
    picture, broken = folder / "test" / CLASSES[0] / "0.png", tmp_path / "broken.png"
    broken.write_text("no picture")
    assert program.main([str(run), str(picture), "--top", "1"]) == 0
    line = capsys.readouterr().out
    assert str(picture) in line
    assert line.count("%") == 1
    assert program.main([str(run), str(broken), str(picture)]) == 1
    said = capsys.readouterr()
    assert "broken.png cannot be read" in said.err
    assert str(picture) in said.out


def test_what_is_no_finished_run_is_told(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="name a run's folder"):
        load_model(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="not finished"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_model(tmp_path)
    *_, run = trained
    card = json.loads((run / "model.json").read_text()) | {"network": "Net"}
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "model.pt").write_bytes((run / "model.pt").read_bytes())
    with pytest.raises(ValueError, match="is no network of models"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="another network"):
        load_model(tmp_path, nn.Linear(3, 2))


@pytest.mark.parametrize("make", [lambda: S9Net(10, 7), lambda: StudentNet(True, pad_strided=True, num_classes=4)])
def test_options_make_the_same_network(make):
    model = make()
    again = type(model)(**model.options)
    assert [(name, p.shape) for name, p in again.named_parameters()] == [
        (name, p.shape) for name, p in model.named_parameters()
    ]
