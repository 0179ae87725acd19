"""review_history on histories of each kind, made up as they look, and on the kit's own."""

import json
import math
from pathlib import Path

import pytest

from netreview import review_history

RUNS = Path(__file__).parent.parent / "assets" / "runs"


def epochs(train, test, loss, test_loss=None, rates=None):
    columns = {"train_accuracy": train, "test_accuracy": test, "train_loss": loss, "test_loss": test_loss or loss}
    columns |= {"learning_rate": rates} if rates else {}
    return [
        {"epoch": i + 1} | {name: values[i] for name, values in columns.items() if values} for i in range(len(loss))
    ]


def checks(history, *severities):
    return {finding.check for finding in review_history(history) if finding.severity in severities}


LEARNT = [65, 75, 82, 86, 89, 91, 93, 94, 94.5, 95]
LOSS = [1.0, 0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.17, 0.16, 0.15]
WELL = [64, 74, 80, 84, 86, 87, 88, 89, 89.5, 90]
RISING = [2.5 + i / 2 for i in range(10)]
NAN = [1.5, 0.8] + 8 * [math.nan]

FAULTS = {
    "memorised": ("overfitting", epochs([50, 80, 99], [50, 70, 75], [1.5, 0.8, 0.1], [1.4, 0.9, 1.3])),
    "far apart": ("overfitting", epochs([50, 80, 99], [45, 55, 60], [1.5, 0.8, 0.1], [1.5, 1.4, 1.4])),
    "test accuracy falls": ("overfitting", epochs([50, 80, 99], [50, 75, 70], [1.5, 0.8, 0.1], [1.4, 0.9, 0.95])),
    "too small a network": ("underfitting", epochs([30, 38, 39], [31, 38, 40], [2.0, 1.8, 1.75])),
    "no test at all": ("underfitting", epochs([30, 38, 39], None, [2.0, 1.8, 1.75], None)),
    "nan": ("divergence", epochs(LEARNT, WELL, NAN)),
    "infinite": ("divergence", epochs([50, 60, 15], [50, 55, 11], [1.5, 0.8, math.inf])),
    "the loss rises": ("divergence", epochs([30, 20, 10], [30, 20, 10], [2.0, 2.4, 2.9])),
    "hits truncated": ("accuracy-not-counted", epochs([0] * 10, [0] * 10, LOSS)),
    "hits of the last batch": ("accuracy-not-counted", epochs([2.1] * 10, WELL, LOSS)),
    "test hits truncated": ("accuracy-not-counted", epochs(LEARNT, [0] * 10, LOSS)),
    "argmax of another axis": ("accuracy-not-counted", epochs([10, 11, 9, 10, 10, 9, 10, 11, 10, 10], WELL, LOSS)),
    "hits over batches": ("accuracy-not-counted", epochs([6400 / 100 * 64] * 10, WELL, LOSS)),
    "hits negative": ("accuracy-not-counted", epochs([-1] * 10, WELL, LOSS)),
    "accuracy is nan": ("accuracy-not-counted", epochs([math.nan] * 10, WELL, LOSS)),
    "classes in another order": (
        "test-set-differs", epochs(LEARNT, [12, 11, 10, 11, 10, 10, 11, 10, 10, 10], LOSS, RISING),
    ),
    "classes in another order, some alike": (
        "test-set-differs", epochs(LEARNT, [17, 19, 20, 20, 20, 19, 20, 20, 20, 20], LOSS, RISING),
    ),
    "one class at the test": ("eval-mode-broken", epochs(LEARNT, [12] + [10] * 9, LOSS, RISING)),
    "eval mode comes and goes": (
        "eval-mode-broken", epochs(LEARNT, [20, 60, 12, 70, 10, 55, 12, 72, 10, 60], LOSS, 5 * [8, 1]),
    ),
    "a scheduler for each batch": (
        "rate-gone-early", epochs([50, 52] + [52] * 8, [50] * 10, [1.5] + [1.45] * 9, None, [0.1, 1e-4] + [1e-9] * 8),
    ),
    "nothing more is learnt": ("plateau", epochs([80] * 8, [78] * 8, [1, 0.9, 0.8, 0.7, 0.65, 0.65, 0.65, 0.65])),
    "nothing more at this rate": (
        "plateau", epochs([80] * 8, [78] * 8, [1, 0.9, 0.8, 0.7, 0.65, 0.65, 0.65, 0.65], None, [0.1] * 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_told_from_all_others(name):
    check, history = FAULTS[name]
    assert checks(history, "error", "warning") == {check}


HEALTHY = {
    "usual": epochs(LEARNT, WELL, LOSS),
    "nothing": [],
    "one epoch": epochs([35], [45], [1.8], [1.5]),
    "first epochs, tested at their ends": epochs([35, 50, 58], [46, 56, 62], [1.8, 1.4, 1.2], [1.5, 1.2, 1.05]),
    "shares of one": epochs([a / 100 for a in LEARNT], [a / 100 for a in WELL], LOSS),
    "without a test": [{"train_loss": loss, "train_accuracy": a} for loss, a in zip(LOSS, LEARNT, strict=True)],
    "losses alone": [{"train_loss": loss} for loss in LOSS],
    "images mixed": epochs([20, 40, 50, 55], [30, 70, 85, 92], [2.2, 1.9, 1.7, 1.6], [2, 1, 0.6, 0.4]),
    "ImageNet": epochs([30, 50, 60, 66, 69, 70], [35, 52, 62, 67, 69.5, 70], [3.5, 2.3, 1.8, 1.5, 1.3, 1.25]),
    "CIFAR-100": epochs([20, 60, 99, 99.9], [22, 50, 77, 78], [3.5, 1.5, 0.05, 0.01], [3, 1.9, 0.95, 0.9]),
    "squared error": epochs(LEARNT, WELL, [0.09, 0.06, 0.04, 0.03, 0.028, 0.026, 0.025, 0.024, 0.023, 0.022]),
    "binary losses": epochs([20, 50, 60, 70], [22, 50, 58, 66], [0.32, 0.2, 0.15, 0.12]),
    "learnt by heart, and stays": epochs([99.9] * 10, [94] * 10, [0.01] * 10, [0.2] * 10),
    "a high rate, tests that jump": epochs(
        LEARNT, [40, 62, 50, 70, 55, 74, 61, 80, 88, 90], LOSS, [2, 1.2, 1.6, 1, 1.4, 0.9, 1.2, 0.7, 0.4, 0.35]
    ),
    "cosine": epochs(LEARNT, WELL, LOSS, None, [0.05 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]),
    "three drops": epochs(LEARNT, WELL, LOSS, None, [0.1] * 5 + [0.01] * 3 + [0.001] * 2),
    "a schedule's end": epochs(
        [80] * 8, [78] * 8, [1, 0.9, 0.8, 0.7, 0.65, 0.65, 0.65, 0.65], None, [0.1] * 5 + [0.01] * 3
    ),
    "two of three classes": epochs([60, 70, 75], [58, 69, 74], [0.9, 0.7, 0.6]),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_but_notes_of_healthy_histories(name):
    assert not checks(HEALTHY[name], "error", "warning")


WEAK = {"linear.jsonl", "ladder-1.jsonl", "student.jsonl", "student-augmented.jsonl"}  # networks that are too small


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_recorded_runs(path):
    history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert checks(history, "error", "warning") == ({"underfitting"} if path.name in WEAK else set())


def test_a_gap_and_a_hard_training_are_notes():
    assert checks(epochs([50, 80, 99], [50, 75, 85], [1.5, 0.8, 0.1], [1.4, 0.9, 0.6]), "note") == {"overfitting"}
    assert checks(epochs([50, 70, 80], [55, 77, 86], [1.5, 0.8, 0.6]), "note") == {"over-regularised"}


def test_the_rate_at_which_a_loss_rose_is_told():
    (finding,) = review_history(epochs([50, 60, 15], [50, 55, 11], [1.5, 0.8, 9.0], None, [0.01, 0.1, 0.8]))
    assert "in epoch 3, at a rate of 0.8" in finding.evidence


def test_a_history_without_losses_is_refused():
    with pytest.raises(ValueError, match="train_loss"):
        review_history([{"epoch": 1, "train_accuracy": 50}])
