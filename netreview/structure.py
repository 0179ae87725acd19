"""Checks of which result reaches what."""

import math

import torch
from torch import nn

from netreview.copies import DoesNotRun
from netreview.fields import follow
from netreview.findings import Found, check
from netreview.subject import Subject
from netreview.traces import Operation, Value


@check(
    "unregistered-parameter",
    "error",
    advice="Keep layers in an nn.ModuleList or nn.ModuleDict: in a plain list they are not trained.",
)
def unregistered(subject: Subject):
    """Layers and parameters that are not registered with the model."""
    model = subject.original
    registered = {id(item) for item in (*model.modules(), *model.parameters(), *model.buffers())}
    skip = {"_parameters", "_buffers", "_modules"}

    def hidden(value, depth: int = 0) -> int:
        if isinstance(value, nn.Module | nn.Parameter):
            parameters = value.parameters() if isinstance(value, nn.Module) else [value]
            return 0 if id(value) in registered else sum(p.numel() for p in parameters if id(p) not in registered)
        if isinstance(value, torch.Tensor):
            return value.numel() if value.requires_grad and value.is_leaf and id(value) not in registered else 0
        if isinstance(value, dict):
            value = list(value.values())
        return (
            sum(hidden(item, depth + 1) for item in value) if isinstance(value, list | tuple | set) and depth < 4 else 0
        )

    for path, module in model.named_modules():
        for name, value in vars(module).items():
            count = 0 if name in skip else hidden(value)
            if count:
                where = f"{path}.{name}".lstrip(".")
                yield Found(where, f"{count:,} parameters are missing from model.parameters().")


@check(
    "discarded-output",
    "error",
    advice="Use this module's output: now it is discarded, and the module has no effect.",
)
def discarded(subject: Subject):
    """Results of modules, functions and methods that nothing uses."""
    evaluated, trained = subject.traces
    called_in_training = {call.path for call in trained.calls}
    found: dict[str, list[bool]] = {}
    for recorded, paths in ((trained, None), (evaluated, called_in_training)):
        live = recorded.live
        for call in recorded.calls:
            if call.outputs and (paths is None or call.path not in paths):
                found.setdefault(call.path, []).append(any(value in live for value in call.outputs))
    outermost: list[str] = []
    for path in sorted(found, key=lambda path: path.count(".")):
        if not all(found[path]) and not any(path.startswith(f"{outer}.") for outer in outermost):
            outermost.append(path)
    for path in (path for path in found if path in outermost):
        dropped, kind = found[path].count(False), type(subject.model.get_submodule(path)).__name__
        yield Found(path, f"{kind}: {dropped} of {len(found[path])} calls have an unused result.")
    for operation in _dropped_functions(subject):
        name = "dropout" if operation.is_dropout else operation.name.replace("native_", "").strip("_")
        shape = tuple(operation.outputs[0].tensor.shape)
        if not any(f"{operation.where}.".startswith(f"{outer}.") for outer in outermost):
            advice = f"Use what {name} returns: written alone on a line, it changes nothing."
            yield Found(operation.where, f"{name}: its result, of shape {shape}, never reaches the output.", advice)


# Functions that change what goes through a network, and are not called to look at it.
WORKS = {
    "relu", "leaky_relu", "elu", "gelu", "silu", "mish", "hardtanh", "hardswish", "hardsigmoid", "softplus",
    "_prelu_kernel", "_softmax", "_log_softmax", "sigmoid", "tanh", "native_dropout", "native_batch_norm",
    "native_layer_norm", "native_group_norm", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d",
    "convolution", "addmm", "add", "sub", "mul", "div", "cat", "clamp", "clamp_min", "constant_pad_nd", "pow", "exp",
    "permute", "transpose",
}  # fmt: skip


def _dropped_functions(subject: Subject) -> list[Operation]:
    """Operations on whole maps or features, in the user's own code, whose result is used by nothing at all."""
    recorded = subject.trained
    used = {value for operation in recorded.operations for value in operation.inputs} | recorded.live
    own = {path for path, module in subject.model.named_modules() if not type(module).__module__.startswith("torch.")}
    return [
        operation
        for operation in recorded.operations
        if operation.name in WORKS
        and operation.where in own
        and operation.images
        and not any(value in used for value in operation.outputs)
        and operation.outputs[0].tensor.shape[:1] == operation.images[0].tensor.shape[:1]
        and operation.outputs[0].tensor.numel() > len(operation.outputs[0].tensor)
    ]


@check("unused-module", "warning", advice="Call this module in forward, or delete it.")
def unused(subject: Subject):
    """Modules that no forward pass calls, and whose weights it does not use otherwise."""
    used = {call.path for recorded in subject.traces for call in recorded.calls}
    for recorded in subject.traces:
        live = recorded.live
        used |= {value.name.rpartition(".")[0] for value in live if value.name}
    reported: list[str] = []
    for path, module in subject.model.named_modules():
        inside = [f"{path}.{name}".rstrip(".") for name, _ in module.named_modules()]
        if path and not used & set(inside) and not any(path.startswith(f"{outer}.") for outer in reported):
            count = sum(parameter.numel() for parameter in module.parameters())
            if not count:  # a loss, an activation, an empty container
                continue
            reported.append(path)
            evidence = f"{type(module).__name__}, {count:,} parameters, is never called."
            yield Found(path, evidence)


@check(
    "frozen-by-detach",
    "error",
    advice="Remove the detach, no_grad or .data after this layer: it gets no gradient.",
    unless=("loss-without-gradient",),
)
def detached(subject: Subject):
    """Parameters that the output depends on but that get no gradient."""
    model, _, _ = subject.step
    _, trained = subject.traces
    # Auxiliary outputs that the loss ignores do not count.
    live = {value.name for value in trained.reaching([subject.logits_of(trained)])}
    frozen = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None and name in live]
    if frozen:
        where = frozen[-1].rpartition(".")[0]
        evidence = f"{len(frozen)} parameters, {frozen[0]} to {frozen[-1]}, reach the output but get no gradient."
        yield Found(where, evidence)


@check("linear-pair", "warning", advice="Put a non-linearity between these two layers, or merge them.")
def linear_pairs(subject: Subject):
    """Two layers in a row with nothing non-linear between them."""
    recorded, _ = subject.traces
    consumers = recorded.consumers
    for first in recorded.operations:
        if first.is_layer and first.outputs:
            second = _next_layer(first, consumers)
            if second is not None:
                yield _judge_pair(first, second)


def _next_layer(first: Operation, consumers: dict) -> Operation | None:
    """The layer that a layer's result goes to alone, through affine operations only."""
    value = first.outputs[0]
    while True:
        users = consumers.get(value, [])
        if len(users) != 1 or len(users[0].images) != 1 or not users[0].is_affine:
            return None
        if users[0].is_layer:
            return users[0]
        value = users[0].outputs[0]


def _judge_pair(first: Operation, second: Operation) -> Found:
    (inputs, middle, size1, groups1), (_, outputs, size2, groups2) = map(_layer_shape, (first, second))
    stride = first.args[3][0] if first.name == "convolution" else 1
    merged = inputs * outputs * (size1 + (size2 - 1) * stride) ** 2
    spent = inputs * middle * size1**2 // groups1 + middle * outputs * size2**2 // groups2
    evidence = f"{spent:,} parameters in this layer and {second.where}, where one layer takes {merged:,}."
    if groups1 > 1 and size2 == 1:
        advice = "A depthwise layer with its pointwise one is common; consider an activation between them."
    elif middle < min(inputs, outputs):
        advice = "A narrow layer without activation between two wide ones may be intended: MobileNet v2 has many."
    else:
        return Found(first.where, evidence)
    return Found(first.where, evidence, advice, "note")


def _layer_shape(operation: Operation) -> tuple[int, int, int, int]:
    """Channels in and out, effective kernel size, groups."""
    if operation.name != "convolution":
        weight = operation.args[-1]
        return weight.shape[0], weight.shape[1], 1, 1
    weight, groups = operation.args[1], operation.args[8]
    reach = (weight.shape[-1] - 1) * operation.args[5][-1] + 1
    return weight.shape[1] * groups, weight.shape[0], reach, groups


@check(
    "missing-norm",
    "warning",
    advice="Add normalisation and an activation after this convolution, as after the others.",
)
def bare_convolutions(subject: Subject):
    """Convolutions that lack the normalisation that others have."""
    recorded, _ = subject.traces
    consumers = recorded.consumers
    normalises = any(operation.is_norm for operation in recorded.operations)
    for operation in recorded.operations:
        if not operation.is_layer or not operation.outputs:
            continue
        users = consumers.get(operation.outputs[0], [])
        if operation.name == "convolution" and normalises and _ends_in_layers(operation.outputs[0], consumers):
            is_depthwise = operation.args[8] > 1 and all(user.is_layer for user in users)
            if not is_depthwise:
                evidence = "A layer follows with neither normalisation nor activation in between."
                yield Found(operation.where, evidence)


@check("bias-before-norm", "note", advice="Give this layer bias=False: the following BatchNorm cancels the bias.")
def useless_biases(subject: Subject):
    """Biases cancelled by the following normalisation."""
    recorded, _ = subject.traces
    consumers = recorded.consumers
    for operation in recorded.operations:
        if not operation.is_layer or not operation.outputs:
            continue
        users = consumers.get(operation.outputs[0], [])
        has_bias = operation.name == "addmm" or (operation.name == "convolution" and operation.args[2] is not None)
        if has_bias and users and all("batch_norm" in user.name for user in users):
            evidence = f"{operation.outputs[0].tensor.shape[1]} biases without effect."
            yield Found(operation.where, evidence)


def _ends_in_layers(value: Value, consumers: dict) -> bool:
    """Whether all that comes of a value, through affine operations, goes into further layers."""
    users = consumers.get(value, [])
    ends = [
        user.is_layer or (not user.is_norm and user.is_affine and _ends_in_layers(user.outputs[0], consumers))
        for user in users
    ]
    return bool(ends) and all(ends)


@check("downsampled-too-far", "warning", advice="Downsample less: the kernel is larger than its input feature map.")
def small_maps(subject: Subject):
    """Feature maps smaller than the kernels applied to them."""
    recorded, _ = subject.traces
    small = []
    for operation in recorded.operations:
        if operation.name == "convolution" and operation.images and operation.args[0].ndim == 4:
            reach = _layer_shape(operation)[2]
            map_size = min(operation.args[0].shape[2:])
            if reach > map_size:
                small.append((operation.where, reach, map_size))
    if small:
        where, reach, map_size = small[0]
        evidence = f"A kernel that reaches over {reach} pixels works on a map of {map_size}; {len(small)} do in all."
        yield Found(where, evidence)


@check(
    "receptive-field",
    "note",
    advice="Use more layers, larger kernels, dilation or earlier strides, to enlarge the receptive field.",
)
def small_field(subject: Subject):
    """A receptive field, before a pooling of whole maps, that is smaller than the image."""
    size = tuple(subject.images.shape[1:])
    if len(size) != 3 or len(subject.few) != 2:
        return
    try:
        followed = follow(subject.model, size)
    except (ValueError, DoesNotRun):  # it cannot be followed through this network, or does not take blank images
        return
    maps = [operation.outputs[0] for operation in followed.recorded.used if operation.name == "convolution"]
    fields = [followed.fields[value] for value in maps if value.tensor.shape[2:].numel() > 1]
    seen = max((max(field.extent) for field in fields), default=math.inf)
    if seen < size[-1] and not any(field.clipped for field in fields):
        yield Found("", f"The last convolution has a receptive field of {seen} pixels of {size[-1]}.")
