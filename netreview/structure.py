"""Checks of what reaches what: modules, operations, gradients and maps."""

import math

import torch
from torch import nn

from netreview.fields import receptive_field
from netreview.findings import check
from netreview.traces import Operation, Trace, Value


@check(
    "unregistered-parameter", "error",
    "Keep layers in an nn.ModuleList or nn.ModuleDict: in a plain list they are not trained.",
)  # fmt: skip
def unregistered_parameter(original):
    """Layers and parameters that hide from model.parameters()."""
    model = original
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
                yield where, f"{count:,} parameters are not the model's."


@check(
    "discarded-output", "error",
    "Use what this module returns: as it is, its result is dropped and the module does nothing.",
)  # fmt: skip
def discarded_output(model, evaluated, trained):
    """Modules whose result nothing uses."""
    called_in_training = {path for path, _ in trained.calls}
    found: dict[str, list[bool]] = {}
    for recorded, paths in ((trained, None), (evaluated, called_in_training)):
        live = recorded.live
        for path, values in recorded.calls:
            if values and (paths is None or path not in paths):
                found.setdefault(path, []).append(any(value in live for value in values))
    outermost: list[str] = []
    for path in sorted(found, key=lambda path: path.count(".")):
        dropped = found[path].count(False)
        if dropped and not any(path.startswith(f"{outer}.") for outer in outermost):
            outermost.append(path)
    for path in (path for path in found if path in outermost):
        dropped, kind = found[path].count(False), type(model.get_submodule(path)).__name__
        evidence = f"{kind}: {dropped} of {len(found[path])} results never reach the output."
        yield path, evidence


@check("unused-module", "warning", "Call this module in forward, or delete it.")
def unused_module(model, evaluated, trained):
    """Modules that no forward pass calls, and whose weights it does not use in another way."""
    used = {path for recorded in (evaluated, trained) for path, _ in recorded.calls}
    for recorded in (evaluated, trained):
        live = recorded.live
        used |= {value.name.rpartition(".")[0] for value in live if value.name}
    reported: list[str] = []
    for path, module in model.named_modules():
        inside = [f"{path}.{name}".rstrip(".") for name, _ in module.named_modules()]
        if path and not used & set(inside) and not any(path.startswith(f"{outer}.") for outer in reported):
            if not list(module.modules())[1:] and isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
                continue  # an empty container
            reported.append(path)
            count = sum(parameter.numel() for parameter in module.parameters())
            evidence = f"{type(module).__name__}, {count:,} parameters, is never called."
            yield path, evidence


@check("linear-pair", "warning", "Put a non-linearity between these two layers, or make them one.")
def linear_pair(evaluated):
    """Two layers in a row with nothing non-linear between them."""
    consumers = evaluated.consumers
    for first in evaluated.operations:
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


def _judge_pair(first: Operation, second: Operation) -> tuple:
    (inputs, middle, size1, groups1), (_, outputs, size2, groups2) = map(_layer_shape, (first, second))
    stride = first.args[3][0] if first.name == "convolution" else 1
    merged = inputs * outputs * (size1 + (size2 - 1) * stride) ** 2
    spent = inputs * middle * size1**2 // groups1 + middle * outputs * size2**2 // groups2
    evidence = f"{spent:,} parameters in this layer and {second.where}, where one layer takes {merged:,}."
    if groups1 > 1 and size2 == 1:
        advice = "A depthwise layer with its pointwise one is usual; an activation between them is worth a try."
    elif spent <= merged and middle < min(inputs, outputs):
        advice = "A narrow layer without activation between two wide ones saves parameters, and may well be meant."
    else:
        return first.where, evidence
    return first.where, evidence, {"severity": "note", "advice": advice}


def _layer_shape(operation: Operation) -> tuple[int, int, int, int]:
    """Channels in and out, kernel size as far as it reaches, groups."""
    if operation.name != "convolution":
        weight = operation.args[-1]
        return weight.shape[0], weight.shape[1], 1, 1
    weight, groups = operation.args[1], operation.args[8]
    reach = (weight.shape[-1] - 1) * operation.args[5][-1] + 1
    return weight.shape[1] * groups, weight.shape[0], reach, groups


@check("missing-norm", "warning", "Put normalisation and an activation behind this convolution, as behind the others.")
def missing_norm(evaluated):
    """Convolutions that lack the normalisation or activation that others have."""
    consumers = evaluated.consumers
    if not any(operation.is_norm for operation in evaluated.operations):
        return
    for operation in evaluated.operations:
        if operation.name != "convolution" or not operation.is_layer or not operation.outputs:
            continue
        users = consumers.get(operation.outputs[0], [])
        is_depthwise = operation.args[8] > 1 and all(user.is_layer for user in users)
        if _ends_in_layers(operation.outputs[0], consumers) and not is_depthwise:
            yield operation.where, "A layer follows with neither normalisation nor activation in between."


def _ends_in_layers(value: Value, consumers: dict) -> bool:
    """Whether all that comes of a value, through affine operations, goes into further layers."""
    users = consumers.get(value, [])
    ends = [
        user.is_layer or (not user.is_norm and user.is_affine and _ends_in_layers(user.outputs[0], consumers))
        for user in users
    ]
    return bool(ends) and all(ends)


@check("bias-before-norm", "note", "Give this layer bias=False: the BatchNorm behind it takes the bias away again.")
def bias_before_norm(evaluated):
    """Biases that the BatchNorm behind them takes away."""
    for operation in evaluated.operations:
        if operation.is_layer and operation.outputs:
            users = evaluated.consumers.get(operation.outputs[0], [])
            has_bias = operation.name == "addmm" or (operation.name == "convolution" and operation.args[2] is not None)
            if has_bias and users and all("batch_norm" in user.name for user in users):
                yield operation.where, f"{operation.outputs[0].tensor.shape[1]} biases without effect."


@check(
    "frozen-by-detach", "error",
    "Remove what cuts the graph behind this layer, such as detach or no_grad: it gets no gradient.",
)  # fmt: skip
def frozen_by_detach(step, trained):
    """Parameters that the output depends on and that get no gradient all the same."""
    model, _, _ = step
    # Auxiliary outputs, of which the loss knows nothing, do not count.
    live = {value.name for value in Trace(trained.operations, outputs=trained.outputs[:1]).live}
    frozen = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None and name in live]
    if frozen:
        where = frozen[-1].rpartition(".")[0]
        evidence = f"{len(frozen)} parameters, {frozen[0]} to {frozen[-1]}, reach the output but get no gradient."
        yield where, evidence


@check("downsampled-too-far", "warning", "Stride less or later: this kernel sees more padding than picture.")
def downsampled_too_far(evaluated):
    """Maps smaller than the kernels on them."""
    small = []
    for operation in evaluated.operations:
        if operation.name == "convolution" and operation.images and operation.args[0].ndim == 4:
            reach, map_size = _layer_shape(operation)[2], min(operation.args[0].shape[2:])
            if reach > map_size:
                small.append((operation.where, reach, map_size))
    if small:
        where, reach, map_size = small[0]
        evidence = f"A kernel that reaches over {reach} pixels works on a map of {map_size}; {len(small)} do in all."
        yield where, evidence


@check(
    "receptive-field", "note",
    "Use more layers, larger kernels, dilation or earlier strides, so that a position sees enough.",
)  # fmt: skip
def small_receptive_field(model, images, evaluated):
    """The last convolution sees less than the image."""
    size = tuple(images.shape[1:])
    try:
        rows = receptive_field(model, size)
    except ValueError:  # it cannot be followed through this network
        return
    layers = {operation.where for operation in evaluated.operations if operation.name == "convolution"}
    fields = [row.receptive_field for row in rows if row.layer in layers or row.layer.endswith("convolution")]
    seen = max((max(field) if isinstance(field, tuple) else field for field in fields), default=math.inf)
    if seen < size[-1]:
        yield "", f"The last convolution sees {seen} pixels of {size[-1]}."
