"""What people do, area by area, ends well or in one sentence; `python -m scripts.tries` does more of it."""

import pytest

from scripts.tries import damages, exercises, networks, programs  # noqa: F401  (each registers its areas)
from scripts.tries.trying import AREAS, SENTENCE, WELL, Try, outcome, run

KILLED = ("kills", "damaged runs")  # which test_survival.py tries


@pytest.mark.parametrize("name", [name for name in AREAS if name not in KILLED])
def test_all_tries_end_well_or_in_one_sentence(name):
    (row,) = run([name], most=2)
    assert row["others"] == []
    assert row["tries"] == row[WELL] + row[SENTENCE] > 0


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("do", "says", "ends"),
    [
        (lambda: None, None, WELL),
        (lambda: None, "anything", "nothing was said"),
        (lambda: _raise(ValueError("epochs=0 does not work")), "epochs=0", SENTENCE),
        (lambda: _raise(ValueError("epochs=0 does not work")), "batch_size", "ValueError: epochs=0 does not work"),
        (lambda: _raise(KeyError("x")), None, "KeyError: 'x'"),
        (lambda: _raise(ValueError("a\nb")), "a", "more than a sentence: a\nb"),
    ],
)
def test_an_outcome_is_what_came(do, says, ends):
    assert outcome(Try("it", do, says)) == ends
