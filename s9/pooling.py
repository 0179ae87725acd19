"""The maps that a network's logits are computed from, and whether it averages all positions of them."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_map

from netreview.fields import Followed
from netreview.traces import Operation, Trace, Value

VIEWS = {  # move numbers, and compute nothing
    "view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze", "clone",
    "alias", "detach", "_to_copy", "slice", "select", "split", "split_with_sizes", "unbind", "lift_fresh",
}  # fmt: skip
MAXIMA = ("amax", "max", "maximum", "fmax", "topk", "sort", "aminmax", "kthvalue", "median")
ENOUGH = 0.75  # of the positions have the same weight: beside an average there may be a maximum of the same map


def last_maps(recorded: Trace) -> list[Value]:
    """The maps (N, C, H, W), or (N, H, W, C), of several positions that the outputs are computed from directly."""
    producers = {value: operation for operation in recorded.operations for value in operation.outputs}
    maps, waiting, seen = [], list(recorded.outputs), set()
    while waiting:
        value = waiting.pop()
        producer = producers.get(value)
        if producer is None or value in seen:
            continue
        seen.add(value)
        if value.tensor.ndim == 4 and value.tensor.shape[2:].numel() > 1 and producer.name not in VIEWS:
            maps.append(value)
        elif _averages_one_position(producer):
            maps.append(producer.images[0])
        else:
            waiting += producer.images
    return maps


def _averages_one_position(operation: Operation) -> bool:
    source = operation.images[0].tensor if operation.images else None
    is_average = operation.name == "mean" or "avg_pool2d" in operation.name
    return is_average and source is not None and source.ndim == 4 and source.shape[2:].numel() == 1


def averages_all(recorded: Trace, value: Value) -> bool:
    """Whether a logit is computed from the average of all positions of a map: by the weights of its gradient there."""
    try:
        gradient = _gradient(recorded, value)
    except RuntimeError:  # what follows the map writes to it, or has no derivative
        return False
    return any(_even(gradient.movedim(channels, 1).flatten(2)) for channels in (1, 3))


def _gradient(recorded: Trace, start: Value) -> torch.Tensor:
    """Of the first logit of each image: by doing again, with a graph, what was done after `start` had been made."""
    leaf = start.tensor.detach().clone().requires_grad_()
    made = {start: leaf * 1.0}
    first = next(i for i, operation in enumerate(recorded.operations) if start in operation.outputs)
    with torch.enable_grad():
        for operation in recorded.operations[first + 1 :]:
            if any(value in made for value in operation.inputs):
                _again(operation, made)
        (gradient,) = torch.autograd.grad(made[recorded.outputs[0]].flatten(1)[:, 0].sum(), leaf)
    return gradient


def _again(operation: Operation, made: dict[Value, torch.Tensor]) -> None:
    """Do an operation with the values made so far in place of those that were recorded."""
    replaced = {id(value.tensor): made[value] for value in operation.inputs if value in made}

    def now(argument):
        return replaced.get(id(argument), argument) if isinstance(argument, torch.Tensor) else argument

    results = operation.function(*tree_map(now, operation.args), **tree_map(now, operation.named))
    results = [r for r in (results if isinstance(results, tuple | list) else [results]) if isinstance(r, torch.Tensor)]
    made.update(zip(operation.outputs, results, strict=False))


def _even(weights: torch.Tensor) -> bool:
    """Whether the weights of positions, (N, C, positions), are all there and nearly all the same."""
    used = weights[weights.abs().amax(2) > 0]  # the channels that this logit depends on
    if not len(used):
        return False
    middle = used.median(1, keepdim=True).values
    same = (used - middle).abs() <= 1e-3 * middle.abs()
    return bool((used != 0).all() and (same.float().mean(1) >= ENOUGH).all())


def takes_maximum(operation: Operation, followed: Followed) -> bool:
    """Whether it is max pooling: over positions of a map, and not as a number to divide by."""
    if not operation.images or not operation.outputs:
        return False
    if "max_pool" in operation.name:
        return operation.images[0].tensor.ndim == 4 or "max_pool1d" in operation.name or "3d" in operation.name
    if operation.name not in MAXIMA:
        return False
    sources, result = [value.tensor for value in operation.images], operation.outputs[0]
    fewer = result.tensor.numel() < max(source.numel() for source in sources)
    pools = fewer and sources[0].ndim > 2 and result.tensor.shape[:2] == sources[0].shape[:2]
    before = max(max(followed.fields[value].extent) for value in operation.images if value in followed.fields)
    widens = max(followed.fields[result].extent) > before
    return (pools or widens) and not _only_scales(result, followed.recorded)


def _only_scales(result: Value, recorded: Trace) -> bool:
    """Whether a maximum is only subtracted from, or divides, larger tensors, as in a softmax or a normalisation."""
    followers = recorded.consumers.get(result, [])
    while len(followers) == 1 and (followers[0].name in VIEWS or followers[0].name.startswith(("clamp", "add"))):
        if len(followers[0].images) > 1:
            return False
        followers = recorded.consumers.get(followers[0].outputs[0], [])
    return bool(followers) and all(
        operation.name.rstrip("_") in ("sub", "div") and operation.outputs[0].tensor.numel() > result.tensor.numel()
        for operation in followers
    )
