"""The checks that review.py runs: each looks at one network and yields what it finds."""

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from s9.brief import LEAST_FIELD
from tracing import Operation, Trace, Value, receptive_field, tensors_in, trace

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that holds a network back."""

    check: str  # which check found it, a fixed id such as "discarded-output"
    severity: str  # "error": it cannot work as meant; "warning": it costs accuracy; "note": worth knowing
    where: str  # path of a module, or "" for the whole
    evidence: str  # the numbers
    advice: str  # one sentence


ADVICE = {
    "discarded-output": "Use what this module returns: as it is, its result is dropped and the module does nothing.",
    "affine-network": "Put a non-linearity, such as a ReLU, behind the layers: without one all of them are worth one.",
    "linear-pair": "Put a non-linearity between these two layers, or make them one.",
    "missing-norm": "Put normalisation and an activation behind this convolution, as behind the others.",
    "bias-before-norm": "Give this layer bias=False: the BatchNorm behind it takes the bias away again.",
    "unused-module": "Call this module in forward, or delete it.",
    "unregistered-parameter": "Keep layers in an nn.ModuleList or nn.ModuleDict: in a plain list they are not trained.",
    "frozen-by-detach": "Remove what cuts the graph behind this layer, such as detach or no_grad: it gets no gradient.",
    "batch-leak": "Keep the first axis for the images: look for a view, permute or softmax that mixes them.",
    "double-softmax": "Return logits, without softmax: this loss takes the softmax itself.",
    "constant-output": "Every image gets the same answer: look for a layer that loses its input.",
    "downsampled-too-far": "Stride less or later: this kernel sees more padding than picture.",
    "receptive-field": "Use more layers, larger kernels, dilation or earlier strides, so that a position sees enough.",
    "dead-activation": "Lower the learning rate or the biases, or normalise: these units are off for every image.",
    "vanishing-gradient": "Use ReLU, normalisation or residual connections: hardly any gradient gets to this layer.",
    "exploding-gradient": "Normalise, or scale down the initial weights: this layer's gradient is far too large.",
    "initial-loss": "Check that loss, output and labels belong together, and the scale of the last layer's weights.",
    "input-scale": "Normalise the images: subtract each channel's mean and divide by its standard deviation.",
    "label-range": "Number the classes from 0, and give the network as many outputs as there are classes.",
    "optimizer-misses-parameters": "Build the optimiser from model.parameters(), after the last layer is added.",
    "eval-mode-gap": "Look at BatchNorm (momentum, batch size) and at what else differs between train and eval mode.",
}


class Subject:
    """Copies of what is reviewed, and what several checks need of them, computed once."""

    def __init__(self, model, images, labels, loss_fn, optimizer):
        self.original, self.optimizer = model, optimizer
        self.images, self.labels, self.loss_fn = images, labels, loss_fn
        self.model = copy.deepcopy(model)

    @functools.cached_property
    def traces(self) -> tuple[Trace, Trace]:
        """Of a forward pass of two images, in eval mode and in train mode."""
        return trace(self.model, self.images[:2]), trace(self.model, self.images[:2], training=True)

    @functools.cached_property
    def settled(self) -> nn.Module:
        """A copy in eval mode and double precision, whose BatchNorms have statistics even if it was never trained.

        In single precision where double does not work.
        """
        model = copy.deepcopy(self.model)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if norms and all(norm.num_batches_tracked is not None and norm.num_batches_tracked == 0 for norm in norms):
            for norm in norms:
                norm.momentum = 1.0
            with torch.no_grad():
                model.train()(self.images)
        model.eval()
        try:  # in double precision nothing is lost to rounding
            precise = copy.deepcopy(model).double()
            precise(self.images[:2].double())
            return precise
        except RuntimeError:  # something in it does not follow .double()
            return model

    @property
    def settled_images(self) -> torch.Tensor:
        """The images in the precision of `settled`."""
        return self.images.to(next((p.dtype for p in self.settled.parameters()), torch.float32))

    def outputs(self, training: bool) -> torch.Tensor:
        """The first tensor that a fresh copy gives for all images, without a graph."""
        with torch.no_grad():
            return tensors_in(copy.deepcopy(self.model).train(training)(self.images))[0]

    @functools.cached_property
    def step(self) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """A copy after one backward pass in train mode, its output and its loss."""
        model = copy.deepcopy(self.model).train()
        model.zero_grad()
        output = tensors_in(model(self.images))[0]
        loss = self.loss_fn(output, self.labels) if self.labels_fit else output.square().mean()
        if loss.requires_grad:
            loss.backward()
        return model, output.detach(), loss.detach()

    @functools.cached_property
    def labels_fit(self) -> bool:
        """Whether every label is a class of the network."""
        classes = self.outputs(training=False).shape[1]
        return bool(self.labels.min() >= 0 and self.labels.max() < classes)


def _found(check: str, severity: str, where: str, evidence: str, **advice) -> Finding:
    return Finding(check, severity, where, evidence, **(advice or {"advice": ADVICE[check]}))


# Structure


def check_registration(subject: Subject):
    """Layers and parameters that hide from model.parameters()."""
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
                yield _found("unregistered-parameter", "error", where, f"{count:,} parameters are not the model's.")


def check_discarded(subject: Subject):
    """Modules whose result nothing uses."""
    evaluated, trained = subject.traces
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
        dropped, kind = found[path].count(False), type(subject.model.get_submodule(path)).__name__
        evidence = f"{kind}: {dropped} of {len(found[path])} results never reach the output."
        yield _found("discarded-output", "error", path, evidence)


def check_unused(subject: Subject):
    """Modules that no forward pass calls, and whose weights it does not use in another way."""
    used = {path for recorded in subject.traces for path, _ in recorded.calls}
    for recorded in subject.traces:
        live = recorded.live
        used |= {value.name.rpartition(".")[0] for value in live if value.name}
    reported: list[str] = []
    for path, module in subject.model.named_modules():
        inside = [f"{path}.{name}".rstrip(".") for name, _ in module.named_modules()]
        if path and not used & set(inside) and not any(path.startswith(f"{outer}.") for outer in reported):
            if not list(module.modules())[1:] and isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
                continue  # an empty container
            reported.append(path)
            count = sum(parameter.numel() for parameter in module.parameters())
            evidence = f"{type(module).__name__}, {count:,} parameters, is never called."
            yield _found("unused-module", "warning", path, evidence)


def check_affine(subject: Subject):
    """Whether the logits of a + b - c are those of a, plus those of b, minus those of c."""
    excess = _superposition_excess(subject.settled, subject.images)
    evaluated, _ = subject.traces
    live = evaluated.live
    structure = all(
        operation.is_affine or operation.name in ("_log_softmax", "_softmax")
        for operation in evaluated.operations
        if operation.images and any(value in live for value in operation.outputs)
    )
    if excess is not None and excess < AFFINE_TOLERANCE:
        count = sum(parameter.numel() for parameter in subject.model.parameters())
        size = subject.images.shape[1:].numel() + 1
        evidence = (
            f"f(a+b-c) and f(a)+f(b)-f(c) differ by {excess:.0e} of the logits' spread; {count:,} parameters do what "
            f"a matrix of {size} x {subject.outputs(training=False).shape[1]} does."
        )
        yield _found("affine-network", "error" if structure else "warning", "", evidence)


AFFINE_TOLERANCE = 1e-4


@torch.no_grad()
def _superposition_excess(model: nn.Module, images: torch.Tensor) -> float | None:
    """How far the logits are from affine, as a share of their spread; None where they have none."""
    images = images.to(next((p.dtype for p in model.parameters()), images.dtype))
    a, b, c = (images[start:][: max(1, min(8, len(images) // 3))] for start in (0, len(images) // 3, len(images) // 2))
    count = min(map(len, (a, b, c)))
    a, b, c = a[:count], b[:count], c[:count].flip(3)
    whole, *parts = (_free_of_shift(tensors_in(model(x))[0]) for x in (a + b - c, a, b, c))
    spread = (parts[0] - parts[2]).abs().max()
    if not spread > 1e-12 * parts[0].abs().max():
        return None
    return float((whole - parts[0] - parts[1] + parts[2]).abs().max() / spread)


def _free_of_shift(output: torch.Tensor) -> torch.Tensor:
    """Logits less their mean over the classes, which softmax and log_softmax do not see; of probabilities the logs."""
    is_softmax = (output >= 0).all() and torch.allclose(output.sum(1), output.new_ones(len(output)), atol=1e-5)
    if is_softmax:
        output = output.clamp_min(torch.finfo(output.dtype).tiny).log()
    return output - output.mean(1, keepdim=True)


def affine_equivalent(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix and bias that an affine network is worth, in eval mode.

    Returns:
        matrix (C * H * W, classes) and bias (classes,), float64, with `images.flatten(1) @ matrix + bias` equal to the
        network's logits; for one that ends in log_softmax up to that, which changes no class.

    Raises:
        ValueError: the network is not affine, or no gradient reaches its input.
    """
    model = copy.deepcopy(model).double().eval().cpu()
    origin = model(torch.zeros(1, *input_size, dtype=torch.double)).detach()
    takes_softmax = torch.allclose(origin.logsumexp(1), origin.new_zeros(1), atol=1e-9)
    logits = _free_of_shift if takes_softmax else (lambda output: output)
    bias = logits(origin)[0]
    images = torch.zeros(len(bias), *input_size, dtype=torch.double, requires_grad=True)
    own_logits = logits(model(images)).diagonal()  # class k of image k, so that one backward pass gives all gradients
    if not own_logits.requires_grad:
        raise ValueError("affine_equivalent: no gradient reaches the input of this network (detached?).")
    (gradients,) = torch.autograd.grad(own_logits.sum(), images)
    matrix = gradients.flatten(1).T
    with torch.no_grad():
        others = torch.randn(24, *input_size, generator=torch.Generator().manual_seed(0)).double()
        expected = logits(model(others))
        excess = (others.flatten(1) @ matrix + bias - expected).abs().max()
    if not excess <= AFFINE_TOLERANCE * (expected - bias).abs().max():
        raise ValueError("affine_equivalent: this network is not affine, so that no matrix replaces it.")
    return matrix, bias


def check_linear_pairs(subject: Subject):
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


def _judge_pair(first: Operation, second: Operation) -> Finding:
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
        return _found("linear-pair", "warning", first.where, evidence)
    return _found("linear-pair", "note", first.where, evidence, advice=advice)


def _layer_shape(operation: Operation) -> tuple[int, int, int, int]:
    """Channels in and out, kernel size as far as it reaches, groups."""
    if operation.name != "convolution":
        weight = operation.args[-1]
        return weight.shape[0], weight.shape[1], 1, 1
    weight, groups = operation.args[1], operation.args[8]
    reach = (weight.shape[-1] - 1) * operation.args[5][-1] + 1
    return weight.shape[1] * groups, weight.shape[0], reach, groups


def check_norms(subject: Subject):
    """Convolutions that lack the normalisation others have, and biases that normalisation takes away."""
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
                yield _found("missing-norm", "warning", operation.where, evidence)
        has_bias = operation.name == "addmm" or (operation.name == "convolution" and operation.args[2] is not None)
        if has_bias and users and all("batch_norm" in user.name for user in users):
            evidence = f"{operation.outputs[0].tensor.shape[1]} biases without effect."
            yield _found("bias-before-norm", "note", operation.where, evidence)


def _ends_in_layers(value: Value, consumers: dict) -> bool:
    """Whether all that comes of a value, through affine operations, goes into further layers."""
    users = consumers.get(value, [])
    ends = [
        user.is_layer or (not user.is_norm and user.is_affine and _ends_in_layers(user.outputs[0], consumers))
        for user in users
    ]
    return bool(ends) and all(ends)


def check_detached(subject: Subject):
    """Parameters that the output depends on and that get no gradient all the same."""
    model, _, _ = subject.step
    _, trained = subject.traces
    # Auxiliary outputs, of which the loss knows nothing, do not count.
    live = {value.name for value in Trace(trained.operations, outputs=trained.outputs[:1]).live}
    frozen = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None and name in live]
    if frozen:
        where = frozen[-1].rpartition(".")[0]
        evidence = f"{len(frozen)} parameters, {frozen[0]} to {frozen[-1]}, reach the output but get no gradient."
        yield _found("frozen-by-detach", "error", where, evidence)


@torch.no_grad()
def check_batch_leak(subject: Subject):
    """Whether an image's logits change with the images beside it, in eval mode."""
    model, images = subject.settled, subject.settled_images[:32]
    half = len(images) // 2
    # The others become their own negatives, in the other order: a change that no layer overlooks.
    others = torch.cat([images[:half], -2 * images[half:].flip(0)])
    before, after = (tensors_in(model(x))[0][:half] for x in (images, others))
    scale = before.abs().max()
    change = float((after - before).abs().max() / scale) if scale > 0 else 0.0
    if not change < 1e-5:
        evidence = f"In eval mode the logits of an image change by {100 * change:.2g} % when its neighbours do."
        yield _found("batch-leak", "error", "", evidence)


def check_output(subject: Subject):
    """Probabilities where logits belong, and outputs that ignore the image."""
    output = subject.outputs(training=True)
    sums = output.sum(1)
    are_probabilities = (output >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    if are_probabilities and subject.labels_fit:
        shifted = subject.loss_fn(output + 3, subject.labels)
        if torch.allclose(shifted, subject.loss_fn(output, subject.labels), atol=1e-5):
            evidence = "All outputs are positive and sum to 1, and the loss does not change when 3 is added to them."
            yield _found("double-softmax", "error", "", evidence)
    model, images = copy.deepcopy(subject.settled), subject.settled_images
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # a layer that starts from zero is not at fault
            nn.init.normal_(parameter, std=0.01)
    with torch.no_grad():
        logits = tensors_in(model(images))[0]
    spread = float((logits.max(0).values - logits.min(0).values).max() / logits.abs().max().clamp_min(1e-30))
    if spread < 100 * torch.finfo(logits.dtype).eps:
        evidence = f"Over {len(output)} images no logit changes by more than {spread:.0e} of the largest."
        yield _found("constant-output", "error", "", evidence)


def check_maps(subject: Subject):
    """Maps smaller than the kernels on them, and receptive fields smaller than the image."""
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
        yield _found("downsampled-too-far", "warning", where, evidence)
    with contextlib.suppress(ValueError):
        size = tuple(subject.images.shape[1:])
        rows = receptive_field(subject.model, size)
        layers = {operation.where for operation in recorded.operations if operation.name == "convolution"}
        fields = [row.receptive_field for row in rows if row.layer in layers or row.layer.endswith("convolution")]
        seen = max((max(field) if isinstance(field, tuple) else field for field in fields), default=math.inf)
        wanted = max(size[-1], LEAST_FIELD + 1)
        if seen < wanted:
            evidence = f"The last convolution sees {seen} pixels of {size[-1]}; the course asks for over {LEAST_FIELD}."
            yield _found("receptive-field", "note", "", evidence)


# Training


def check_data(subject: Subject):
    """Images that are not normalised, and labels that are no classes of the network."""
    images, labels = subject.images, subject.labels
    low, high, mean = float(images.min()), float(images.max()), float(images.mean())
    if high > 20 or (low >= 0 and mean > 0.15):
        evidence = f"The images run from {low:.3g} to {high:.3g}, with a mean of {mean:.3g}."
        yield _found("input-scale", "warning", "", evidence)
    output = subject.outputs(training=False)
    if output.ndim == 2 and not subject.labels_fit:
        evidence = f"Labels run from {int(labels.min())} to {int(labels.max())}, for {output.shape[1]} outputs."
        yield _found("label-range", "error", "", evidence)


def check_activations(subject: Subject):
    """Rectified layers most of whose channels are off for all images."""
    recorded = trace(subject.model, subject.images[:64], training=True)
    rectified = ("relu", "relu_", "hardtanh", "hardtanh_", "clamp_min", "clamp_min_", "threshold")
    for operation in recorded.operations:
        if operation.name in rectified and operation.images and operation.outputs:
            output = operation.outputs[0].tensor
            channels = output.transpose(0, 1).flatten(1) if output.ndim > 1 else output[None]
            dead = float((channels <= 0).all(1).float().mean())
            if dead > 0.5:
                evidence = f"{100 * dead:.0f} % of {len(channels)} channels are 0 for every image."
                yield _found("dead-activation", "warning", operation.where, evidence)


def check_gradients(subject: Subject):
    """Gradients of one batch, layer by layer, against the size of the weights."""
    if not subject.labels_fit:
        return
    model, _, _ = subject.step
    sizes = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.grad is not None and weight.ndim > 1:
            sizes[path] = float(weight.grad.norm() / weight.detach().norm().clamp_min(1e-12))
    if not sizes:
        return
    largest = max(sizes.values())
    for path, size in sizes.items():
        evidence = f"Gradient over weight: {size:.1e} here, {largest:.1e} in the layer with the most."
        if not size < 1e2:
            yield _found("exploding-gradient", "warning", path, evidence)
        elif size < 1e-6 and size < 1e-3 * largest:
            yield _found("vanishing-gradient", "warning", path, evidence)


def check_loss(subject: Subject):
    """A first loss that no network with these classes should have."""
    if not subject.labels_fit:
        return
    _, output, loss = subject.step
    chance = math.log(output.shape[1])
    accuracy = float((output.argmax(1) == subject.labels).float().mean())
    too_low = loss < 0.5 * chance and accuracy < min(1.0, 2 / output.shape[1])
    if not loss < 2 * chance or too_low:
        evidence = (
            f"The loss is {float(loss):.3g} and {100 * accuracy:.0f} % are right; guessing has a loss of "
            f"ln({output.shape[1]}) = {chance:.3g}."
        )
        yield _found("initial-loss", "warning", "", evidence)


def check_eval_mode(subject: Subject):
    """Accuracy with BatchNorm in train and in eval mode, once it has seen a batch; dropout is off in both."""
    norms = [module for module in subject.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms or not subject.labels_fit or not all(norm.num_batches_tracked for norm in norms):
        return
    model = copy.deepcopy(subject.model).train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    with torch.no_grad():
        trained = tensors_in(model(subject.images))[0]
    accuracies = [
        float((logits.argmax(1) == subject.labels).float().mean()) for logits in (trained, subject.outputs(False))
    ]
    if abs(accuracies[0] - accuracies[1]) > 0.15:
        percent = [f"{100 * accuracy:.0f} %" for accuracy in accuracies]
        evidence = f"{percent[0]} are right in train mode without dropout, {percent[1]} in eval mode."
        yield _found("eval-mode-gap", "warning", "", evidence)


def check_optimizer(subject: Subject):
    """Parameters that the optimiser does not have."""
    if subject.optimizer is None:
        return
    held = {id(parameter) for group in subject.optimizer.param_groups for parameter in group["params"]}
    missed = [
        name for name, parameter in subject.original.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]  # fmt: skip
    if missed:
        evidence = f"{len(missed)} parameters are not among the optimiser's, the first {missed[0]}."
        yield _found("optimizer-misses-parameters", "error", missed[0].rpartition(".")[0], evidence)


def check_learning_rate(subject: Subject):
    """Where the given rate lies on the curve of the range test."""
    if subject.optimizer is None or not subject.labels_fit:
        return
    curve = learning_rate_range(
        subject.original, subject.images[:64], subject.labels[:64], subject.loss_fn, subject.optimizer
    )
    given = subject.optimizer.param_groups[0]["lr"]
    best, limit = curve.steepest, curve.diverges
    evidence = f"The rate is {given:.2g}; the loss falls fastest at {best:.2g}" + (
        f" and diverges from {limit:.2g}." if limit else "."
    )
    if given < best / 10:
        advice = f"Raise the learning rate towards {best:.1g}, best with momentum and a warm-up."
        yield _found("learning-rate", "warning", "", evidence, advice=advice)
    elif given > 10 * best or (limit and given >= limit):
        advice = f"Lower the learning rate towards {best:.1g}."
        yield _found("learning-rate", "warning", "", evidence, advice=advice)


class RangeTest(NamedTuple):
    """Loss against learning rate, one step each; figures.plot_learning_rate_range draws it."""

    rates: list[float]
    losses: list[float]
    steepest: float  # where the loss falls fastest
    diverges: float | None  # from where it is over half as large again as at the start


def learning_rate_range(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int = 40,
) -> RangeTest:
    """Train copies of model and optimiser for some steps on one batch, the rate rising from 1e-5 to 10 (Smith 2015).

    Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186.
    """
    model, optimizer = copy.deepcopy((model, optimizer))  # together, so that the one holds the other's parameters
    model.train()
    rates, losses = [], []
    for rate in torch.logspace(-5, 1, steps).tolist():
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = loss_fn(tensors_in(model(images))[0], labels)
        if not loss.requires_grad or not math.isfinite(loss.item()):
            break
        losses.append(loss.item())
        rates.append(rate)
        if loss.item() > 4 * losses[0]:
            break
        loss.backward()
        optimizer.step()
    smooth = np.convolve(np.pad(losses, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    # losses[i] is what the steps up to rates[i - 1] made of it.
    steepest = rates[max(0, int(np.diff(smooth).argmin()))] if len(smooth) > 1 else rates[0] if rates else math.nan
    over = [rate for rate, loss in zip(rates, losses, strict=True) if loss > 1.5 * losses[0] and rate > steepest]
    return RangeTest(rates, losses, steepest, over[0] if over else None)


CHECKS = (
    check_discarded, check_affine, check_unused, check_detached, check_batch_leak, check_output,
    check_linear_pairs, check_norms, check_maps, check_activations, check_gradients, check_loss, check_eval_mode,
    check_optimizer, check_learning_rate,
)  # fmt: skip
