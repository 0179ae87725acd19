"""The brief that the course gave its students, checked on any network by what it computes, not by names of classes."""

import html
from typing import NamedTuple

import torch
from torch import nn

from netreview.fields import receptive_field
from netreview.traces import Operation, Trace, layer_name, trace

MOST_PARAMETERS = 200_000
LEAST_FIELD = 44  # pixels, to be seen more than
LEAST_ACCURACY = 85.0  # percent


def html_table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table for a notebook, of cells of plain text."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


class Rule(NamedTuple):
    """A row of the brief: what it asks, what was found, the bound and whether it is kept."""

    rule: str
    found: str
    bound: str
    passed: bool


class Brief(list):
    """The rules in their order; prints as a table, and shows as one in a notebook."""

    @property
    def passed(self) -> bool:
        """Whether all rules are kept."""
        return all(rule.passed for rule in self)

    def __str__(self) -> str:
        rows = [("rule", "found", "bound", ""), *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(("rule", "found", "bound", ""), self._rows())

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(rule.rule, rule.found, rule.bound, "pass" if rule.passed else "FAIL") for rule in self]


def check_brief(model: nn.Module, test_accuracy: float, input_size: tuple[int, int, int] = (3, 32, 32)) -> Brief:
    """Check a network against the brief: its size, its view, its parts and its accuracy.

    Args:
        model: from images (N, C, H, W) to logits (N, classes); it is left as it was.
        test_accuracy: percent of the test images right.
        input_size: of one image, (C, H, W).

    Raises:
        ValueError: the accuracy is not a percentage, or the receptive field cannot be followed through the network.
    """
    if not 0 <= test_accuracy <= 100:
        raise ValueError(f"check_brief: test_accuracy={test_accuracy!r} is not a percentage, from 0 to 100.")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    recorded = trace(model, torch.zeros(1, *input_size, device=device))
    averages = _last_averages(recorded)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    field = _field_of_maps(model, input_size, averages)
    maxima = [layer_name(model, operation) for operation in recorded.used if _takes_maximum(operation)]
    separable = [layer_name(model, operation) for operation in recorded.used if _is_separable(operation, recorded)]
    dilated = [layer_name(model, operation) for operation in recorded.used if _is_dilated(operation)]
    sizes = ["×".join(map(str, operation.images[0].tensor.shape[2:])) for operation in averages]
    return Brief(
        [
            Rule("parameters", f"{parameters:,}", f"< {MOST_PARAMETERS:,}", parameters < MOST_PARAMETERS),
            Rule("receptive field, pixels", str(field), f"> {LEAST_FIELD}", field > LEAST_FIELD),
            Rule("pooling that takes a maximum", _some(maxima), "none", not maxima),
            Rule("depthwise-separable convolutions", _some(separable), "at least one", bool(separable)),
            Rule("dilated convolutions", _some(dilated), "at least one", bool(dilated)),
            Rule(
                "global average pooling before the classifier", f"of maps of {', '.join(sizes)}" if sizes else "none",
                "yes", bool(averages),
            ),
            Rule(
                "test accuracy", f"{test_accuracy:.2f} %", f">= {LEAST_ACCURACY:g} %",
                test_accuracy >= LEAST_ACCURACY,
            ),
        ]
    )  # fmt: skip


def _some(names: list[str]) -> str:
    """How many there are, and the first."""
    return f"{len(names)}, such as {names[0]}" if len(names) > 1 else names[0] if names else "none"


def _takes_maximum(operation: Operation) -> bool:
    is_map = operation.images and operation.images[0].tensor.ndim == 4
    return bool(is_map) and ("max_pool" in operation.name or operation.name in ("amax", "max"))


def _kernel(operation: Operation) -> tuple[int, ...]:
    return tuple(operation.args[1].shape[2:])


def _is_dilated(operation: Operation) -> bool:
    if operation.name != "convolution":
        return False
    return any(size > 1 and dilation > 1 for size, dilation in zip(_kernel(operation), operation.args[5], strict=True))


def _is_separable(operation: Operation, recorded: Trace) -> bool:
    """Whether it is a depthwise convolution, and the next layer behind it mixes the channels at each pixel."""
    if operation.name != "convolution" or max(_kernel(operation)) == 1:
        return False
    channels, groups = operation.args[0].shape[1], operation.args[8]
    if groups != channels or channels == 1:
        return False
    consumers, waiting, seen = recorded.consumers, list(operation.outputs), set()
    while waiting:
        value = waiting.pop()
        for follower in consumers.get(value, []):
            if follower.is_layer and not follower.is_norm:
                if _mixes_channels(follower, channels):
                    return True
            elif follower not in seen:
                seen.add(follower)
                waiting += follower.outputs
    return False


def _mixes_channels(operation: Operation, channels: int) -> bool:
    if operation.name == "convolution":
        return max(_kernel(operation)) == 1 and operation.args[8] < channels
    return operation.images[0].tensor.shape[-1] == channels  # a linear layer on a channels-last map


def _last_averages(recorded: Trace) -> list[Operation]:
    """The averages of whole maps through which alone the output depends on the maps; none if it has another way."""
    producers = {value: operation for operation in recorded.operations for value in operation.outputs}
    averages, waiting, seen = [], list(recorded.outputs), set()
    while waiting:
        operation = producers.get(waiting.pop())
        if operation is None or operation in seen:
            continue
        seen.add(operation)
        if _averages_whole_map(operation):
            averages.append(operation)
        elif any(value.tensor.ndim == 4 and value.tensor.shape[2:].numel() > 1 for value in operation.images):
            return []
        else:
            waiting += operation.images
    return averages


def _averages_whole_map(operation: Operation) -> bool:
    if operation.name != "mean" and "avg_pool2d" not in operation.name:
        return False
    source, result = operation.images[0].tensor, operation.outputs[0].tensor
    return source.ndim == 4 and result.numel() == source.shape[:2].numel()


def _field_of_maps(model: nn.Module, input_size: tuple[int, int, int], averages: list[Operation]) -> int:
    """What one position of the last map sees: an average of all positions sees everything, and tells nothing."""
    last = {layer_name(model, operation) for operation in averages}
    rows = [row for row in receptive_field(model, input_size)[:-1] if row.layer not in last]
    fields = (row.receptive_field for row in rows)
    return max((min(field) if isinstance(field, tuple) else field for field in fields), default=1)
