"""README and docs: every number comes from a file in assets/ or from the code, and README is short and narrow."""

import re

import pandas as pd
import pytest
import torch
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner
from matplotlib.text import Text
from PIL import Image

import utils
from netreview.__main__ import main as netreview_main
from s9.loading import CIFAR10_CLASSES
from scripts.figures import FIGURES, SMALLEST, WIDTH
from scripts.readme import PAGES, filled
from scripts.tables import RESULTS, ROOT, benchmarks, history, value_of

README = (ROOT / "README.md").read_text(encoding="utf-8")
GENERATED = r"<!-- (?!end of )([^>]+?) -->.*?<!-- end of \1 -->|<!--=([^>]+?)-->.*?<!--=-->"
# Words of this project alone, for which the field has its own; and words that prose about people's code uses for them.
PRIVATE_WORDS = (
    "rung", "mend", "mended", "by heart", "percent right", "taken for", "goes on", "surest", "the brief",
    "by the clock", "an epoch's seconds", "so many pixels", "nothing lost", "images a second", "record an epoch",
)  # fmt: skip


def prose(page: str) -> str:
    """A page's text as it is read: without code blocks, comments, addresses of links, and tags."""
    for pattern in (r"```.*?```", r"<!--.*?-->", r"(?<=\])\([^)]*\)", r"<[^>]+>"):
        page = re.sub(pattern, "", page, flags=re.DOTALL)
    return page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_numbers_and_tables_are_up_to_date(path):
    page = path.read_text(encoding="utf-8")
    assert filled(page) == page, "python -m scripts.readme puts in what was recorded"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_percentage_is_typed_by_hand(path):
    """But for round ones, such as the assignment's 85 %."""
    typed = re.sub(GENERATED, "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.findall(r"\d+\.\d+ ?%", typed)


def test_title_rounds_the_students_own_result():
    log = pd.read_csv(ROOT / "assets" / "student-log.csv")
    assert README.startswith(f"# Stuck at {log.test_correct.iloc[-1] // 100} %")


def test_readme_is_short():
    assert len(prose(README).split()) <= 1300
    assert len(re.findall(r"!\[|<img", README)) <= 5


def test_tables_of_the_readme_fit_a_phone():
    """By the longest word of each column, at 8.6 pixels a letter, and 27 of padding and border a column."""
    tables = re.findall(r"(?:^\|.*\n)+", re.sub(r"\]\([^)]*\)", "]", README), re.MULTILINE)
    assert tables
    for table in tables:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        columns = zip(*(row for row in rows if set("".join(row)) != {"-"}), strict=True)
        widths = [
            max(len(re.sub(r"[*`\[\]]", "", word)) for cell in column for word in cell.split(" ")) for column in columns
        ]
        assert sum(8.6 * width + 27 for width in widths) <= 358, table


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_words_are_the_fields_own(path):
    text = prose(re.sub(GENERATED, "", path.read_text(encoding="utf-8"), flags=re.DOTALL)).lower()
    assert not [word for word in PRIVATE_WORDS if re.search(rf"\b{word}\b", text)]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_legible_on_a_phone(name):
    """Drawn from the records, at most 6.4 inches wide, without text under 12 points."""
    figure = FIGURES[name]()
    figure.canvas.draw()
    assert figure.get_figwidth() <= WIDTH == 6.4
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= SMALLEST == 12


def test_recorded_review_is_what_the_command_prints(capsys):
    netreview_main(["models:StudentNet"])
    printed, recorded = capsys.readouterr().out, (ROOT / "assets" / "student-review.txt").read_text(encoding="utf-8")
    assert re.sub(r"\de-\d+", "", printed) == re.sub(r"\de-\d+", "", recorded), "record it again, see docs/review.md"


@pytest.mark.parametrize("row", RESULTS, ids=lambda row: row["run"])
def test_results_are_the_last_records_of_their_histories(row):
    records = history(row["run"])
    assert len(records) == row["epochs"] == row["recipe"]["epochs"]
    assert [record["epoch"] for record in records] == list(range(1, row["epochs"] + 1))
    assert (records[-1]["test_accuracy"], records[-1]["test_loss"]) == (row["test_accuracy"], row["test_loss"])
    assert records[-1]["test_correct"] == round(100 * row["test_accuracy"])
    utils.Recipe(**row["recipe"])


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
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
            place, _, anchor = target.partition("#")
            target_page = page.parent / place if place else page
            assert target_page.exists(), (page.name, target)
            assert not anchor or anchor in anchors(target_page), (page.name, target)


def anchors(page) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    lines = prose(page.read_text(encoding="utf-8")).splitlines()
    return {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines if line[:1] == "#"}


def test_python_blocks_of_the_readme_run(tmp_path, image_folders, monkeypatch, capsys):
    """All uses, with a small data set in place of the reader's."""
    from torch import nn

    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    load_data = utils.load_data
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    image_folders.rename(tmp_path / "path" / "to" / "my-images")

    def repeated(place):  # as many images as a batch has
        data = load_data(place)
        times = -(-512 // len(data.train_labels))
        return data._replace(
            train_images=data.train_images.repeat(times, 1, 1, 1), train_labels=data.train_labels.repeat(times)
        )

    monkeypatch.setattr(utils, "load_data", repeated)
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    namespace = {
        "model": model,
        "images": images,
        "labels": labels,
    }
    Image.new("RGB", (300, 200), "skyblue").save("my-picture.png")
    for block in blocks:
        exec(block, namespace)
    assert sorted(eval(capsys.readouterr().out.splitlines()[-1])) == sorted(CIFAR10_CLASSES)
    assert len(namespace["data"].classes) == 2
    assert (tmp_path / "runs" / "mine" / "history.jsonl").exists()
    assert len(namespace["history"]) == 5
    assert [finding.check for finding in namespace["findings"]] == ["affine-network"]


def test_workflow_is_valid():
    arguments = ["--builtin-schema", "vendor.github-workflows", str(ROOT / ".github" / "workflows" / "ci.yml")]
    result = CliRunner().invoke(check_jsonschema, arguments)
    assert result.exit_code == 0, result.output
