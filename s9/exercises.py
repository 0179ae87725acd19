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
    if isinstance(block, nn.Module) or not callable(block):
        return "Not yet: give the class of your block, such as MyBlock, and no instance of it."
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    kits = {use_relu: ours(4, 6, 0.0, use_relu) for use_relu in (False, True)}
    try:
        theirs = block(4, 6, 0.0, False)
        weights = theirs.state_dict()
        with torch.no_grad():
            computed = theirs(x)
    except Exception as error:  # whatever goes wrong in the reader's own code
        return f"Not yet: your block does not run ({_in_a_line(error)})."
    if not isinstance(computed, torch.Tensor):
        return f"Not yet: forward returns {type(computed).__name__} instead of a map; is there a return at its end?"
    odd = sorted(weights.keys() ^ kits[True].state_dict().keys())
    if odd:
        return f"Not yet: change what forward computes, and leave the layers as they are (not so {', '.join(odd[:4])})."
    results = {}
    for use_relu, kit in kits.items():
        kit.load_state_dict(weights)
        with torch.no_grad():
            expected = kit(x)
        if computed.shape != expected.shape:
            return (
                f"Not yet: for a map of 6 channels forward gives {tuple(computed.shape)}, not {tuple(expected.shape)}."
            )
        results[use_relu] = torch.allclose(computed, expected, atol=1e-5)
    if results[True]:
        return "Well done: your block computes what the fixed one does."
    if results[False]:
        return "Not yet: your block still computes what the student's did; use the value that the ReLU returns."
    return "Not yet: its output matches neither the student's block nor the fixed one."


def check_planted(model: nn.Module, classes: int = 10) -> str:
    """Exercise 2: let the review look at a network with a hidden fault, which is an error or a warning to it."""
    if not isinstance(model, nn.Module):
        return "Not yet: give an instance of your network, such as MyNetwork()."
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 3, 32, 32, generator=generator), torch.arange(64) % classes
    found = [finding for finding in review(model, images, labels) if finding.severity in ("error", "warning")]
    if not found:
        return "Not yet: the review finds nothing. Hide a bug that changes what the network can compute."
    where = found[0].where or "the whole"
    if found[0].check == "does-not-run":
        return f"Not yet: your network does not run any more ({found[0].evidence}); a bug that is planted well lets it."
    return f"Found: {found[0].check} at {where}. {found[0].advice}"


def check_rung(history: list[dict], rung: str, runs: str | Path = ASSETS / "runs") -> str:
    """Exercise 3: compare a training with a rung of the ladder after as many epochs, on the same test images."""
    path = Path(runs) / f"{rung}.jsonl"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in Path(runs).glob("ladder-*.jsonl")))
        return f"Not comparable: {rung!r} is no recorded rung; there are {there}."
    try:
        epoch, accuracy = history[-1]["epoch"], history[-1]["test_accuracy"]
    except (TypeError, KeyError, IndexError):
        return "Not yet: give the history that train returns, with at least one finished epoch."
    recorded = read_history(path)
    if epoch > len(recorded):
        return f"Not comparable: {rung} was trained for {len(recorded)} epochs, and yours for {epoch}."
    ours, theirs = (_test_images(record) for record in (recorded[epoch - 1], history[-1]))
    if theirs not in (None, ours):
        return f"Not comparable: {rung} was tested on {ours:,} images of CIFAR-10, and yours on {theirs:,} others."
    bar = recorded[epoch - 1]["test_accuracy"]
    verdict = "Well done" if accuracy > bar else "Not yet"
    return f"{verdict}: {accuracy:.1f} % after {epoch} epochs, and {rung} had {bar:.1f} % by then."


def _test_images(record: dict) -> int | None:
    """How many images an epoch was tested on, or None where its record does not tell."""
    right = record.get("test_correct")
    return round(100 * right / record["test_accuracy"]) if right else None


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def check_picture(answer: dict[str, float], truth: str) -> str:
    """Exercise 4: compare what `classify` said of a picture with what it shows."""
    if not isinstance(answer, dict) or not answer:
        return "Not yet: give what classify returns, and what the picture shows."
    if truth not in answer:
        return f"Not yet: {truth!r} is none of the classes, which are {', '.join(answer)}."
    best = max(answer, key=answer.get)
    if best == truth:
        return f"Well done: it is correctly classified as {truth} ({100 * answer[best]:.0f} %)."
    return f"Not yet: the {truth} is classified as {best} ({100 * answer[best]:.0f} %); try another picture, or a crop."


def check_small(model: nn.Module) -> str:
    """Exercise 5: count parameters, and check what the assignment asks of the structure."""
    if not isinstance(model, nn.Module):
        return "Not yet: give an instance of your network, such as S9Net()."
    count = count_parameters(model)
    try:
        broken = [rule.rule for rule in check_brief(model, 100.0) if not rule.passed]
    except Exception as error:  # whatever goes wrong in the reader's own code
        return f"Not yet: your network does not run ({_in_a_line(error)})."
    if count >= SMALL:
        return f"Not yet: {count:,} parameters; {count - SMALL + 1:,} have to go."
    if broken:
        return f"Not yet: {count:,} parameters are few enough, but these requirements fail: {', '.join(broken)}."
    return f"Well done: {count:,} parameters, and all requirements are met. Now train it."
