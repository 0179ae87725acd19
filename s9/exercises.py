"""Checks for the exercises at the end of S9.ipynb: each says in a sentence whether it worked, and if not, why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from netreview import review
from s9.brief import check_brief
from s9.guards import count_parameters
from s9.results import ASSETS, read_history

SMALL = 100_000  # parameters that the last exercise stays under


def check_mended(block: Callable[..., nn.Module], ours: Callable[..., nn.Module]) -> str:
    """Exercise 1: compare a block with the kit's own, with and without the fault, by what it computes.

    `block(in_channels, out_channels, dropout, use_relu)` builds it, as `ours`, the kit's `DWSeparableConv2d`, does.
    """
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = block(4, 6, 0.0, False)
    results = {}
    for use_relu in (False, True):
        kits = ours(4, 6, 0.0, use_relu)
        kits.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            results[use_relu] = torch.allclose(theirs(x), kits(x), atol=1e-5)
    if results[True]:
        return "Well done: your block computes what the mended one does."
    if results[False]:
        return "Not yet: your block still computes what the student's did; what the ReLU returns has to go on."
    return "Not yet: your block computes something else than both the student's block and the mended one."


def check_planted(model: nn.Module, classes: int = 10) -> str:
    """Exercise 2: let the review look at a network with a planted fault."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 3, 32, 32, generator=generator), torch.arange(64) % classes
    errors = [finding for finding in review(model, images, labels) if finding.severity == "error"]
    if errors:
        return f"Found: {errors[0].check} at {errors[0].where or 'the whole'}. {errors[0].advice}"
    return "Not yet: the review finds no error. Plant one that changes what the network can compute."


def check_rung(history: list[dict], rung: str, runs: str | Path = ASSETS / "runs") -> str:
    """Exercise 3: compare a training with a rung of the ladder after as many epochs."""
    epoch, accuracy = history[-1]["epoch"], history[-1]["test_accuracy"]
    recorded = read_history(Path(runs) / f"{rung}.jsonl")
    if epoch > len(recorded):
        return f"Not comparable: {rung} was trained for {len(recorded)} epochs, and yours for {epoch}."
    bar = recorded[epoch - 1]["test_accuracy"]
    verdict = "Well done" if accuracy > bar else "Not yet"
    return f"{verdict}: {accuracy:.1f} % after {epoch} epochs, and {rung} had {bar:.1f} % by then."


def check_picture(answer: dict[str, float], truth: str) -> str:
    """Exercise 4: compare what `classify` said of a picture with what it shows."""
    if truth not in answer:
        return f"Not yet: {truth!r} is none of the classes, which are {', '.join(answer)}."
    best = max(answer, key=answer.get)
    if best == truth:
        return f"Well done: it is taken for the {truth} that it is, with {100 * answer[best]:.0f} %."
    return f"Not yet: the {truth} is taken for a {best} ({100 * answer[best]:.0f} %); try another picture, or a part."


def check_small(model: nn.Module) -> str:
    """Exercise 5: count parameters, and check what the brief asks of the structure."""
    count = count_parameters(model)
    broken = [rule.rule for rule in check_brief(model, 100.0) if not rule.passed]
    if count >= SMALL:
        return f"Not yet: {count:,} parameters; {count - SMALL + 1:,} have to go."
    if broken:
        return f"Not yet: {count:,} parameters are few enough, but the brief is broken: {', '.join(broken)}."
    return f"Well done: {count:,} parameters, and the brief is kept. Now train it."
