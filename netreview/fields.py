"""What each layer of a network sees of the image."""

from typing import NamedTuple

import torch
from torch import nn

from netreview.traces import Operation, layer_name, trace

# Operations that make a map larger, or move it: the recurrence below does not hold for them.
UNSUPPORTED = ("upsample", "pixel_shuffle", "grid_sampler", "col2im", "max_unpool", "roll")


class ReceptiveField(NamedTuple):
    """One layer's row. Each number is that of both axes where they agree, else (vertical, horizontal)."""

    layer: str
    kernel: int
    stride: int
    dilation: int
    jump: int  # input pixels between two neighbouring positions of this layer's output
    receptive_field: int  # input pixels a side that one position of this layer's output depends on


class _Field(NamedTuple):
    """What one position of a tensor depends on, along both axes."""

    extent: tuple[int, int] = (1, 1)
    jump: tuple[int, int] = (1, 1)

    def widened(self, kernel: tuple, stride: tuple, dilation: tuple) -> "_Field":
        # Araujo, Norris and Sim 2019, doi:10.23915/distill.00021, from the input towards the output
        extent = (e + (k - 1) * d * j for e, k, d, j in zip(self.extent, kernel, dilation, self.jump, strict=True))
        return _Field(tuple(extent), tuple(j * s for j, s in zip(self.jump, stride, strict=True)))


def receptive_field(model: nn.Module, input_size: tuple[int, int, int]) -> list[ReceptiveField]:
    """How many input pixels each layer sees: a row for each convolution and pool, and a last one for the output.

    Follows the operations of one forward pass in eval mode, so that functional calls and residual branches count;
    where branches meet, the largest counts. `input_size` is (C, H, W).

    Raises:
        ValueError: an operation enlarges or moves the map, or the output does not depend on the image.
    """
    like = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.zeros(()))
    recorded = trace(model, torch.zeros(1, *input_size, device=like.device, dtype=like.dtype))
    fields, rows = {}, []
    for operation in recorded.operations:
        if operation.images:
            field, window = _through(operation, [fields.get(value, _Field()) for value in operation.images])
            fields |= dict.fromkeys(operation.outputs, field)
            if window:
                rows.append(_row(layer_name(model, operation), *window, field))
    if len(recorded.outputs) != 1 or not recorded.outputs[0].from_image:
        raise ValueError("receptive_field: the output is not one tensor that depends on the image.")
    return [*rows, _row("output", (1, 1), (1, 1), (1, 1), fields.get(recorded.outputs[0], _Field()))]


def _through(operation: Operation, fields: list[_Field]) -> tuple[_Field, tuple | None]:
    """The receptive field behind an operation, and its kernel, stride and dilation if it is one with a window."""
    name, args = operation.name, operation.args
    if any(word in name for word in UNSUPPORTED) or (name == "convolution" and args[6]):
        raise ValueError(f"receptive_field: {operation.where or 'the model'} enlarges or moves the map ({name}).")
    # Positions lie where those of the largest map lie: a gate of 1x1 does not move them.
    sizes = [value.tensor.shape[2:].numel() if value.tensor.ndim == 4 else 0 for value in operation.images]
    largest = sizes.index(max(sizes))
    field = _Field(tuple(map(max, zip(*(f.extent for f in fields), strict=True))), fields[largest].jump)
    source, result = operation.images[largest].tensor, operation.outputs[0].tensor if operation.outputs else None
    if source.ndim != 4 or result is None:
        return field, None
    if name == "convolution":
        window = args[1].shape[2:], args[3], args[5]
    elif name == "slice" and args[1] in (2, 3):
        step = args[4] if len(args) > 4 else 1
        return field.widened((1, 1), (step, 1) if args[1] == 2 else (1, step), (1, 1)), None
    elif "pool2d" in name and "adaptive" not in name:
        stride = args[2] if len(args) > 2 and args[2] else args[1]
        window = args[1], stride, args[4] if "max" in name and len(args) > 4 else (1, 1)
    elif result.ndim == 4 and "adaptive" not in name and name != "mean":
        return field, None
    else:  # an adaptive pool, a mean, or a map that becomes a list of features: each output may see all of it
        before, after = source.shape[2:], result.shape[2:] if result.ndim == 4 else (1, 1)
        window = tuple(-(-b // a) for b, a in zip(before, after, strict=True)), (1, 1), (1, 1)
        if window[0] == (1, 1):
            return field, None
    window = tuple(map(_pair, window))
    return field.widened(*window), window


def _pair(value) -> tuple[int, int]:
    value = tuple(value) if isinstance(value, list | tuple) else (value,)
    return value if len(value) == 2 else value * 2


def _row(layer: str, kernel: tuple, stride: tuple, dilation: tuple, field: _Field) -> ReceptiveField:
    pairs = kernel, stride, dilation, field.jump, field.extent
    return ReceptiveField(layer, *(a if a == b else (a, b) for a, b in pairs))
