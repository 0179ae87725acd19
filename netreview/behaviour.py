"""Checks of what comes out, and of a step of training."""

import math

import torch

from netreview.basics import batchnorms
from netreview.copies import DoesNotRun, copied
from netreview.findings import Found, check
from netreview.losses import Loss
from netreview.subject import Subject, awakened
from netreview.traces import Operation

RECTIFIED = ("relu", "relu_", "hardtanh", "hardtanh_", "clamp_min", "clamp_min_", "threshold")


@check(
    "batch-leak",
    "error",
    advice="Keep axis 0 as the batch: a view, permute or softmax mixes images.",
    unless=("unregistered-parameter",),
)
def batch_leak(subject: Subject):
    """Whether an image's logits depend on the images beside it, in eval mode: asked with an image of NaN."""
    images = subject.images
    rows = len(subject.picked(subject.run(images)))
    if rows != len(images):
        yield Found("", f"{len(images)} images go in, and {rows} rows of logits come out.")
        return
    for spoilt in (0, len(images) - 1):  # what goes along the batch in one direction is seen from one end only
        changed = images.clone()
        changed[spoilt] = float("nan")
        try:
            reached = ~subject.logits(subject.run(changed)).isfinite().all(1)
        except DoesNotRun:  # it does not take NaN
            return
        others = int(reached.sum()) - int(reached[spoilt])
        if others:
            evidence = f"In eval mode, an image of NaN makes the logits of {others} of {len(images) - 1} others NaN."
            yield Found("", evidence)
            return


@check(
    "stuck-at-zero",
    "error",
    advice="Start one of the layers in a row from random weights: of two that are zero neither gets a gradient.",
)
def stuck_at_zero(subject: Subject):
    """Weights that are zero, and stay zero, as no gradient gets to them."""
    model, _, loss = subject.step
    zeros = [
        name
        for name, p in model.named_parameters()
        if not name.endswith("bias") and p.requires_grad and not p.any() and p.grad is not None and not p.grad.any()
    ]
    if not zeros or not loss.isfinite():
        return
    trained = copied(model)
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        trained, _, _ = subject._step(trained)
        optimizer.step()
    stuck = [name for name in zeros if not trained.get_parameter(name).any()]
    for where in dict.fromkeys(name.rpartition(".")[0] for name in stuck):
        yield Found(where, "All its weights are 0, and after three steps of training they still are.")


@check(
    "constant-output",
    "error",
    advice="The output does not depend on the image: look for a layer that loses its input.",
    unless=("batch-leak", "nothing-trainable", "stuck-at-zero"),
)
def constant_output(subject: Subject):
    """Outputs that ignore the image."""
    model, images = copied(subject.settled), subject.settled_images
    awakened(model)  # a layer that starts from zero is not an error
    logits = subject.logits(subject.run(images, model=model))
    spread = float((logits.max(0).values - logits.min(0).values).max() / logits.abs().max().clamp_min(1e-30))
    if spread < 100 * torch.finfo(logits.dtype).eps:
        yield Found("", f"Over {len(images)} images no logit changes by more than {spread:.0e} of the largest.")


@check(
    "dead-activation",
    "warning",
    advice="Lower the learning rate or the biases, or normalise: these units are dead (0 for every image).",
    unless=("stuck-at-zero",),
)
def dead_activations(subject: Subject):
    """ReLUs most of whose channels are 0 for all images."""
    for operation in subject.trained.operations:
        if operation.name in RECTIFIED and operation.images and operation.outputs:
            output = operation.outputs[0].tensor
            channels = output.transpose(0, 1).flatten(1) if output.ndim > 1 else output[None]
            dead = float((channels <= 0).all(1).float().mean())
            starts_from_zero = not operation.images[0].tensor.any() and not operation.name.endswith("_")
            if dead > 0.8 and len(channels) > 1 and not starts_from_zero:
                evidence = f"{100 * dead:.0f} % of {len(channels)} channels are 0 for every image."
                yield Found(operation.where, evidence)


@check(
    "vanishing-gradient",
    "warning",
    advice="Use ReLU, normalisation or residual connections: the gradient almost vanishes here.",
    unless=("stuck-at-zero", "loss-without-gradient", "frozen-by-detach", "dead-activation"),
)
def vanishing_gradients(subject: Subject):
    """Layers whose gradient is tiny relative to their weights."""
    sizes = subject.gradients if subject.labels_fit else {}
    for path, size in sizes.items():
        if size < 1e-6 and size < 1e-3 * max(sizes.values()):
            yield Found(path, _ratio(size, sizes))


@check(
    "exploding-gradient",
    "warning",
    advice="Normalise, or scale down the initial weights: this layer's gradient is far too large.",
)
def exploding_gradients(subject: Subject):
    """Layers whose gradient is far larger than their weights, where no normalisation makes up for it."""
    sizes = subject.gradients if subject.labels_fit else {}
    normalised = {op.where for op in subject.trained.operations if op.is_layer and _norm_follows(subject, op)}
    # A loss that is a sum over the images has gradients as many times as large.
    usual = max(1.0, (Loss(subject).guess or 1.0) / math.log(subject.classes)) if sizes else 1.0
    for path, size in sizes.items():
        if not size < 1e2 * usual and path not in normalised:
            yield Found(path, _ratio(size, sizes))


def _norm_follows(subject: Subject, operation: Operation) -> bool:
    users = subject.trained.consumers.get(operation.outputs[0], []) if operation.outputs else []
    return bool(users) and all(user.is_norm for user in users)


def _ratio(size: float, sizes: dict[str, float]) -> str:
    return f"Gradient over weight: {size:.1e} here, {max(sizes.values()):.1e} in the layer with the most."


@check(
    "eval-mode-gap",
    "warning",
    advice="Look at BatchNorm (momentum, batch size) and at what else differs between train and eval mode.",
    unless=("batchnorm-settings",),
)
def eval_mode_gap(subject: Subject):
    """Accuracy with BatchNorm's stored statistics, and with those of these images."""
    norms = [norm for _, norm in batchnorms(subject.model) if norm.track_running_stats]
    if not norms or not subject.labels_fit or not all(norm.num_batches_tracked for norm in norms):
        return
    stored = subject.outputs(training=False)
    fresh = subject.logits(subject.run(subject.settled_images, model=subject.settled))
    accuracies = [subject.accuracy(logits) for logits in (fresh, stored)]
    if abs(accuracies[0] - accuracies[1]) > 0.15:
        percent = [f"{100 * accuracy:.0f} %" for accuracy in accuracies]
        evidence = (
            f"{percent[0]} are right with BatchNorm's statistics of these images, {percent[1]} with the stored ones."
        )
        yield Found("", evidence)
