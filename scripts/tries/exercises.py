"""The checks of the exercises, and what people hand them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from models import DWSeparableConv2d, S9Net, StudentNet
from s9 import exercises
from scripts.tries.networks import Giving, raising
from scripts.tries.trying import Try, area, in_folder, must


@area("exercises")
def checks_of_exercises(folder: Path) -> Iterator[Try]:
    """What is natural to hand in, and not what was meant: each check answers, and none fails."""
    yield from _blocks()
    yield from _faults()
    yield from _rungs(folder)
    yield from _pictures_and_sizes()


def _answers(said: str, start: str) -> None:
    must(said.startswith(start) and "\n" not in said)


def _blocks() -> Iterator[Try]:
    class Block(DWSeparableConv2d):
        def forward(self, x):
            self.norm(self.relu(self.pointwise(self.depthwise(x))))

    class Extra(DWSeparableConv2d):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.more = nn.Conv2d(6, 6, 1)

    class Wider(DWSeparableConv2d):
        def forward(self, x):
            return torch.cat([super().forward(x)] * 2, 1)

    class Failing(DWSeparableConv2d):
        def forward(self, x):
            return self.missing(x)

    class Listing(DWSeparableConv2d):
        def forward(self, x):
            return [super().forward(x)]

    class Inside(nn.Module):
        """The same block, its layers under other names."""

        def __init__(self, *arguments):
            super().__init__()
            self.inner = DWSeparableConv2d(*arguments)

        def forward(self, x):
            return self.inner(x)

    for what, block, start in (
        ("mend: nothing returned", Block, "Not yet: "),
        ("mend: an instance", DWSeparableConv2d(4, 6, 0.0, True), "Not yet: "),
        ("mend: None", None, "Not yet: "),
        ("mend: a layer more", Extra, "Not yet: "),
        ("mend: another shape", Wider, "Not yet: "),
        ("mend: an error inside", Failing, "Not yet: "),
        ("mend: a list", Listing, "Not yet: "),
        ("mend: layers under other names", Inside, "Not yet: "),
        ("mend: arguments of another kind", lambda: DWSeparableConv2d(4, 6), "Not yet: "),
        ("mend: the kit's own with its fault", lambda a, b, d, relu: DWSeparableConv2d(a, b, d, False), "Not yet: "),
        ("mend: mended", lambda a, b, d, relu: DWSeparableConv2d(a, b, d, True), "Well done: "),
    ):
        yield Try(what, lambda b=block, s=start: _answers(exercises.check_mended(b, DWSeparableConv2d), s))


def _faults() -> Iterator[Try]:
    dropped, unused, sound = _planted(relus=0), _planted(unused=True), _planted()
    for what, model, start in (
        ("plant: the class", type(sound), "Not yet: "),
        ("plant: None", None, "Not yet: "),
        ("plant: nothing", sound, "Not yet: "),
        ("plant: activation left out", dropped, "Found: "),
        ("plant: one of two activations left out", _planted(relus=1), "Found: "),
        ("plant: a layer that is never called", unused, "Found: "),
        ("plant: detach", Giving(lambda y, *_: y.detach()), "Found: "),
        ("plant: it does not run", Giving(raising), ""),
        ("plant: no return", Giving(lambda *_: None), ""),
    ):
        yield Try(what, lambda m=model, s=start: _answers(exercises.check_planted(m), s))


def _rungs(folder: Path) -> Iterator[Try]:
    record = {"epoch": 1, "test_accuracy": 99.0}
    for what, history, rung, start in (
        ("rung: an empty history", [], "ladder-2", "Not yet: "),
        ("rung: None", None, "ladder-2", "Not yet: "),
        ("rung: what train does not return", [1.0], "ladder-2", "Not yet: "),
        ("rung: one that there is not", [record], "ladder-99", "Not comparable: "),
        ("rung: more epochs than recorded", [record | {"epoch": 99}], "ladder-2", "Not comparable: "),
        ("rung: beaten", [record], "ladder-2", "Well done: "),
    ):
        yield Try(what, lambda h=history, r=rung, s=start: _answers(exercises.check_rung(h, r), s))
    digits = [record | {"test_correct": 346, "test_accuracy": 100 * 346 / 360}]
    yield Try(
        "rung: on another data set", lambda: _answers(exercises.check_rung(digits, "ladder-2"), "Not comparable: ")
    )
    with in_folder(folder):
        yield Try(
            "rung: from another folder", lambda: _answers(exercises.check_rung([record], "ladder-2"), "Well done: ")
        )


def _pictures_and_sizes() -> Iterator[Try]:
    for what, answer, truth, start in (
        ("picture: nothing", {}, "cat", "Not yet: "),
        ("picture: None", None, "cat", "Not yet: "),
        ("picture: a class that is none", {"cat": 1.0}, "tree", "Not yet: "),
        ("picture: a label's number", {"cat": 1.0}, 3, "Not yet: "),
        ("picture: right", {"cat": 1.0}, "cat", "Well done: "),
    ):
        yield Try(what, lambda a=answer, t=truth, s=start: _answers(exercises.check_picture(a, t), s))
    for what, model, start in (
        ("small: the class", S9Net, "Not yet: "),
        ("small: None", None, "Not yet: "),
        ("small: too large", StudentNet(use_relu=True), "Not yet: "),
        ("small: it does not run", Giving(raising), "Not yet: "),
        ("small: no return", Giving(lambda *_: None), "Not yet: "),
    ):
        yield Try(what, lambda m=model, s=start: _answers(exercises.check_small(m), s))


def _planted(relus: int = 2, unused: bool = False) -> nn.Module:
    class Planted(nn.Module):
        """The notebook's network for the exercise."""

        def __init__(self):
            super().__init__()
            self.look, self.again = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
            self.classifier = nn.Linear(32, 10)
            if unused:
                self.forgotten = nn.Conv2d(32, 32, 1)

        def forward(self, x):
            x = self.look(x)
            x = self.again(x.relu() if relus > 1 else x)
            return self.classifier((x.relu() if relus > 0 else x).mean((2, 3)))

    torch.manual_seed(0)
    return Planted()
