"""What each map of a forward pass depends on, found without formulas: by images whose rows are NaN, one each."""

from __future__ import annotations

import math
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from netreview.copies import copied
from netreview.randomness import kept_random_states
from netreview.traces import NORMS, Trace, tensors_in

# In a pass along one axis there is an image for each row, as far as these allow: else one image marks several rows.
MOST_IMAGES, MOST_PIXELS = 64, 2**18

# What takes its values from computed places: of NaN places it makes nonsense, or crashes the process.
AT_COMPUTED_PLACES = ("grid_sampler", "deform_conv2d", "gather", "index", "index_select", "take", "roi_align")


class Extent(NamedTuple):
    """How many pixels along one axis a position depends on: from `least` to `most`, which are equal if known exactly.

    `clipped` means that every position comes close to the image's rim, so that in a larger image it may be more.
    """

    least: int
    most: int
    clipped: bool

    def agrees(self, extent: int) -> bool:
        """Whether a position of an endless image may depend on `extent` pixels."""
        return extent >= self.least if self.clipped else self.least <= extent <= self.most


def refuse_computed_places(recorded: Trace) -> None:
    """Raise ValueError where an operation takes values from places that it computes from the image."""
    for operation in recorded.operations:
        places = [value for value in operation.images if not value.tensor.is_floating_point()]
        sampled = "grid_sampler" in operation.name or "deform_conv2d" in operation.name
        if (sampled and len(operation.images) > 1) or (operation.name in AT_COMPUTED_PLACES and places):
            place = operation.where or "the model"
            raise ValueError(
                f"receptive_field: {place} takes its values from places that it computes ({operation.name}); what it "
                "depends on differs from image to image."
            )


class Seen(NamedTuple):
    """Which blocks of rows, or of columns, the numbers of one result depend on: a mask of (blocks, *shape)."""

    mask: torch.Tensor
    block: int  # rows in a block
    size: int  # rows of the image

    def extent(self, margin: int) -> Extent | None:
        """The longest, of those positions that stay `margin` rows or more away from the rim if there are any."""
        if self.mask.ndim != 4:
            return self._extent(self.mask.flatten(1), margin)
        # A position has all channels, which are the first axis of a map, or the last one.
        first, last = (self._extent(self.mask.any(channels).flatten(1), margin) for channels in (1, 3))
        return last if first and last and first.clipped and not last.clipped else first

    def _extent(self, mask: torch.Tensor, margin: int) -> Extent | None:
        blocks = torch.arange(len(mask))[:, None]
        first = blocks.where(mask, torch.tensor(len(mask))).amin(0)
        last = blocks.where(mask, torch.tensor(-1)).amax(0)
        some, margin = last >= 0, math.ceil(margin / self.block)
        if not some.any():
            return None
        inside = (first >= margin) & (last < len(mask) - margin) & some
        clipped = not bool(inside.any())
        longest = int((last - first)[some if clipped else inside].max())
        least = (longest - 1) * self.block + 2 if longest else 1
        return Extent(min(least, self.size), min((longest + 1) * self.block, self.size), clipped)


def seen(model: nn.Module, input_size: tuple[int, int, int], recorded: Trace) -> list[tuple[Seen, Seen] | None]:
    """What each operation's result depends on, vertically and horizontally.

    In the order of `recorded`'s operations; None where the result is not one of images, or where the passes did
    something else. What normalises, and gates that multiply a map by a number for each channel, pass for operations on
    single positions, though they look at everything.
    """
    axes = []
    for axis in (2, 3):
        marks = _marked(model, input_size, axis)
        size, block = input_size[axis - 1], _block(input_size, axis)
        found = [None] * len(recorded.operations)
        names = [operation.name for operation in recorded.operations], [name for name, _ in marks]
        for start, other, length in SequenceMatcher(None, *names, autojunk=False).get_matching_blocks():
            for step in range(length):
                mask = marks[other + step][1]
                found[start + step] = None if mask is None else Seen(mask, block, size)
        axes.append(found)
    return [None if None in pair else pair for pair in zip(*axes, strict=True)]


def _block(input_size: tuple[int, int, int], axis: int) -> int:
    """How many rows an image marks."""
    images = max(8, min(MOST_IMAGES, MOST_PIXELS // (input_size[1] * input_size[2])))
    return math.ceil(input_size[axis - 1] / images)


def _marked(model: nn.Module, input_size: tuple[int, int, int], axis: int) -> list[tuple[str, torch.Tensor | None]]:
    """Each operation's name, and which rows (axis 2) or columns (axis 3) each number of its result depends on."""
    size, block = input_size[axis - 1], _block(input_size, axis)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    images = torch.zeros(math.ceil(size / block), *input_size, device=like.device, dtype=like.dtype)
    for number, image in enumerate(images):
        image.narrow(axis - 1, number * block, min(block, size - number * block)).fill_(math.nan)
    with torch.no_grad(), kept_random_states(), _Marking(len(images)) as marking:
        try:
            marking.model_runs(copied(model).eval(), images)
        except Exception:  # a network for one image only, or one that looks at its values
            return []
    return marking.marks


class _Marking(TorchDispatchMode):
    """Notes where the result of each operation is NaN."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count
        self.marks: list[tuple[str, torch.Tensor | None]] = []

    def model_runs(self, model: nn.Module, images: torch.Tensor) -> None:
        self.marks.clear()  # of what copying did
        model(images)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if any(norm in name for norm in NORMS):
            output = self._normalised(function, args, kwargs)
        else:
            output = function(*self._without_gates(args), **kwargs)
        results = [tensor for tensor in tensors_in(output) if tensor.shape != (0,)]
        self.marks.append((name, self._seen(results[0]) if results else None))
        return output

    def _normalised(self, function, args, kwargs):
        """As if it looked at single positions."""
        images = args[0]
        output = function(images.nan_to_num(0.0), *args[1:], **kwargs)
        for result in tensors_in(output)[:1]:
            if result.shape == images.shape:
                result.masked_fill_(images.isnan(), math.nan)
        return output

    def _without_gates(self, args):
        """The arguments without the NaN of those that are one number for a whole map of another one."""
        maps = [a for a in tensors_in(args) if a.ndim == 4 and len(a) == self.count and a.is_floating_point()]
        largest = max((tuple(a.shape) for a in maps), key=math.prod, default=())

        def cleaned(value):
            is_map = isinstance(value, torch.Tensor) and value.ndim == 4 and len(value) == self.count
            if not is_map or not value.is_floating_point():
                return value
            ones = sum(one == 1 < many for one, many in zip(value.shape[1:], largest[1:], strict=True))
            return value.nan_to_num(1.0) if ones > 1 else value

        return tree_map(cleaned, args) if len(maps) > 1 else args

    def _seen(self, result: torch.Tensor) -> torch.Tensor | None:
        if result.ndim < 2 or len(result) != self.count or not result.is_floating_point():
            return None
        return result.isnan()
