"""What examines a network from outside, and leaves it as it was."""

import contextlib
import copy
import io
from typing import NamedTuple

import torch
import torchsummary
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


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


# ----------------------------------------------------------------------------------------------------- receptive field

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
    model = copy.deepcopy(model).eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    image = torch.zeros(1, *input_size, device=device)
    tracer = _FieldTracer(model, image)
    with torch.no_grad(), tracer:
        output = model(image)
    field = tracer.field_of(output) if isinstance(output, torch.Tensor) else None
    if field is None:
        raise ValueError("receptive_field: the output is not one tensor that depends on the image.")
    return [*tracer.rows, _row("output", (1, 1), (1, 1), (1, 1), field)]


class _FieldTracer(TorchDispatchMode):
    """Sees every operation of a forward pass and carries the receptive field from its inputs to its outputs."""

    def __init__(self, model: nn.Module, image: torch.Tensor):
        super().__init__()
        self.rows: list[ReceptiveField] = []
        self.fields = {id(image): (image, _Field())}  # the tensor is kept, so that its id stays its own
        self.inside: list[tuple[str, nn.Module]] = []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda module, _, name=name: self.inside.append((name, module)))
            module.register_forward_hook(lambda *_: self.inside.pop() and None)

    def field_of(self, value) -> _Field | None:
        return self.fields.get(id(value), (None, None))[1]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        tensors = [value for value in _flatten(args) if self.field_of(value)]
        if tensors:
            name = function.overloadpacket.__name__
            # The map of the largest input: a gate of 1x1 does not change where positions lie.
            source = max(tensors, key=lambda tensor: tensor.shape[2:].numel() if tensor.ndim == 4 else 0)
            extents = [self.field_of(tensor).extent for tensor in tensors]
            field = _Field(tuple(map(max, zip(*extents, strict=True))), self.field_of(source).jump)
            for result in _flatten([output]):
                if result.ndim > 1:  # not the statistics that BatchNorm hands out beside its result
                    field = self._through(name, args, source, result, field)
                    self.fields[id(result)] = (result, field)
        return output

    def _through(self, name: str, args: tuple, source: torch.Tensor, result: torch.Tensor, field: _Field) -> _Field:
        if any(word in name for word in UNSUPPORTED) or (name == "convolution" and args[6]):
            raise ValueError(f"receptive_field: {self._where(name)} enlarges or moves the map ({name}).")
        if source.ndim != 4:
            return field
        if name == "convolution":
            window = args[1].shape[2:], args[3], args[5]
        elif name == "slice" and args[1] in (2, 3):
            step = args[4] if len(args) > 4 else 1
            window = (1, 1), ((step, 1) if args[1] == 2 else (1, step)), (1, 1)
            return field.widened(*map(_pair, window))
        elif "pool2d" in name and "adaptive" not in name:
            stride = args[2] if len(args) > 2 and args[2] else args[1]
            dilation = args[4] if "max" in name and len(args) > 4 else (1, 1)
            window = args[1], stride, dilation
        elif result.ndim == 4 and "adaptive" not in name and name != "mean":
            return field
        else:  # an adaptive pool, a mean, or a map that becomes a list of features: each output may see all of it
            before, after = source.shape[2:], result.shape[2:] if result.ndim == 4 else (1, 1)
            window = tuple(-(-b // a) for b, a in zip(before, after, strict=True)), (1, 1), (1, 1)
            if window[0] == (1, 1):
                return field
        kernel, stride, dilation = map(_pair, window)
        field = field.widened(kernel, stride, dilation)
        self.rows.append(_row(self._where(name), kernel, stride, dilation, field))
        return field

    def _where(self, operation: str) -> str:
        """The module that computes: by its name if it has no parts of its own, else with the operation's."""
        name, module = self.inside[-1]
        return name if name and not list(module.children()) else f"{name}.{operation}".lstrip(".")


def _flatten(values) -> list[torch.Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(values, torch.Tensor):
        return [values]
    return [tensor for value in values for tensor in _flatten(value)] if isinstance(values, list | tuple) else []


def _pair(value) -> tuple[int, int]:
    value = tuple(value) if isinstance(value, list | tuple) else (value,)
    return value if len(value) == 2 else value * 2


def _row(layer: str, kernel: tuple, stride: tuple, dilation: tuple, field: _Field) -> ReceptiveField:
    pairs = kernel, stride, dilation, field.jump, field.extent
    return ReceptiveField(layer, *(a if a == b else (a, b) for a, b in pairs))
