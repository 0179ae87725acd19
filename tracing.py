"""Records which operation made what from what in one forward pass, and follows the receptive field through it."""

import copy
import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = ("convolution", "addmm", "mm", "bmm")  # multiply by weights, where those do not depend on the image
NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm")
AFFINE = {  # in eval mode each of these is affine in its one input that depends on the image
    "convolution", "addmm", "mm", "view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "expand",
    "squeeze", "unsqueeze", "clone", "slice", "select", "split", "split_with_sizes", "unbind", "cat", "stack", "alias",
    "detach", "lift_fresh", "_to_copy", "copy_", "avg_pool2d", "_adaptive_avg_pool2d", "mean", "sum", "constant_pad_nd",
    "reflection_pad2d", "replication_pad2d", "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "neg",
    "upsample_nearest2d", "upsample_bilinear2d", "pixel_shuffle", "roll", "native_batch_norm", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "bernoulli_", "native_dropout", "flip",
}  # fmt: skip


@dataclass(eq=False)
class Value:
    """One tensor at one time; an in-place operation makes a new value of it."""

    tensor: torch.Tensor
    from_image: bool = False  # whether it depends on the image
    name: str = ""  # of a parameter or buffer of the model


@dataclass(eq=False)
class Operation:
    """One call of an operator of torch's ATen library."""

    name: str  # as "convolution"
    where: str  # path of the module that called it, "" for the model itself
    args: tuple
    inputs: list[Value]
    outputs: list[Value]

    @property
    def images(self) -> list[Value]:
        """The inputs that depend on the image."""
        return [value for value in self.inputs if value.from_image]

    @property
    def is_layer(self) -> bool:
        """Whether it multiplies what depends on the image by weights that do not."""
        return self.name in LAYERS and len(self.images) == 1

    @property
    def is_norm(self) -> bool:
        """Whether it normalises."""
        return any(norm in self.name for norm in NORMS)

    @property
    def is_affine(self) -> bool:
        """Whether it is affine in what depends on the image."""
        images = self.images
        if self.name in ("add", "add_", "sub", "sub_", "cat", "stack"):
            return True
        return self.name in AFFINE and len(images) <= 1


@dataclass
class Trace:
    """A forward pass: all operations in their order, all calls of modules, and what came out."""

    operations: list[Operation] = field(default_factory=list)
    calls: list[tuple[str, list[Value]]] = field(default_factory=list)  # path of a module, and what it returned
    outputs: list[Value] = field(default_factory=list)

    @functools.cached_property
    def live(self) -> set[Value]:
        """All values that the outputs depend on."""
        reached = set(self.outputs)
        for operation in reversed(self.operations):
            if any(value in reached for value in operation.outputs):
                reached.update(operation.inputs)
        return reached

    @functools.cached_property
    def used(self) -> list[Operation]:
        """The operations that reach the outputs."""
        return [operation for operation in self.operations if any(value in self.live for value in operation.outputs)]

    @functools.cached_property
    def consumers(self) -> dict[Value, list[Operation]]:
        """The operations that use each value, of those that reach the outputs."""
        result = {}
        for operation in self.used:
            for value in operation.inputs:
                result.setdefault(value, []).append(operation)
        return result


def trace(model: nn.Module, images: torch.Tensor, training: bool = False) -> Trace:
    """Run a copy of `model` on `images` (N, C, H, W), in train or eval mode, and record it.

    Follows tensors, not source text: functional calls, in-place operations, tuples, views and modules that are used
    twice are all seen as what they compute.
    """
    model = copy.deepcopy(model).train(training)
    recorder = _Recorder(model, images)
    with torch.no_grad(), recorder:
        output = model(images)
    recorder.trace.outputs = [recorder.value_of(tensor) for tensor in tensors_in(output)]
    return recorder.trace


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, images: torch.Tensor):
        super().__init__()
        self.trace = Trace()
        self.values: dict[int, Value] = {}  # by the id of the tensor
        self.by_memory: dict[int, list[torch.Tensor]] = {}  # views share memory
        self._set(images, Value(images, from_image=True))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._set(tensor, Value(tensor, name=name))
        self.inside = [""]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.inside.append(name))
            module.register_forward_hook(self._called)

    def _called(self, module, inputs, output) -> None:
        self.trace.calls.append((self.inside.pop(), [self.value_of(tensor) for tensor in tensors_in(output)]))

    def _set(self, tensor: torch.Tensor, value: Value) -> None:
        if id(tensor) not in self.values:
            self.by_memory.setdefault(_memory(tensor), []).append(tensor)  # and kept, so that its id stays its own
        self.values[id(tensor)] = value

    def value_of(self, tensor: torch.Tensor) -> Value:
        """What is known of a tensor; one that came about unseen, as by .data or numpy, is what its memory was."""
        if id(tensor) not in self.values:
            relatives = self.by_memory.get(_memory(tensor))
            self._set(tensor, self.values[id(relatives[-1])] if relatives else Value(tensor))
        return self.values[id(tensor)]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = [self.value_of(tensor) for tensor in tensors_in([args, kwargs or {}])]
        output = function(*args, **(kwargs or {}))
        results = tensors_in(output)
        if function._schema.is_mutable:  # all that shares memory with what was written to has changed too
            for argument, value in zip(function._schema.arguments, args, strict=False):
                if argument.alias_info and argument.alias_info.is_write and isinstance(value, torch.Tensor):
                    relatives = self.by_memory[_memory(value)]
                    inputs += [self.values[id(relative)] for relative in relatives]
                    results += relatives
        inputs = list(dict.fromkeys(inputs))
        outputs = []
        for tensor in {id(tensor): tensor for tensor in results}.values():
            if tensor.shape != (0,):  # the statistics that BatchNorm does not compute in eval mode
                outputs.append(Value(tensor, any(value.from_image for value in inputs)))
                self._set(tensor, outputs[-1])
        name = function.overloadpacket.__name__
        self.trace.operations.append(Operation(name, self.inside[-1], args, inputs, outputs))
        return output


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or -id(tensor)  # an empty tensor has none


def tensors_in(values) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [tensor for value in values for tensor in tensors_in(value)] if isinstance(values, list | tuple) else []


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
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    recorded = trace(model, torch.zeros(1, *input_size, device=device))
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


def layer_name(model: nn.Module, operation: Operation) -> str:
    """The module that computes: by its path if it has no parts of its own, else with the operation's name."""
    is_leaf = operation.where and not list(model.get_submodule(operation.where).children())
    return operation.where if is_leaf else f"{operation.where}.{operation.name}".lstrip(".")


def _pair(value) -> tuple[int, int]:
    value = tuple(value) if isinstance(value, list | tuple) else (value,)
    return value if len(value) == 2 else value * 2


def _row(layer: str, kernel: tuple, stride: tuple, dilation: tuple, field: _Field) -> ReceptiveField:
    pairs = kernel, stride, dilation, field.jump, field.extent
    return ReceptiveField(layer, *(a if a == b else (a, b) for a, b in pairs))
