import multiprocessing
from dataclasses import asdict, replace

import pytest
import torch

import models
import utils
from s9.brief import check_brief
from s9.recipes import S9_RECIPE
from s9.results import read_history
from scripts import candidates, search


def test_the_search_begins_with_the_same_network_and_recipe_as_s9net():
    model, recipe = candidates.build(candidates.START, 3, S9_RECIPE.epochs)
    torch.manual_seed(3)
    expected = models.S9Net()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.eval()(images), expected.eval()(images))
    assert recipe == replace(S9_RECIPE, seed=3)


@pytest.mark.parametrize("name", candidates.CANDIDATES)
def test_a_candidate_differs_from_its_base_in_one_setting(name):
    candidate = candidates.CANDIDATES[name]
    (model, recipe), (base, before) = (candidates.build(each, 0, 12) for each in (name, candidate.base))
    of_recipe = {key for key, value in asdict(recipe).items() if value != asdict(before)[key]}
    of_network = {key for key, value in model.settings.items() if value != base.settings[key]}
    assert of_recipe | of_network == {candidate.setting}


@pytest.mark.parametrize("name", candidates.CANDIDATES)
def test_candidates_keep_the_brief(name):
    brief = check_brief(candidates.build(name, 0, 12)[0], 85.0)
    assert brief.passed, brief


def test_multiply_adds_are_those_counted_by_hand():
    block = torch.nn.Sequential(
        candidates.Block(8, 1, 2, 3, torch.nn.ReLU), torch.nn.Flatten(), torch.nn.Linear(8 * 32 * 32, 5)
    )
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), *block)
    pixels = 32 * 32
    by_hand = pixels * (3 * 8 * 9 + 8 * 9 + 8 * 16 + 16 * 8) + 8 * pixels * 5
    assert search.multiply_adds(model) == by_hand


def test_a_trial_is_a_row_and_replaces_its_earlier_one(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(search, "ASSETS", tmp_path)
    monkeypatch.setattr(search, "HELD_OUT", 37)
    monkeypatch.setattr(search, "load_data", lambda: digits._replace(name="CIFAR-10"))
    tiny = candidates.Candidate(candidates.START, "stages", ((1, 8, 0), (1, 8, 0)))
    monkeypatch.setitem(search.CANDIDATES, "tiny", tiny)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert search.main(["tiny", "--epochs", "2"]) == 0
    assert search.main(["tiny", "--epochs", "2", "--seed", "1"]) == 0
    rows = search.read_trials(tmp_path / "search.csv")
    assert [(row["candidate"], row["seed"]) for row in rows] == [("tiny", "0"), ("tiny", "1")]
    last = read_history(tmp_path / "runs" / "search-tiny-0-2" / "history.jsonl")[-1]
    assert float(rows[0]["held_out_accuracy"]) == pytest.approx(last["test_accuracy"], abs=0.005)
    assert "37 training images held out" in rows[0]["data"]


def test_a_refusal_is_one_sentence(monkeypatch, digits, capsys):
    monkeypatch.setattr(search, "load_data", lambda: digits._replace(name="CIFAR-10"))
    assert search.main(["start"]) == 1
    assert "5000 of 1437 training images cannot be held out" in capsys.readouterr().err


def test_other_data_are_refused_before_they_are_trained(tmp_path, monkeypatch, digits, capsys):
    monkeypatch.setattr(search, "ASSETS", tmp_path)
    monkeypatch.setattr(search, "load_data", lambda: digits)
    monkeypatch.chdir(tmp_path)
    assert search.main(["start"]) == 1
    assert "this is digits" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _keep_rows(assets, first: int) -> None:
    search.ASSETS = assets
    for number in range(first, first + 5):
        search.keep({"candidate": f"candidate-{number}", "seed": 0, "epochs": 5})


def test_trials_that_end_at_the_same_time_lose_no_row(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_keep_rows, args=(tmp_path, first)) for first in (0, 5, 10, 15)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    names = [row["candidate"] for row in search.read_trials(tmp_path / "search.csv")]
    assert sorted(names) == sorted(f"candidate-{number}" for number in range(20))


def test_a_stopped_trial_is_no_row(tmp_path, monkeypatch, digits, capsys):
    def stop(epoch: int, step: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(search, "ASSETS", tmp_path)
    monkeypatch.setattr(search, "HELD_OUT", 37)
    monkeypatch.setattr(search, "load_data", lambda: digits._replace(name="CIFAR-10"))
    monkeypatch.setattr(search, "train", lambda *args, **options: utils.train(*args, **options, on_step=stop))
    tiny = candidates.Candidate(candidates.START, "stages", ((1, 8, 0), (1, 8, 0)))
    monkeypatch.setitem(search.CANDIDATES, "tiny", tiny)
    monkeypatch.chdir(tmp_path)
    assert search.main(["tiny", "--epochs", "3"]) == 130
    assert "Stopped after 1 of 3 epochs" in capsys.readouterr().err
    assert not (tmp_path / "search.csv").exists()
