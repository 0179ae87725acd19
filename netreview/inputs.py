"""Checks of the preprocessed images."""

import torch

from netreview.findings import Found, check
from netreview.subject import Subject


@check(
    "input-scale",
    "warning",
    advice="Normalise the images: subtract each channel's own mean and divide by its own standard deviation.",
    unless=("wrong-type", "not-finite"),
)
def input_scale(subject: Subject):
    """Images that are not normalised, or by another data set's numbers, where the network does not do it itself."""
    said = _said_of_scale(subject.images)
    first = next((operation for operation in subject.trained.operations if operation.is_layer), None)
    if said and (first is None or _said_of_scale(first.images[0].tensor)):
        yield Found("", said)


def _said_of_scale(images: torch.Tensor) -> str | None:
    """What is wrong with the scale of images; None where nothing is."""
    images = images.float()
    low, high = float(images.min()), float(images.max())
    axes = [axis for axis in range(images.ndim) if axis != 1 or images.ndim != 4]
    means, stds = images.mean(axes).flatten(), images.std(axes).flatten()
    mean, std = float(images.mean()), float(images.std())
    numbers = f"The images run from {low:.3g} to {high:.3g}, with a mean of {mean:.3g} and a deviation of {std:.3g}."
    if low < 0 and low >= -1 and 0 < high <= 1:
        return None  # scaled to -1..1, which is usual for dark images too
    not_normalised = high > 20 or (low >= 0 and mean > 0.15) or std < 0.05
    others_numbers = len(images) >= 8 and abs(mean) > 0.8 * std and bool((means.abs() > 0.6 * stds).all())
    return numbers if not_normalised or others_numbers else None


@check(
    "scrambled-image",
    "error",
    advice="Move the channels with permute or transpose (0, 3, 1, 2), or np.moveaxis: reshape and view keep the order.",
)
def scrambled_image(subject: Subject):
    """Images whose channels were moved by a reshape, so that they show nothing."""
    images = subject.images.float()
    if images.ndim != 4 or not 2 <= images.shape[1] <= 4 or min(images.shape[2:]) < 8:
        return
    count, channels, height, width = images.shape
    ways = {
        "(N, H, W, C) reshaped to (N, C, H, W)": images.reshape(count, height, width, channels).permute(0, 3, 1, 2),
        "(N, C, H, W) reshaped to (N, H, W, C)": images.permute(0, 2, 3, 1).reshape(count, channels, height, width),
    }
    given = _roughness(images)
    for way, mended in ways.items():
        rough = _roughness(mended)
        if rough < 0.5 and rough < 0.6 * given:
            evidence = f"Neighbouring pixels differ by {given:.2f} deviations; taken as {way}, by {rough:.2f} only."
            yield Found("", evidence)
            return


def _roughness(images: torch.Tensor) -> float:
    """Mean difference of neighbouring pixels, relative to the standard deviation."""
    deviation = (images - images.mean((0, 2, 3), keepdim=True)).square().mean().sqrt()
    steps = [images.diff(dim=axis).abs().mean() for axis in (2, 3)]
    return float(sum(steps) / 2 / deviation.clamp_min(1e-12))


@check(
    "channels-last",
    "error",
    advice="Move the channels in front: images.permute(0, 3, 1, 2), so that they are (N, C, H, W).",
)
def channels_last(subject: Subject):
    """Images given as (N, H, W, C) to a network of convolutions that takes the rows for channels."""
    shape = tuple(subject.images.shape)
    first = next((operation for operation in subject.evaluated.operations if operation.is_layer), None)
    looks_so = len(shape) == 4 and shape[3] in (1, 3, 4) and min(shape[1:3]) > 4
    convolves = first is not None and first.name == "convolution"
    if looks_so and convolves and tuple(first.images[0].tensor.shape[1:]) == shape[1:]:
        evidence = f"The images are {shape}: {shape[1]} channels of {shape[2]} x {shape[3]} pixels."
        yield Found(first.where, evidence)
