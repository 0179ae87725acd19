"""Checks of what comes out of a network, and of a step of its training."""

import copy
import math

import torch
from torch import nn

from netreview.findings import check
from netreview.traces import tensors_in, trace


@check(
    "input-scale", "warning",
    "Normalise the images: subtract each channel's mean and divide by its standard deviation.",
)  # fmt: skip
def input_scale(images):
    """Images that are not normalised."""
    low, high, mean = float(images.min()), float(images.max()), float(images.mean())
    if high > 20 or (low >= 0 and mean > 0.15):
        yield "", f"The images run from {low:.3g} to {high:.3g}, with a mean of {mean:.3g}."


@check("label-range", "error", "Number the classes from 0, and give the network as many outputs as there are classes.")
def label_range(labels, eval_output, labels_fit):
    """Labels that are no classes of the network."""
    if eval_output.ndim == 2 and not labels_fit:
        evidence = f"Labels run from {int(labels.min())} to {int(labels.max())}, for {eval_output.shape[1]} outputs."
        yield "", evidence


@check(
    "batch-leak", "error",
    "Keep the first axis for the images: look for a view, permute or softmax that mixes them.",
)  # fmt: skip
def batch_leak(settled, settled_images):
    """Whether an image's logits change with the images beside it, in eval mode."""
    model, images = settled, settled_images[:32]
    half = len(images) // 2
    # The others become their own negatives, in the other order: a change that no layer overlooks.
    others = torch.cat([images[:half], -2 * images[half:].flip(0)])
    with torch.no_grad():
        before, after = (tensors_in(model(x))[0][:half] for x in (images, others))
    scale = before.abs().max()
    change = float((after - before).abs().max() / scale) if scale > 0 else 0.0
    if not change < 1e-5:
        evidence = f"In eval mode the logits of an image change by {100 * change:.2g} % when its neighbours do."
        yield "", evidence


@check("double-softmax", "error", "Return logits, without softmax: this loss takes the softmax itself.")
def double_softmax(train_output, labels, labels_fit, loss_fn):
    """Probabilities where the loss wants logits."""
    sums = train_output.sum(1)
    are_probabilities = (train_output >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    if are_probabilities and labels_fit:
        shifted = loss_fn(train_output + 3, labels)
        if torch.allclose(shifted, loss_fn(train_output, labels), atol=1e-5):
            yield "", "All outputs are positive and sum to 1, and the loss does not change when 3 is added to them."


@check("constant-output", "error", "Every image gets the same answer: look for a layer that loses its input.")
def constant_output(settled, settled_images):
    """Outputs that ignore the image."""
    model = copy.deepcopy(settled)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # a layer that starts from zero is not at fault
            nn.init.normal_(parameter, std=0.01)
    with torch.no_grad():
        logits = tensors_in(model(settled_images))[0]
    spread = float((logits.max(0).values - logits.min(0).values).max() / logits.abs().max().clamp_min(1e-30))
    if spread < 100 * torch.finfo(logits.dtype).eps:
        yield "", f"Over {len(logits)} images no logit changes by more than {spread:.0e} of the largest."


@check(
    "dead-activation", "warning",
    "Lower the learning rate or the biases, or normalise: these units are off for every image.",
)  # fmt: skip
def dead_activation(model, images):
    """Rectified layers most of whose channels are off for all images."""
    recorded = trace(model, images[:64], training=True)
    rectified = ("relu", "relu_", "hardtanh", "hardtanh_", "clamp_min", "clamp_min_", "threshold")
    for operation in recorded.operations:
        if operation.name in rectified and operation.images and operation.outputs:
            output = operation.outputs[0].tensor
            channels = output.transpose(0, 1).flatten(1) if output.ndim > 1 else output[None]
            dead = float((channels <= 0).all(1).float().mean())
            if dead > 0.5:
                evidence = f"{100 * dead:.0f} % of {len(channels)} channels are 0 for every image."
                yield operation.where, evidence


@check(
    "exploding-gradient", "warning",
    "Normalise, or scale down the initial weights: this layer's gradient is far too large.",
)  # fmt: skip
def exploding_gradient(step, labels_fit):
    """Gradients far larger than the weights."""
    sizes = _gradient_over_weight(step[0]) if labels_fit else {}
    for path, size in sizes.items():
        if not size < 1e2:
            yield path, f"Gradient over weight: {size:.1e} here, {max(sizes.values()):.1e} in the layer with the most."


@check(
    "vanishing-gradient", "warning",
    "Use ReLU, normalisation or residual connections: hardly any gradient gets to this layer.",
)  # fmt: skip
def vanishing_gradient(step, labels_fit):
    """Gradients far smaller than the weights, and than those of other layers."""
    sizes = _gradient_over_weight(step[0]) if labels_fit else {}
    for path, size in sizes.items():
        if size < 1e-6 and size < 1e-3 * max(sizes.values()):
            yield path, f"Gradient over weight: {size:.1e} here, {max(sizes.values()):.1e} in the layer with the most."


def _gradient_over_weight(model) -> dict[str, float]:
    """For each weight of a network after a backward pass, by its module's path."""
    sizes = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.grad is not None and weight.ndim > 1:
            sizes[path] = float(weight.grad.norm() / weight.detach().norm().clamp_min(1e-12))
    return sizes


@check(
    "initial-loss", "warning",
    "Check that loss, output and labels belong together, and the scale of the last layer's weights.",
)  # fmt: skip
def initial_loss(step, labels, labels_fit):
    """A first loss that no network with these classes should have."""
    if not labels_fit:
        return
    _, output, loss = step
    chance = math.log(output.shape[1])
    accuracy = float((output.argmax(1) == labels).float().mean())
    too_low = loss < 0.5 * chance and accuracy < min(1.0, 2 / output.shape[1])
    if not loss < 2 * chance or too_low:
        evidence = (
            f"The loss is {float(loss):.3g} and {100 * accuracy:.0f} % are right; guessing has a loss of "
            f"ln({output.shape[1]}) = {chance:.3g}."
        )
        yield "", evidence


@check(
    "eval-mode-gap", "warning",
    "Look at BatchNorm (momentum, batch size) and at what else differs between train and eval mode.",
)  # fmt: skip
def eval_mode_gap(model, images, labels, labels_fit, eval_output):
    """Accuracy with BatchNorm in train and in eval mode, once it has seen a batch; dropout is off in both."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms or not labels_fit or not all(norm.num_batches_tracked for norm in norms):
        return
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    with torch.no_grad():
        trained = tensors_in(model(images))[0]
    accuracies = [float((logits.argmax(1) == labels).float().mean()) for logits in (trained, eval_output)]
    if abs(accuracies[0] - accuracies[1]) > 0.15:
        percent = [f"{100 * accuracy:.0f} %" for accuracy in accuracies]
        evidence = f"{percent[0]} are right in train mode without dropout, {percent[1]} in eval mode."
        yield "", evidence


@check(
    "optimizer-misses-parameters", "error",
    "Build the optimiser from model.parameters(), after the last layer is added.",
)  # fmt: skip
def optimizer_misses_parameters(original, optimizer):
    """Parameters that the optimiser does not have."""
    if optimizer is None:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missed = [
        name for name, parameter in original.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]  # fmt: skip
    if missed:
        evidence = f"{len(missed)} parameters are not among the optimiser's, the first {missed[0]}."
        yield missed[0].rpartition(".")[0], evidence
