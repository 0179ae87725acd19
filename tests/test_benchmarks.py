"""What the benchmarks compare computes the same, and what they record is what was measured."""

import json
import sys

import pytest
import torch
from torch import nn

import utils
from models import S9Net, StudentNet
from s9.augmented_batches import Batches, channel_statistics
from s9.data import Data, subset
from s9.recipes import STUDENT_RECIPE
from scripts.benchmarks import cost, feed, floor, measuring, plain, training_speed
from scripts.experiments import EXPERIMENTS, Experiment


@pytest.fixture
def few(random_data) -> Data:
    return subset(random_data, 40)


def test_the_plain_way_feeds_the_same_pixels(few):
    recipe = utils.Recipe(batch_size=40)
    mean, std = channel_statistics(few.train_images)
    (ours,) = Batches(few.train_images, few.train_labels, 40, mean, std)
    (theirs,) = plain.loader(few, recipe)  # in another order
    for label in (0, 1):
        a, b = (images[labels == label].flatten(1) for images, labels in (ours, theirs))
        torch.testing.assert_close(a.sort(0).values, b.sort(0).values)


@pytest.mark.parametrize("make", [feed.ours, feed.transforms_v2, feed.kornia_batches], ids=lambda make: make.__name__)
def test_all_ways_of_feeding_give_normalised_and_blanked_batches(few, make):
    ((images, labels),) = make(few)
    assert images.shape == (40, 3, 32, 32)
    assert sorted(labels.tolist()) == sorted(few.train_labels.tolist())
    assert images.mean().abs() < 0.05  # of noise
    blank = (images == 0).all(1).float().mean((1, 2))
    assert 0 < blank.min() <= blank.max() <= (8 / 32) ** 2 + 0.001


@pytest.mark.parametrize("build", [lambda: StudentNet(use_relu=True, dropout=0.0), S9Net], ids=["StudentNet", "S9Net"])
def test_the_plain_network_has_the_same_gradients_from_torchs_layers(build):
    torch.manual_seed(0)
    ours, images = build().double().train(), torch.randn(4, 3, 32, 32).double()
    theirs = plain.network(ours).train()
    kinds = {type(module) for module in theirs.modules()}
    assert not any(kind.__name__ == "Dropout" and kind is not nn.Dropout for kind in kinds)
    assert not any(issubclass(kind, nn.Conv2d) and kind is not nn.Conv2d for kind in kinds)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


def test_arithmetic_of_a_step_is_that_counted_by_hand(few, monkeypatch):
    def network():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(), nn.Linear(8192, 10)
        )  # fmt: skip

    monkeypatch.setattr(Experiment, "build", lambda self: network())
    experiment = EXPERIMENTS["student"].changed([("batch_size", 20)])
    work = floor.work_of_a_step(experiment, few)
    multiply_adds = 1024 * 8 * 27 + 1024 * 8 * 9 + 8192 * 10
    assert work.arithmetic == 3 * 2 * 20 * multiply_adds
    activations = 20 * 1024 * (3 + 2 * 8)  # each is at least written forward and read backward
    assert work.traffic > 2 * 2 * activations


def test_both_ways_of_training_end_with_the_same_weights(few):
    """In fp32, without dropout, and with all images in each batch, so that their order does not matter."""
    experiment = Experiment("StudentNet", {"use_relu": True, "dropout": 0.0, "num_classes": 2}, STUDENT_RECIPE)
    experiment = experiment.changed([("batch_size", 40), ("precision", "fp32")])
    (ours, _), (theirs, _) = (run(experiment, few, 2) for run in (training_speed.our_run, training_speed.plain_run))
    before = experiment.build().state_dict()
    for name, weights in ours.state_dict().items():
        if weights.is_floating_point():
            torch.testing.assert_close(weights, theirs.state_dict()[name], rtol=1e-3, atol=1e-4)
    moved = max((ours.state_dict()[name] - before[name]).abs().max() for name, _ in ours.named_parameters())
    assert moved > 1e-3


def test_records_hold_median_and_spread_and_replace_their_like(tmp_path, monkeypatch, few):
    monkeypatch.setattr(measuring, "RECORDS", tmp_path / "benchmarks.json")
    monkeypatch.setattr(sys, "argv", ["benchmarks/feed.py", "--rounds", "3"])
    measuring.record("feed", {"ours: b": [1.0]}, "s", None)
    values = measuring.take_turns({"ours": iter([9.0, 1.0, 4.0, 2.0]).__next__}, 3)
    measuring.record("feed", values, "s", few)
    measuring.record("feed", {"ours: b": [3.0]}, "s", None)
    rows = json.loads((tmp_path / "benchmarks.json").read_text())
    assert sorted((row["case"], row["value"], row["spread"], row["n"]) for row in rows) == [
        ("", 2, 3, 3),
        ("b", 3, 0, 1),
    ]
    assert {row["command"] for row in rows} == {"python -m scripts.benchmarks.feed --rounds 3"}
    assert few.copy in next(row["data"] for row in rows if row["n"] == 3)


def test_cost_is_measured_of_one_epoch_on_so_many_images(monkeypatch, digits):
    trained = []
    monkeypatch.setattr(utils, "load_data", lambda: digits)
    monkeypatch.setattr(
        utils, "train", lambda model, data, recipe, verbose: trained.append((model, data, recipe)) or [{"seconds": 1.0}]
    )
    assert cost.one(64, 16, 32)["seconds"] == 1.0
    assert cost.one(64, 16, 48)["megabytes"] >= 0
    for size, (model, data, recipe) in zip((32, 48), trained, strict=True):
        assert data.train_images.shape == (64, 3, size, size)
        assert (recipe.epochs, recipe.batch_size) == (1, 16)
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)
