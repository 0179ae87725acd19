"""What examines a network from outside, and leaves it as it was."""

import argparse
import contextlib
import copy
import importlib
import io
import math
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchsummary
from torch import nn

from checks import (
    ADVICE,
    CHECKS,
    SEVERITIES,
    Finding,
    RangeTest,
    Subject,
    affine_equivalent,
    check_data,
    check_registration,
    learning_rate_range,
)
from s9.brief import Brief, Rule, check_brief, html_table
from s9.randomness import kept_random_states
from tracing import ReceptiveField, receptive_field

__all__ = [
    "Brief", "Finding", "Findings", "RangeTest", "ReceptiveField", "Rule", "affine_equivalent", "check_brief",
    "layer_summary", "learning_rate_range", "receptive_field", "review", "review_history",
]  # fmt: skip


def layer_summary(model: nn.Module, input_size: tuple[int, int, int]) -> str:
    """torchsummary's table of the layers and its totals, for images of `input_size` (C, H, W).

    torchsummary itself runs the model in train mode, which moves BatchNorm's statistics and the random state; here a
    copy is run, and the random state put back.
    """
    text = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(text):
        torchsummary.summary(copy.deepcopy(model).cpu(), input_size, device="cpu")
    table, _, _ = text.getvalue().partition("Input size (MB)")  # what follows is a guess at memory
    return table.strip("\n")


class Findings(list):
    """Findings, the worst first; prints as a table, and shows as one in a notebook."""

    def __init__(self, findings: list[Finding] = ()):
        super().__init__(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        """One row for all findings of one check that say the same."""
        groups: dict[tuple, list[Finding]] = {}
        for finding in self:
            groups.setdefault((finding.severity, finding.check, finding.advice), []).append(finding)
        rows = []
        for (severity, check, advice), group in groups.items():
            places = ", ".join(finding.where for finding in group if finding.where) or "the whole"
            more = f" (and {len(group) - 1} more like it)" if len(group) > 1 else ""
            rows.append((severity, check, places, group[0].evidence + more, advice))
        return rows

    def __str__(self) -> str:
        if not self:
            return "No findings."
        lines = []
        for severity, check, places, evidence, advice in self._rows():
            lines += [f"{severity.upper()}  {check}  at {places}", f"    {evidence}", f"    {advice}"]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        titles = ("severity", "check", "where", "evidence", "advice")
        return html_table(titles, self._rows()) if self else "<p>No findings.</p>"


def review(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy,
    optimizer: torch.optim.Optimizer | None = None,
) -> Findings:
    """Examine an image classifier and its training set-up, and say with evidence what holds it back.

    Args:
        model: from `images` to logits (N, classes).
        images: float (N, C, H, W), as the network gets them; 32 to 256 of them, of all classes.
        labels: int64 (N,).
        loss_fn: from logits and labels to a number.
        optimizer: of the model's parameters; without it what concerns the optimiser is not checked.

    All work is done on copies, and the random states are put back: model, mode, gradients, buffers and optimiser are
    as they were.

    Raises:
        ValueError: `images` and `labels` do not fit each other.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1] or len(images) < 2:
        raise ValueError("review: give float images (N, C, H, W) and labels (N,), at least two of each.")
    with kept_random_states():
        subject = Subject(model, images, labels, loss_fn, optimizer)
        findings = [*check_data(subject), *check_registration(subject)]
        output = subject.outputs(training=False)
        if output.ndim != 2 or len(output) != len(images):
            evidence = f"{len(images)} images go in, and an output of shape {tuple(output.shape)} comes out."
            return Findings([*findings, Finding("batch-leak", "error", "", evidence, ADVICE["batch-leak"])])
        for check in CHECKS:
            findings += check(subject)
        return Findings(findings)


def review_history(history: list[dict]) -> Findings:
    """What a history, as utils.train returns it, says about the training; each finding is about the last epochs."""
    first, last = history[0], history[-1]
    train, test = last["train_accuracy"], last["test_accuracy"]
    numbers = f"Training accuracy ends at {train:.1f} %, test accuracy at {test:.1f} %."
    findings = []
    losses = [record["train_loss"] for record in history]
    if not math.isfinite(losses[-1]) or losses[-1] > 1.5 * min(losses) or losses[-1] > losses[0]:
        evidence = (
            f"The training loss was {first['train_loss']:.3g}, at best {min(losses):.3g}, and is {losses[-1]:.3g}."
        )
        findings.append(Finding("divergence", "error", "", evidence, "Lower the learning rate, or warm it up."))
    if train - test > 10:
        advice = "Augment the images, smooth the labels, or use weight decay."
        findings.append(Finding("overfitting", "warning", "", numbers, advice))
    if train < 70 and train < test + 5:
        advice = "The network cannot learn even its own lesson: look at its structure and at the learning rate first."
        findings.append(Finding("underfitting", "warning", "", numbers, advice))
    if test - train > 2:
        advice = "Lessen augmentation and dropout: training is harder than the test, in a short schedule too hard."
        findings.append(Finding("over-regularised", "warning", "", numbers, advice))
    half = history[len(history) // 2]
    if (
        len(history) >= 6
        and half["test_loss"] - min(record["test_loss"] for record in history) < 0.01 * half["test_loss"]
    ):
        evidence = (
            f"The test loss was {half['test_loss']:.4f} after epoch {half['epoch']} and is {last['test_loss']:.4f}."
        )
        advice = "More epochs of this will not help: change the learning rate, or the network."
        findings.append(Finding("plateau", "warning", "", evidence, advice))
    return Findings(findings)


def main(arguments: list[str] | None = None) -> int:
    """Review a network from the command line; 1 where there is an error."""
    parser = argparse.ArgumentParser(prog="python -m review", description="Review a network, on images of a data set.")
    parser.add_argument("network", metavar="MODULE:CALLABLE", help="what returns the network when it is called")
    parser.add_argument("--data", help="folder or tar archive of images, or digits (default: see utils.load_data)")
    parser.add_argument("--images", type=int, default=128, help="how many training images to use (default: 128)")
    given = parser.parse_args(arguments)
    from utils import Batches, channel_statistics, load_data, subset

    sys.path.insert(0, "")
    module, _, name = given.network.partition(":")
    try:
        model = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(f"{given.network} gives no network: {error}")
    data = subset(load_data(given.data), given.images)
    batches = Batches(data.train_images, data.train_labels, given.images, *channel_statistics(data.train_images))
    findings = review(model, *next(iter(batches)))
    print(f"{given.network} on {len(data.train_labels)} images of {data.name}:")
    print(findings)
    return int(any(finding.severity == "error" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
