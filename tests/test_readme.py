"""Every number in the README comes from a file in assets/, or from the code."""

import re

import pandas as pd
import pytest
import torch
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner
from PIL import Image

import utils
from s9.loading import CIFAR10_CLASSES
from s9.results import read_history
from scripts.readme import PAGES, RESULTS, ROOT, SEEDS, benchmarks, history, value_of, with_blocks

README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDENT_LOG = pd.read_csv(ROOT / "assets" / "student-log.csv")


@pytest.mark.parametrize("name", PAGES)
def test_blocks_are_up_to_date(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    assert with_blocks(page, PAGES[name]) == page, "python -m scripts.readme puts in what was recorded"


@pytest.mark.parametrize("row", RESULTS, ids=lambda row: row["run"])
def test_results_are_the_last_records_of_their_histories(row):
    records = history(row["run"])
    assert len(records) == row["epochs"] == row["recipe"]["epochs"]
    assert [record["epoch"] for record in records] == list(range(1, row["epochs"] + 1))
    assert (records[-1]["test_accuracy"], records[-1]["test_loss"]) == (row["test_accuracy"], row["test_loss"])
    assert records[-1]["test_correct"] == round(100 * row["test_accuracy"])
    utils.Recipe(**row["recipe"])


def test_every_percentage_in_the_readme_was_measured():
    measured = {100 * correct / 10_000 for correct in STUDENT_LOG["test_correct"]} | set(STUDENT_LOG["train_accuracy"])
    for path in (ROOT / "assets" / "runs").glob("*.jsonl"):
        for record in read_history(path):
            measured |= {record["test_accuracy"], record["train_accuracy"]}
    for key in ("test_accuracy", "flip_averaged_accuracy"):
        accuracies = pd.Series([row[key] for row in SEEDS])
        measured |= {*accuracies, accuracies.mean()}
    measured |= set(pd.read_json(ROOT / "assets" / "public.json").test_accuracy)
    measured |= {row["value"] for row in benchmarks("train-student", "train-s9net") if row["unit"] == "percent"}
    said = re.findall(r"(\d+\.\d+) ?%", README)
    assert said
    for number in said:
        digits = len(number.partition(".")[2])
        assert any(f"{value:.{digits}f}" == number for value in measured), f"{number} % is in no record"


def test_benchmarks_are_whole():
    """Each record says how it was made, and each bench has ours and what it is measured against."""
    keys = {"bench", "side", "case", "value", "unit", "n", "spread", "device", "torch", "data", "command"}
    names = [
        "feed",
        "train-student",
        "train-s9net",
        "time-to-accuracy",
        "cost-images",
        "cost-batch",
        "cost-size",
        "ddp",
    ]
    rows = benchmarks(*names)
    assert {row["bench"] for row in rows} == set(names)
    assert all(row.keys() == keys and row["n"] >= 1 and row["spread"] >= 0 for row in rows)
    assert len({(row["device"], row["torch"]) for row in rows}) == 1, "of one machine, to be compared"
    for row in rows:
        _, _, module, *_ = row["command"].split()
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for name in ("train-student", "train-s9net"):
        assert value_of(name, "ours", unit="s/epoch") < value_of(
            name, "plain fp32 NCHW with DataLoader", unit="s/epoch"
        )


def test_links_lead_somewhere():
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("scripts/*/*.md"),
    ]:
        for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)
    headings = {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in README.splitlines()}
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in headings, anchor


def test_python_blocks_of_the_readme_run(tmp_path, image_folders, monkeypatch, capsys):
    """All uses, with a small data set in place of the reader's."""
    from torch import nn

    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    data = utils.load_data(image_folders, tmp_path / "data")
    data = data._replace(train_images=data.train_images.repeat(13, 1, 1, 1), train_labels=data.train_labels.repeat(13))
    load_data = utils.load_data
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    image_folders.rename(tmp_path / "path" / "to" / "my-images")
    monkeypatch.setattr(utils, "load_data", lambda *args: load_data(*args) if args else data)
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    namespace = {
        "model": model,
        "images": images,
        "labels": labels,
        "MyNetwork": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)),
    }
    Image.new("RGB", (300, 200), "skyblue").save("my-picture.jpg")
    for block in blocks:
        exec(block, namespace)
    assert sorted(eval(capsys.readouterr().out.splitlines()[0])) == sorted(CIFAR10_CLASSES)
    assert len(namespace["data"].classes) == 2
    assert (tmp_path / "runs" / "mine" / "history.jsonl").exists()
    assert len(namespace["history"]) == 10
    assert [finding.check for finding in namespace["findings"]] == ["affine-network"]


def test_workflow_is_valid():
    arguments = ["--builtin-schema", "vendor.github-workflows", str(ROOT / ".github" / "workflows" / "ci.yml")]
    result = CliRunner().invoke(check_jsonschema, arguments)
    assert result.exit_code == 0, result.output
