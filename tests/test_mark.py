"""Marking a folder of submissions, whatever students hand in."""

import csv
import json

import pytest

from scripts import mark
from scripts.submissions import candidates, mark_one

NET = """
import torch
from torch import nn


class Block(nn.Sequential):
    def __init__(self, channels):
        depthwise = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=channels)
        super().__init__(depthwise, nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())


class Net(nn.Module):
    def __init__(self{more}):
        super().__init__(){first}
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), *[Block(8) for _ in range(11)])
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"""


def net(more="", first=""):
    return NET.format(more=more, first=first)


def notebook(*cells):
    made = [{"cell_type": "code", "source": cell, "outputs": [], "metadata": {}} for cell in cells]
    return json.dumps({"cells": made, "nbformat": 4, "nbformat_minor": 5, "metadata": {}})


@pytest.fixture
def folder(tmp_path):
    """Five students."""
    ann = tmp_path / "work" / "Ann"
    (ann / "src").mkdir(parents=True)
    (ann / "src" / "models.py").write_text(net())
    (ann / "S9.ipynb").write_text(notebook("from src.models import Net\nmodel = Net()", "while True: pass"))
    (tmp_path / "work" / "Bob.ipynb").write_text(notebook("!pip install x", net(), "raise SystemExit"))
    (tmp_path / "work" / "Cy.py").write_text("print('no network')\n")
    (tmp_path / "work" / "Di.py").write_text(net(", width"))
    (tmp_path / "work" / "Ed.py").write_text(net(first="\n        import os\n        os._exit(3)"))
    (tmp_path / "work" / ".ipynb_checkpoints").mkdir()
    return tmp_path / "work"


def test_the_network_is_found_among_its_parts(folder):
    assert [target.rpartition("/")[2] for target in candidates(folder / "Ann")] == ["models.py:Net", "models.py:Block"]
    row = mark_one(folder / "Ann")
    assert row["network"] == "src/models.py:Net"
    # 3 * 8 * 9 + 8 of the stem, eleven of 8 * 9 + 8, 8 * 8 + 8 and 16, 8 * 10 + 10 of the head
    assert row["parameters"] == 224 + 11 * (80 + 72 + 16) + 90
    assert all(rule["passed"] for rule in row["rules"])
    assert {rule["rule"]: rule["found"] for rule in row["rules"]}["receptive field, pixels"] == str(3 + 11 * 4)
    assert mark_one(folder / "Bob.ipynb")["rules"] == row["rules"]


def test_what_cannot_be_marked_is_a_sentence(folder):
    assert mark_one(folder / "Cy.py")["problem"] == "No class derived from nn.Module was found."
    assert "--args" in mark_one(folder / "Di.py")["problem"]
    assert mark_one(folder / "Di.py", "width=3")["network"] == "Di.py:Net"


def test_a_folder_makes_two_tables(folder, tmp_path, capsys):
    for name in ("Bob.ipynb", "Cy.py"):
        (folder / name).unlink()
    assert mark.main([str(folder), "--to", str(tmp_path / "marks"), "--args", "3", "--jobs", "2"]) == 0
    with (tmp_path / "marks.csv").open() as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["Ann", "Di.py", "Ed.py"]
    assert rows["Ann"]["parameters"] == rows["Di.py"]["parameters"] == str(224 + 11 * 168 + 90)
    assert rows["Ann"]["rules broken"] == rows["Ann"]["problem"] == ""
    assert "exit code 3" in rows["Ed.py"]["problem"]
    text = (tmp_path / "marks.html").read_text()
    assert "src/models.py:Net" in text
    assert "dilated convolutions" in text
    assert "2 of 3 marked" in capsys.readouterr().out


@pytest.mark.parametrize(("made", "sentence"), [(False, "is no folder"), (True, "holds no submission")])
def test_a_folder_without_submissions_is_refused(made, sentence, tmp_path, capsys):
    if made:
        (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit) as stopped:
        mark.main([str(tmp_path / "none")])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
