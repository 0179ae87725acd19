"""What each layer of a network sees of the image."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import nn

from netreview.seen import Seen, refuse_computed_places, seen
from netreview.traces import LAYERS, Operation, Trace, Value, layer_name, trace


class ReceptiveField(NamedTuple):
    """One layer's row. Each number is that of both axes where they agree, else (vertical, horizontal)."""

    layer: str
    kernel: int
    stride: int
    dilation: int
    jump: float  # input pixels between two neighbouring positions of this layer's output
    receptive_field: int  # input pixels a side that one position of this layer's output depends on
    clipped: bool = False  # whether it may be more: the image is too small to tell

    def __str__(self) -> str:
        at_least = "at least " if self.clipped else ""
        return f"{self.layer}: {at_least}{self.receptive_field}"


class Field(NamedTuple):
    """What one position of a tensor depends on, along both axes."""

    extent: tuple[int, int] = (1, 1)
    jump: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    clipped: bool = False
    many: bool = True  # whether there are several positions
    reach: int = 1  # the most that one operation added: closer to the rim a position may lack a part

    def widened(self, kernel: tuple, stride: tuple, dilation: tuple) -> Field:
        # Araujo, Norris and Sim 2019, doi:10.23915/distill.00021, from the input towards the output
        extent = (e + (k - 1) * d * j for e, k, d, j in zip(self.extent, kernel, dilation, self.jump, strict=True))
        jump = tuple(j * s for j, s in zip(self.jump, stride, strict=True))
        reach = max(self.reach, *((k - 1) * d * j for k, d, j in zip(kernel, dilation, self.jump, strict=True)))
        return self._replace(extent=tuple(map(int, extent)), jump=jump, reach=math.ceil(reach))

    def measured(self, axes: tuple[Seen, Seen] | None) -> Field:
        """This, or what was measured where the two differ."""
        found = axes and [one.extent(self.reach) for one in axes]
        if not found or None in found:
            return self
        agree = [one.agrees(extent) for one, extent in zip(found, self.extent, strict=True)]
        extent = (e if right else one.most for e, one, right in zip(self.extent, found, agree, strict=True))
        wrong = any(one.clipped and not right for one, right in zip(found, agree, strict=True))
        clipped = wrong or (self.clipped and any(one.clipped for one in found))
        return self._replace(extent=tuple(extent), clipped=clipped)


def receptive_field(model: nn.Module, input_size: tuple[int, int, int]) -> list[ReceptiveField]:
    """How many input pixels each layer sees: a row for each convolution and pool, and a last one for the output.

    Follows the operations of one forward pass in eval mode, so that functional calls and residual branches count;
    where branches meet, the largest counts. Each number is compared with what a forward pass shows in which image i of
    a batch has NaN in its row i, and that counts where they differ: so the operations in between may be any. Where the
    image is too small to show it, the row is `clipped`. Normalisation and gates, which look at everything, do not
    count. `input_size` is (C, H, W).

    Raises:
        ValueError: a layer takes its values from computed places, or the output does not depend on the image.
    """
    followed = follow(model, input_size)
    outputs = followed.recorded.outputs
    if len(outputs) != 1 or not outputs[0].from_image:
        raise ValueError("receptive_field: the output is not one tensor that depends on the image.")
    return [*followed.rows, _row("output", (1, 1), (1, 1), (1, 1), followed.fields.get(outputs[0], Field()))]


class Followed(NamedTuple):
    """A forward pass, what a position of each of its values sees, and a row for each operation with a window."""

    recorded: Trace
    fields: dict[Value, Field]
    rows: list[ReceptiveField]


def follow(model: nn.Module, input_size: tuple[int, int, int]) -> Followed:
    """Record a pass of two images of noise in eval mode, and follow what its values see.

    Raises:
        ValueError: a layer takes its values from computed places.
    """
    like = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.zeros(()))
    noise = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    recorded = trace(model, noise.to(like.device, like.dtype))
    refuse_computed_places(recorded)
    fields, rows = {}, []
    for operation, axes in zip(recorded.operations, seen(model, input_size, recorded), strict=True):
        if operation.images:
            field, window = _through(operation, [fields.get(value, Field()) for value in operation.images])
            field = field.measured(axes)
            fields |= dict.fromkeys(operation.outputs, field)
            if window:
                rows.append(_row(layer_name(model, operation), *window, field))
    return Followed(recorded, fields, rows)


def _through(operation: Operation, fields: list[Field]) -> tuple[Field, tuple | None]:
    """The receptive field behind an operation, and its kernel, stride and dilation if it is one with a window."""
    name, args = operation.name, operation.args
    # Positions lie where those of the largest map lie: a gate of 1x1 does not move them.
    sizes = [value.tensor.shape[2:].numel() if value.tensor.ndim == 4 else 0 for value in operation.images]
    largest = sizes.index(max(sizes))
    counted = [field for field, size in zip(fields, sizes, strict=True) if size != 1 or max(sizes) == 1]
    field = Field(
        tuple(map(max, zip(*(f.extent for f in counted), strict=True))),
        fields[largest].jump,
        any(f.clipped for f in counted),
        any(f.many for f in counted),
        max(f.reach for f in counted),
    )
    source, result = operation.images[largest].tensor, operation.outputs[0].tensor if operation.outputs else None
    if source.ndim != 4 or result is None:
        mixed = name in LAYERS and field.many  # perhaps all positions, perhaps only the channels of each
        return field._replace(clipped=field.clipped or mixed), None
    field = field._replace(many=(result if result.ndim == 4 else source).shape[2:].numel() > 1)
    if name == "convolution" and not args[6]:
        window = args[1].shape[2:], args[3], args[5]
    elif name == "slice" and args[1] in (2, 3):
        step = args[4] if len(args) > 4 else 1
        return field.widened((1, 1), (step, 1) if args[1] == 2 else (1, step), (1, 1)), None
    elif "pool2d" in name and "adaptive" not in name and "unpool" not in name:
        stride = args[2] if len(args) > 2 and args[2] else args[1]
        window = args[1], stride, args[4] if "max" in name and len(args) > 4 else (1, 1)
    elif "adaptive" in name or name in ("mean", "sum", "amax"):
        before, after = source.shape[2:], result.shape[2:] if result.ndim == 4 else (1, 1)
        window = tuple(-(-b // a) for b, a in zip(before, after, strict=True)), (1, 1), (1, 1)
        field = field._replace(many=after != (1, 1))
        if window[0] == (1, 1):
            return field, None
    else:  # on single positions, as far as is known; the map may be larger or smaller
        if result.ndim == 4:
            scale = [Fraction(b, a) for b, a in zip(source.shape[2:], result.shape[2:], strict=True)]
            if all(1 in (s.numerator, s.denominator) for s in scale):
                field = field._replace(jump=tuple(j * s for j, s in zip(field.jump, scale, strict=True)))
        return field, None
    window = tuple(map(_pair, window))
    return field.widened(*window), window


def _pair(value) -> tuple[int, int]:
    value = tuple(value) if isinstance(value, list | tuple) else (value,)
    return value if len(value) == 2 else value * 2


def _row(layer: str, kernel: tuple, stride: tuple, dilation: tuple, field: Field) -> ReceptiveField:
    jump = tuple(int(j) if j.denominator == 1 else float(j) for j in field.jump)
    pairs = kernel, stride, dilation, jump, field.extent
    return ReceptiveField(layer, *(a if a == b else (a, b) for a, b in pairs), field.clipped)
