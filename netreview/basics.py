"""The first questions: whether there is a network that runs, on data of the right kind."""

import torch
from torch import nn

from netreview.copies import DoesNotRun
from netreview.findings import Found, check
from netreview.subject import Subject, Unanswerable
from netreview.traces import tensors_in

DROPS = ("native_dropout", "bernoulli", "bernoulli_", "alpha_dropout", "feature_dropout")


@check(
    "wrong-type",
    "error",
    advice="Convert the images where they are loaded, with .float() or to the type of the weights, and normalise them.",
)
def image_type(subject: Subject):
    """Images of a type that the network does not take, such as uint8."""
    images, wanted = subject.images, subject.weight_dtype
    if images.dtype == wanted:
        return
    try:
        subject.run(images)
    except DoesNotRun as error:
        converted = images.to(wanted)
        if images.dtype == torch.uint8:  # judge the rest by what will be done about it
            axes = [0, *range(2, converted.ndim)]
            mean, std = converted.mean(axes, keepdim=True), converted.std(axes, keepdim=True)
            converted = (converted - mean) / std.clamp_min(1e-3)
        subject.run(converted)
        subject.images = converted
        yield Found(error.where, f"The images are {images.dtype}, the network's weights {wanted}.")


@check(
    "not-finite",
    "error",
    advice="Nothing can be learnt with these numbers: start again from new weights, with a lower learning rate.",
    stops=True,
)
def not_finite(subject: Subject):
    """Images or weights that hold NaN or infinity."""
    bad = [name for name, value in subject.model.named_parameters() if not _finite(value)]
    bad += [name for name, value in subject.model.named_buffers() if bool(value.isnan().any())]  # masks hold infinity
    if bad:
        evidence = f"{len(bad)} of the network's tensors hold NaN or infinity, the first {bad[0]}."
        yield Found(bad[0].rpartition(".")[0], evidence)
    if not _finite(subject.images):
        count = int((~subject.images.isfinite()).flatten(1).any(1).sum())
        evidence = f"{count} of {len(subject.images)} images hold NaN or infinity."
        yield Found("", evidence, "Look at how these images are loaded and normalised, such as a division by zero.")


def _finite(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


@check(
    "quantised",
    "note",
    advice="Review the network in floating point, as it was before it was quantised.",
    stops=True,
)
def quantised(subject: Subject):
    """Networks whose layers are quantised, which are for use and not for training."""
    for path, module in subject.model.named_modules():
        if ".quantized" in type(module).__module__ or "quantization.pt2e" in type(module).__module__:
            yield Found(path, f"{type(module).__name__} is quantised: it takes no gradient.")
            return


@check(
    "does-not-run",
    "error",
    advice="Look at this module, and at the shape of what it is given.",
    stops=True,
)
def does_not_run(subject: Subject):
    """Networks that raise an error on all images, in eval mode or in train mode."""
    said = set()
    for training in (False, True):
        try:
            subject.run(subject.images, training)
        except DoesNotRun as error:
            if str(error) not in said:
                said.add(str(error))
                yield Found(error.where, str(error))


@check(
    "fixed-batch-size",
    "error",
    advice="Give no parameter, view or expand the number of images: take it from x.shape[0], or use -1 or 1.",
)
def fixed_batch_size(subject: Subject):
    """Networks that run on all images and not on two."""
    try:
        subject.run(subject.images[:2])
    except DoesNotRun as error:
        evidence = f"It runs on {len(subject.images)} images and not on 2, where {error}."
        sized = [
            name for name, p in subject.model.named_parameters() if p.ndim > 1 and p.shape[0] == len(subject.images)
        ]
        if sized and len(subject.images) > 2:
            evidence += f" Of the batch's size: {', '.join(sized[:3])}."
        yield Found(sized[0] if sized else error.where, evidence)


@check(
    "nothing-trainable",
    "error",
    advice="Set requires_grad on what shall learn, the new head at least, after the rest is frozen.",
)
def nothing_trainable(subject: Subject):
    """Networks all of whose parameters are frozen."""
    parameters = list(subject.original.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield Found("", f"None of {len(parameters)} parameters has requires_grad set.")


@check(
    "output-shape",
    "error",
    advice="Return one row of logits for each image, (N, classes): flatten before or after the head.",
)
def output_shape(subject: Subject):
    """Outputs other than a row of numbers for each image."""
    result = subject.run(subject.images)
    shapes = [tuple(tensor.shape) for tensor in tensors_in(result)]
    if not shapes:
        yield Found("", f"The network returns a {type(result).__name__} without a tensor that could be the logits.")
        return
    try:
        logits = subject.picked(result)
    except Unanswerable:
        yield Found("", f"{len(subject.images)} images go in, and {' and '.join(map(str, shapes))} comes out.")
        return
    if logits.ndim > 2:
        yield Found("", f"The output has a shape of {tuple(logits.shape)}, with positions left beside the classes.")
    elif len(logits) == len(subject.images) and not isinstance(result, torch.Tensor) and len(shapes) > 1:
        evidence = (
            f"Of {len(shapes)} tensors in the output, that of shape {tuple(logits.shape)} is treated as the logits."
        )
        yield Found("", evidence, "Nothing has to change, if it is: the review looks at this one.", "note")


@check(
    "random-in-eval",
    "error",
    advice="Give it training=self.training, or make it a module in __init__, so that model.eval() switches it off.",
)
def random_in_eval(subject: Subject):
    """Networks that draw random numbers in eval mode, so that two passes differ."""
    live = subject.evaluated.live
    draws = [op for op in subject.evaluated.operations if op.is_random and any(value in live for value in op.outputs)]
    places: dict[str, str] = {}
    for operation in draws:
        places.setdefault(operation.where, operation.name)
    for where, name in places.items():
        drops = name in DROPS
        evidence = f"{name.replace('native_', '')} draws random numbers in eval mode: two passes give two answers."
        advice = None if drops else "Draw only where self.training is set, unless random answers are meant."
        yield Found(where, evidence, advice, None if drops else "warning")


def batchnorms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The BatchNorms of a model, by their paths."""
    kind = nn.modules.batchnorm._BatchNorm
    return [(path, module) for path, module in model.named_modules() if isinstance(module, kind)]
