"""The assignment's requirements, checked on any network by tracing it."""

import html
from typing import NamedTuple

from torch import nn

from netreview.fields import Followed, follow
from netreview.traces import Operation, Trace, Value, layer_name
from s9.pooling import averages_all, last_maps, takes_maximum

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
    """One requirement: what it asks, the value found, the limit, and whether it is met."""

    rule: str
    found: str
    bound: str
    passed: bool


class Brief(list):
    """The requirements in order; rendered as a table in print and in notebooks."""

    @property
    def passed(self) -> bool:
        """Whether all requirements are met."""
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


def check_brief(model: nn.Module, test_accuracy: float | None, input_size: tuple[int, int, int] = (3, 32, 32)) -> Brief:
    """Check a network against the requirements: parameters, receptive field, layer types and accuracy.

    Args:
        model: from images (N, C, H, W) to logits (N, classes); it is not modified.
        test_accuracy: in percent; None where it is not known, and not asked for.
        input_size: of one image, (C, H, W).

    The receptive field is that of a position of the last maps, before they are averaged: what normalises a whole map,
    or scales it by a gate, looks at everything and is not counted.

    Raises:
        ValueError: the accuracy is not a percentage, or the network takes values from places that it computes.
    """
    if test_accuracy is not None and not 0 <= test_accuracy <= 100:
        raise ValueError(f"check_brief: test_accuracy={test_accuracy!r} is not a percentage, from 0 to 100.")
    followed = follow(model, input_size)
    recorded = followed.recorded
    maps = last_maps(recorded)
    averaged = bool(maps) and all(averages_all(recorded, value) for value in maps)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    field, clipped = _field_of_maps(maps, followed)
    maxima = [layer_name(model, operation) for operation in recorded.used if takes_maximum(operation, followed)]
    separable = [layer_name(model, operation) for operation in recorded.used if _is_separable(operation, recorded)]
    dilated = [layer_name(model, operation) for operation in recorded.used if _is_dilated(operation)]
    sizes = ", ".join(sorted({"×".join(map(str, value.tensor.shape[2:])) for value in maps}))
    rules = [
        Rule(
            "parameters",
            _counted(model, recorded, parameters),
            f"< {MOST_PARAMETERS:,}",
            parameters < MOST_PARAMETERS,
        ),
        Rule(
            "receptive field, pixels",
            f"at least {field}, all of the image" if clipped else str(field),
            f"> {LEAST_FIELD}",
            field > LEAST_FIELD or clipped,
        ),
        Rule("max pooling", _some(maxima), "none", not maxima),
        Rule("depthwise-separable convolutions", _some(separable), "at least one", bool(separable)),
        Rule("dilated convolutions", _some(dilated), "at least one", bool(dilated)),
        Rule(
            "global average pooling before the classifier",
            f"of maps of {sizes}" if averaged else "none",
            "yes",
            averaged,
        ),
    ]
    if test_accuracy is not None:
        found, bound = f"{test_accuracy:.2f} %", f">= {LEAST_ACCURACY:g} %"
        rules.append(Rule("test accuracy", found, bound, test_accuracy >= LEAST_ACCURACY))
    return Brief(rules)


def _some(names: list[str]) -> str:
    """Count and first name."""
    return f"{len(names)}, such as {names[0]}" if len(names) > 1 else names[0] if names else "none"


def _counted(model: nn.Module, recorded: Trace, parameters: int) -> str:
    """How many parameters there are, and how many of them the logits depend on."""
    names = {value.name for operation in recorded.used for value in operation.inputs if value.name}
    used = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
    return f"{parameters:,}" if used == parameters else f"{parameters:,}, of which {used:,} are used"


def _kernel(operation: Operation) -> tuple[int, ...]:
    return tuple(operation.args[1].shape[2:])


def _is_dilated(operation: Operation) -> bool:
    if operation.name != "convolution":
        return False
    return any(size > 1 and dilation > 1 for size, dilation in zip(_kernel(operation), operation.args[5], strict=True))


def _is_separable(operation: Operation, recorded: Trace) -> bool:
    """Whether it is a depthwise convolution, followed by a pointwise layer."""
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
    """Whether it is a layer on each of several positions."""
    source = operation.images[0].tensor
    if operation.name == "convolution":
        return max(_kernel(operation)) == 1 and operation.args[8] < channels and source.shape[2:].numel() > 1
    # A product of matrices: on a channels-last map, or an einsum.
    return channels in source.shape[-2:] and source.numel() > 2 * channels  # of two images


def _field_of_maps(maps: list[Value], followed: Followed) -> tuple[int, bool]:
    """What one position of the last maps sees, and whether the image is too small to tell.

    An average of all positions sees everything, and tells nothing.
    """
    fields = [followed.fields[value] for value in maps if value in followed.fields]
    return max((min(field.extent) for field in fields), default=1), any(field.clipped for field in fields)
