"""Records which operation made what from what in one forward pass."""

import dataclasses
import functools
import types
from collections import UserDict
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from netreview.copies import copied, located
from netreview.randomness import kept_random_states

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
    is_drawn: bool = False  # whether it holds random numbers


@dataclass(eq=False)
class Operation:
    """One call of an operator of torch's ATen library."""

    name: str  # as "convolution"
    where: str  # path of the module that called it, "" for the model itself
    args: tuple
    inputs: list[Value]
    outputs: list[Value]
    is_random: bool = False  # whether it draws random numbers
    function: object = None  # the operator itself
    named: dict = field(default_factory=dict)  # the arguments that were given by name

    @property
    def images(self) -> list[Value]:
        """The inputs that depend on the image."""
        return [value for value in self.inputs if value.from_image]

    @property
    def is_layer(self) -> bool:
        """Whether it multiplies what depends on the image by weights that do not."""
        return self.name in LAYERS and len(self.images) == 1

    @property
    def is_dropout(self) -> bool:
        """Whether it drops: on a CPU this is a product with a mask that was drawn."""
        return self.name == "native_dropout" or (self.name == "mul" and any(value.is_drawn for value in self.inputs))

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
class Call:
    """One call of a module."""

    path: str
    inputs: list[Value]
    start: int  # how many operations there were before it
    end: int = 0  # and after it
    outputs: list[Value] = field(default_factory=list)


@dataclass
class Trace:
    """A forward pass: all operations in their order, all calls of modules that ended, and what came out."""

    operations: list[Operation] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    kept: list[Value] = field(default_factory=list)  # tensors that modules keep as attributes
    result: object = None  # what the network returned

    @functools.cached_property
    def live(self) -> set[Value]:
        """All values that the outputs, or what modules keep, depend on."""
        return self.reaching([*self.outputs, *self.kept])

    def reaching(self, ends: list[Value]) -> set[Value]:
        """All values that some values depend on, and these."""
        reached = set(ends)
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
    model, images = copied(model).train(training), images.clone()
    with torch.no_grad(), kept_random_states(), located(model):
        if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
            model(images.clone())
        before = {id(tensor) for tensor in _kept(model)}
        with _Recorder(model, images) as recorder:
            recorder.trace.result = model(images)
    recorder.trace.outputs = [recorder.value_of(tensor) for tensor in tensors_in(recorder.trace.result)]
    recorder.trace.kept = [recorder.value_of(tensor) for tensor in _kept(model) if id(tensor) not in before]
    return recorder.trace


def _kept(model: nn.Module) -> list[torch.Tensor]:
    """The tensors that modules hold, other than parameters and buffers."""
    skip = ("_modules", "_parameters", "_buffers")
    return [
        tensor
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in skip
        for tensor in tensors_in(value)
    ]


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, images: torch.Tensor):
        super().__init__()
        self.trace = Trace()
        self.values: dict[int, Value] = {}  # by the id of the tensor
        self.by_memory: dict[int, list[torch.Tensor]] = {}  # views share memory
        self._set(images, Value(images, from_image=True))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._set(tensor, Value(tensor, name=name))
        self.inside = [Call("", [], 0)]
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # these take no hooks
                module.register_forward_pre_hook(functools.partial(self._entered, name), with_kwargs=True)
                module.register_forward_hook(self._left)

    def _entered(self, name, module, inputs, named_inputs) -> None:
        values = [self.value_of(tensor) for tensor in tensors_in([inputs, named_inputs])]
        self.inside.append(Call(name, values, len(self.trace.operations)))

    def _left(self, module, inputs, output) -> None:
        call = self.inside.pop()
        call.end, call.outputs = len(self.trace.operations), [self.value_of(tensor) for tensor in tensors_in(output)]
        self.trace.calls.append(call)

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
                    relatives = self.by_memory.get(_memory(value), [])
                    inputs += [self.values[id(relative)] for relative in relatives]
                    results += relatives
        inputs = list(dict.fromkeys(inputs))
        name, is_random = function.overloadpacket.__name__, torch.Tag.nondeterministic_seeded in function.tags
        is_drawn = is_random or (name == "div_" and any(value.is_drawn for value in inputs))
        outputs = []
        for tensor in {id(tensor): tensor for tensor in results}.values():
            if tensor.shape != (0,):  # the statistics that BatchNorm does not compute in eval mode
                outputs.append(Value(tensor, any(value.from_image for value in inputs), is_drawn=is_drawn))
                self._set(tensor, outputs[-1])
        self.trace.operations.append(
            Operation(name, self.inside[-1].path, args, inputs, outputs, is_random, function, kwargs or {})
        )
        return output


def _memory(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or -id(tensor)  # an empty tensor has none
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none either
        return -id(tensor)


def tensors_in(values) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples, dictionaries, dataclasses and namespaces."""
    if isinstance(values, torch.Tensor):
        return [values]
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = [getattr(values, entry.name) for entry in dataclasses.fields(values)]
    if isinstance(values, types.SimpleNamespace):
        values = vars(values)
    if isinstance(values, dict | UserDict):
        values = list(values.values())
    return [tensor for value in values for tensor in tensors_in(value)] if isinstance(values, list | tuple) else []


def layer_name(model: nn.Module, operation: Operation) -> str:
    """The module that computes: by its path if it has no parts of its own, else with the operation's name."""
    is_leaf = operation.where and not list(model.get_submodule(operation.where).children())
    return operation.where if is_leaf else f"{operation.where}.{operation.name}".lstrip(".")
