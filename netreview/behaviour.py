"""Checks of what comes out, and of a step of training."""

import copy
import math

import torch
from torch import nn

from netreview.findings import Found, check
from netreview.subject import Subject
from netreview.traces import tensors_in, trace


@check(
    "input-scale",
    "warning",
    advice="Normalise the images: subtract each channel's mean and divide by its standard deviation.",
)
def input_scale(subject: Subject):
    """Images that are not normalised."""
    images = subject.images
    low, high, mean = float(images.min()), float(images.max()), float(images.mean())
    if high > 20 or (low >= 0 and mean > 0.15):
        evidence = f"The images run from {low:.3g} to {high:.3g}, with a mean of {mean:.3g}."
        yield Found("", evidence)


@check(
    "label-range",
    "error",
    advice="Number the classes from 0, and give the network as many outputs as there are classes.",
)
def label_range(subject: Subject):
    """Labels that are no classes of the network."""
    labels, output = subject.labels, subject.outputs(training=False)
    if not subject.labels_fit:
        yield Found("", f"Labels run from {int(labels.min())} to {int(labels.max())}, for {output.shape[1]} outputs.")


@torch.no_grad()
@check(
    "batch-leak",
    "error",
    advice="Keep the first axis for the images: look for a view, permute or softmax that mixes them.",
)
@torch.no_grad()
def batch_leak(subject: Subject):
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
        yield Found("", evidence)


@check("double-softmax", "error", advice="Return logits, without softmax: this loss takes the softmax itself.")
def double_softmax(subject: Subject):
    """Probabilities where the loss takes logits."""
    output = subject.outputs(training=True)
    sums = output.sum(1)
    are_probabilities = (output >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    if are_probabilities and subject.labels_fit:
        shifted = subject.loss_fn(output + 3, subject.labels)
        if torch.allclose(shifted, subject.loss_fn(output, subject.labels), atol=1e-5):
            evidence = "All outputs are positive and sum to 1, and the loss does not change when 3 is added to them."
            yield Found("", evidence)


@check("constant-output", "error", advice="Every image gets the same answer: look for a layer that loses its input.")
def constant_output(subject: Subject):
    """Outputs that ignore the image."""
    model, images = copy.deepcopy(subject.settled), subject.settled_images
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # a layer that starts from zero is not at fault
            nn.init.normal_(parameter, std=0.01)
    with torch.no_grad():
        logits = tensors_in(model(images))[0]
    spread = float((logits.max(0).values - logits.min(0).values).max() / logits.abs().max().clamp_min(1e-30))
    if spread < 100 * torch.finfo(logits.dtype).eps:
        evidence = f"Over {len(images)} images no logit changes by more than {spread:.0e} of the largest."
        yield Found("", evidence)


@check(
    "dead-activation",
    "warning",
    advice="Lower the learning rate or the biases, or normalise: these units are off for every image.",
)
def dead_activations(subject: Subject):
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
                yield Found(operation.where, evidence)


@check(
    "vanishing-gradient",
    "warning",
    advice="Use ReLU, normalisation or residual connections: hardly any gradient gets to this layer.",
)
def vanishing_gradients(subject: Subject):
    """Layers that hardly any gradient gets to, against the size of their weights."""
    sizes = subject.gradients
    for path, size in sizes.items():
        if size < 1e-6 and size < 1e-3 * max(sizes.values()):
            yield Found(path, _ratio(size, sizes))


@check(
    "exploding-gradient",
    "warning",
    advice="Normalise, or scale down the initial weights: this layer's gradient is far too large.",
)
def exploding_gradients(subject: Subject):
    """Layers whose gradient is far larger than their weights."""
    sizes = subject.gradients
    for path, size in sizes.items():
        if not size < 1e2:
            yield Found(path, _ratio(size, sizes))


def _ratio(size: float, sizes: dict[str, float]) -> str:
    return f"Gradient over weight: {size:.1e} here, {max(sizes.values()):.1e} in the layer with the most."


@check(
    "initial-loss",
    "warning",
    advice="Check that loss, output and labels belong together, and the scale of the last layer's weights.",
)
def initial_loss(subject: Subject):
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
        yield Found("", evidence)


@check(
    "eval-mode-gap",
    "warning",
    advice="Look at BatchNorm (momentum, batch size) and at what else differs between train and eval mode.",
)
def eval_mode_gap(subject: Subject):
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
        yield Found("", evidence)


@check(
    "optimizer-misses-parameters",
    "error",
    advice="Build the optimiser from model.parameters(), after the last layer is added.",
)
def optimizer_misses(subject: Subject):
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
        yield Found(missed[0].rpartition(".")[0], evidence)
