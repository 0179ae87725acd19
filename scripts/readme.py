"""Puts recorded numbers and tables into README.md and docs/: `python -m scripts.readme`, after anything was recorded.

A block stands between `<!-- NAME -->` and `<!-- end of NAME -->`, a value in a sentence between `<!--=NAME-->` and
`<!--=-->`. Each page may use each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from models import S9Net, StudentNet
from netreview.findings import CHECKS
from s9.architecture import layer_summary
from s9.results import LADDER, ROOT, compared, history_log, rounded
from scripts import tables
from scripts.search import multiply_adds
from scripts.tables import CONFUSION, LESSON, SEEDS, SHORTCUT, accuracies, history, value_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fenced(text: str) -> str:
    """A block of code in Markdown."""
    return f"```\n{text.strip()}\n```"


def gains() -> list[tuple[str, float]]:
    """What each recorded step adds to the test accuracy, in points, in order."""
    reached = [accuracies()[run] for run in LADDER]
    return [(step, b - a) for step, (a, b) in zip(list(LADDER.values())[1:], pairwise(reached), strict=True)]


def last_before_augmentation() -> str:
    """The recorded step before flip and crop."""
    return [run for run in LADDER if run in ("ladder-3", "student-padding")][-1]


def gains_in_words() -> str:
    """Which steps gain most, and which less than one seed can tell."""
    noise = 0.5  # points: three times the spread of one run of one seed, and of the difference of two
    by_size = sorted(gains(), key=lambda pair: -pair[1])
    largest = ", ".join(f"*{step}* ({signed(gain)})" for step, gain in by_size[:3])
    small = [f"*{step}* ({signed(gain)})" for step, gain in gains() if abs(gain) < noise]
    text = f"The three largest gains, in points: {largest}."
    if small:
        text += f" Less than {noise} points, which one seed cannot tell from noise: {', '.join(small)}."
    return text


def signed(value: float) -> str:
    """A gain in points with its sign."""
    return f"{'−' if value < 0 else '+'}{rounded(abs(value))}"


def review_output(findings: int | None = None) -> str:
    """What the review says of the student's network, as recorded; the first of its findings where a number is given."""
    lines = (ROOT / "assets" / "student-review.txt").read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if re.match("ERROR|WARNING|NOTE", line)]
    if findings is not None:
        lines = [*lines[: starts[findings]], "..."]
    return fenced("\n".join(["$ python -m netreview models:StudentNet", *lines]))


def jpegs(split: str, name: str | None = None) -> int:
    """How many images of a split were JPEGs, of one class or of all."""
    counts = LESSON["jpeg_images"][split]
    return counts[name] if name else sum(counts.values())


def trained_without_jpegs() -> str:
    """Whether the recorded S9Net saw the JPEGs."""
    if "left out" in SEEDS[0]["data"]:
        return f"S9Net is therefore trained without the {jpegs('train')} JPEGs of the training set."
    return "S9Net was trained with them, and has partly learnt this shortcut."


def search_notes() -> str:
    """What the search chose, and which of its rows differ from their base in more than one setting."""
    rows = compared(ROOT / "assets" / "search.csv").set_index("candidate")
    gains_found = rows.gain[rows.base != ""].sort_values(ascending=False)
    largest = ", ".join(f"`{name}` ({signed(gain)})" for name, gain in gains_found.items() if gain >= 0.5)
    text = f"More than noise, in points: {largest or 'none'}."
    if "longer-16" in rows.index:
        text += (
            " Three of these rows changed several things at once, so their gains have no single cause: `prototype` "
            "(2, 4 and 4 blocks of 32, 72 and 160 channels), `longer-16` (1, 12 and 2 blocks of 32, 96 and 128 "
            "channels, dilation, other downsampling) and `expand-2` (1, 8 and 1 blocks of 32, 64 and 96 channels, two "
            "pointwise convolutions per block, no ReLU after the addition). S9Net is `muon-lean`, the smallest of "
            "the three best, which are equal within noise."
        )
    return text


def share_of(true: str, called: str, network: str = "student") -> str:
    """How many percent of a class a network calls another, or itself."""
    row = CONFUSION[network][CONFUSION["classes"].index(true)]
    return rounded(100 * row[CONFUSION["classes"].index(called)] / sum(row), 0)


def shortcut_row(start: str) -> dict:
    """What S9Net makes of the lossless images of other classes, changed in the way that starts so."""
    return next(row for row in SHORTCUT["s9net"] if row["images"].startswith(start))


STUDENT_LOG = [line.split(",") for line in (ROOT / "assets" / "student-log.csv").read_text().split()]


def students(column: str) -> float:
    """A column of the last row of the student's own log."""
    return float(STUDENT_LOG[-1][STUDENT_LOG[0].index(column)])


VALUES: dict[str, Callable[[], object]] = {
    "checks": lambda: len(CHECKS),
    "faults": lambda: len(tables.asset("reviewers")["faults"]) - 1,  # besides the student's network
    "student parameters": lambda: f"{sum(p.numel() for p in StudentNet().parameters()):,}",
    "S9Net parameters": lambda: f"{sum(p.numel() for p in S9Net().parameters()):,}",
    "S9Net": lambda: rounded(sum(row["test_accuracy"] for row in SEEDS) / len(SEEDS)),
    "S9Net ± sd": tables.mean_and_sd,
    "S9Net flipped ± sd": lambda: tables.mean_and_sd("flip_averaged_accuracy"),
    "seeds": lambda: len(SEEDS),
    "student": lambda: f"{accuracies()['student']:.2f}",
    "student, training": lambda: f"{history('student')[-1]['train_accuracy']:.2f}",
    "augmented": lambda: f"{accuracies()['student-augmented']:.2f}",
    "augmented, training": lambda: f"{history('student-augmented')[-1]['train_accuracy']:.2f}",
    "student's own": lambda: f"{students('test_correct') / 100:.2f}",
    "student's own, training": lambda: f"{students('train_accuracy'):.2f}",
    "best fixed": lambda: rounded(max(value for run, value in accuracies().items() if not run.startswith("s9net"))),
    "linear": lambda: rounded(LESSON["linear_accuracy"]),
    "mean colour": lambda: rounded(LESSON["mean_colour_accuracy"]),
    "first loss": lambda: rounded(LESSON["first_loss"], 2),
    "chance loss": lambda: rounded(LESSON["chance_loss"], 2),
    "overfitted": lambda: LESSON["overfitted_images"],
    "affine error": lambda: f"{LESSON['affine_error']:.0e}",
    "more compute": lambda: rounded(multiply_adds(S9Net()) / multiply_adds(StudentNet())),
    "more time": lambda: rounded(
        value_of("train-s9net", "ours", unit="s/epoch") / value_of("train-student", "ours", unit="s/epoch")
    ),
    "fitted": lambda: rounded(history(last_before_augmentation())[-1]["train_accuracy"], 0),
    "JPEGs": lambda: jpegs("train") + jpegs("test"),
    "JPEG ships": lambda: jpegs("train", "ship") + jpegs("test", "ship"),
    "training JPEGs": lambda: jpegs("train"),
    "test JPEGs": lambda: jpegs("test"),
    "others": lambda: f"{shortcut_row('as')['count']:,}",
    "called ship": lambda: shortcut_row("as")["called_ship"],
    "called ship, JPEG": lambda: shortcut_row("JPEG")["called_ship"],
    "called ship, noise": lambda: shortcut_row("noise")["called_ship"],
    "trained without": trained_without_jpegs,
    "trucks called frogs": lambda: share_of("truck", "frog"),
    "airplanes called ships": lambda: share_of("airplane", "ship"),
}

BLOCKS: dict[str, Callable[[], str]] = {
    "review": lambda: review_output(2),
    "whole review": review_output,
    "gains": gains_in_words,
    "networks": tables.networks_table,
    "comparison": tables.comparison_table,
    "summary": lambda: fenced(layer_summary(StudentNet(), (3, 32, 32))),
    "receptive field": tables.fields_table,
    "log": lambda: fenced(history_log(history("student"), 10_000)),
    "ladder": tables.ladder_table,
    "brief": tables.brief_table,
    "search": tables.search_table,
    "search notes": search_notes,
    "S9Net's summary": lambda: fenced(layer_summary(S9Net(), (3, 32, 32))),
    "S9Net's log": lambda: fenced(history_log(history("s9net"), 10_000)),
    "seeds": tables.seeds_table,
    "classes": tables.classes_table,
    "public": tables.public_table,
    "reviewers": tables.reviewers_table,
    "results": tables.results_table,
    "survival": tables.survival_table,
    "tries": tables.tries_table,
    "speed": tables.speed_table,
    "same accuracy": tables.same_accuracy_table,
    "time to accuracy": tables.time_to_accuracy_table,
    "cost": tables.cost_table,
    "processes": tables.processes_table,
    "eight GPUs": tables.eight_gpus,
    "checks": tables.checks_table,
    "watch-checks": tables.watch_checks_table,
}


def filled(page: str) -> str:
    """The text of a page with each of its blocks and values as it should be.

    Raises:
        KeyError: a name is in neither BLOCKS nor VALUES.
        ValueError: a block does not end.
    """
    page = re.sub(r"<!--=([^>]+?)-->.*?<!--=-->", lambda match: f"<!--={match[1]}-->{VALUES[match[1]]()}<!--=-->", page)
    block = r"<!-- (?!end of )([^>]+?) -->\n\n.*?\n\n<!-- end of \1 -->"
    page, count = re.subn(
        block,
        lambda match: f"<!-- {match[1]} -->\n\n{BLOCKS[match[1]]()}\n\n<!-- end of {match[1]} -->",
        page,
        flags=re.DOTALL,
    )
    if count != page.count("<!-- end of "):
        raise ValueError(f"{page.count('<!-- end of ')} blocks end, and {count} are whole.")
    return page


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
