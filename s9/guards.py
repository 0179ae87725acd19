"""Checks before training, and error messages for failures in it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn

from netreview.traces import tensors_in
from s9.data import Data
from s9.randomness import kept_random_states
from s9.recipes import Recipe


def detached_copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of a network that keeps some of its outputs, which copy.deepcopy refuses."""
    kept = [tensor for module in model.modules() for tensor in tensors_in(vars(module)) if not tensor.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept})


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def check_network(model: nn.Module, data: Data, recipe: Recipe, processes: int = 1) -> None:
    """Try the network on two images of the data's shape, in eval and in train mode.

    `processes` share each batch, and each normalises by its own images.

    Raises:
        TypeError: it is no network.
        ValueError: it cannot be trained on them; the message says why.
    """
    if isinstance(model, type):
        raise TypeError(f"Network: {model.__name__} is a class; give an instance, {model.__name__}().")
    if not isinstance(model, nn.Module):
        raise TypeError(f"Network: give an nn.Module, not {type(model).__name__}.")
    parameters = dict(model.named_parameters())
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError("Network: it has no parameters to train.")
    for name, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"Network: {name} has no shape yet; call the network once on a batch of images.")
        if parameter.is_meta:
            raise ValueError(f"Network: {name} has no numbers, as on the meta device; build the network anew.")
        if not parameter.isfinite().all():
            raise ValueError(f"Network: {name} holds NaN or infinite numbers; build the network anew.")
    for training in (False, True):
        _check_output(_outputs(model, data, 2, training), len(data.classes), training)
    _check_last_batch(model, data, recipe, processes)


def _outputs(model: nn.Module, data: Data, count: int, training: bool):
    """What a copy gives for `count` black images."""
    device = next(model.parameters()).device
    images = torch.zeros(count, *data.train_images.shape[1:], device=device)
    try:
        with kept_random_states(), torch.set_grad_enabled(training):
            return detached_copy(model).train(training)(images)
    except Exception as error:  # whatever goes wrong in the user's own code
        shape = "×".join(map(str, images.shape[1:]))
        reason = str(error).partition("\n")[0] or type(error).__name__
        mode = "train" if training else "eval"
        raise ValueError(f"Network: it does not take {count} images of {shape} in {mode} mode ({reason}).") from error


def _check_output(logits, classes: int, training: bool) -> None:
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    mode = "train" if training else "eval"
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2:
        raise ValueError(f"Network: for 2 images it gives {shape} instead of logits (2, classes) in {mode} mode.")
    if logits.shape[1] != classes:
        raise ValueError(
            f"Network: it has {logits.shape[1]} outputs, and the data {classes} classes; build it with "
            f"{classes} outputs."
        )
    if training and not logits.requires_grad:
        raise ValueError("Network: no gradient reaches its output; look for detach, no_grad, argmax or numpy in it.")


def _check_last_batch(model: nn.Module, data: Data, recipe: Recipe, processes: int) -> None:
    """BatchNorm on maps of one pixel cannot normalise a single image."""
    count, size = len(data.train_labels), recipe.batch_size

    def leaves_one(size: int) -> bool:
        return (count % size or size) // processes <= 1  # where there is none, a process takes one with no weight

    if not leaves_one(size):
        return
    try:
        _outputs(model, data, 1, training=True)
    except ValueError as error:
        better = next((larger for larger in range(size + 1, count + 1) if not leaves_one(larger)), None)
        raise ValueError(
            f"Recipe: batch_size={size} leaves a batch of a single image, which this network cannot train on; "
            + (f"give {better}." if better else "train in fewer processes.")
        ) from error


def first_layer_not_finite(model: nn.Module, images: torch.Tensor) -> str | None:
    """The first layer, in the order of the calls, whose output for `images` is not finite, or None."""
    model, found = detached_copy(model), []

    def watch(name: str, layer: nn.Module) -> None:
        def look(_, inputs, output):
            if not found and not all(tensor.isfinite().all() for tensor in tensors_in(output)):
                whole = all(parameter.isfinite().all() for parameter in layer.parameters())
                found.append(f"layer {name} ({type(layer).__name__}){'' if whole else ', with its weights,'}")

        layer.register_forward_hook(look)

    for name, layer in model.named_modules():
        if not list(layer.children()):
            watch(name, layer)
    with torch.no_grad():
        model(images)
    return found[0] if found else None


@contextlib.contextmanager
def memory_errors_told(batch_size: int) -> Iterator[None]:
    """Turn what torch says when memory runs out into one sentence.

    Raises:
        MemoryError: what ran inside needed too much memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            smaller = max(1, batch_size // 2)
            raise MemoryError(f"Recipe: batch_size={batch_size} needs too much memory; try {smaller}.") from error
        raise
