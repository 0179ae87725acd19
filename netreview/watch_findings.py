"""What is wrong with a training loop, by what was seen of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from netreview.findings import Finding
from netreview.watch_record import LOOKED_AT, Watched

PER_STEP = ("OneCycleLR", "CyclicLR")  # schedulers that are called after each step of the optimiser
TO_ZERO = ("Cosine", "Linear", "Polynomial", "Sequential", "Lambda")  # these may end there, after any number of calls
REPEATED = 6  # times in a row the same batch


class WatchCheck(NamedTuple):
    """One check of a loop."""

    id: str
    severity: str
    advice: str
    finds: Callable[[Watched], Iterator[str]]

    @property
    def doc(self) -> str:
        """What it looks for, in one line."""
        return (self.finds.__doc__ or "").strip().partition("\n")[0]


WATCH_CHECKS: dict[str, WatchCheck] = {}


def check(id: str, severity: str, advice: str) -> Callable:
    """Register a function from a Watched to the evidence of what it finds."""

    def register(finds: Callable[[Watched], Iterator[str]]) -> Callable:
        WATCH_CHECKS[id] = WatchCheck(id, severity, advice, finds)
        return finds

    return register


def judged(watched: Watched) -> Iterator[Finding]:
    """What all checks find."""
    for one in WATCH_CHECKS.values():
        for evidence in one.finds(watched):
            yield Finding(one.id, one.severity, "", evidence, one.advice)


@check("loop-stopped", "error", "Mend what the message says; the other findings may say why.")
def stopped(watched: Watched) -> Iterator[str]:
    """A loop that ended in an error of its own."""
    error = watched.error
    explained = ("does not require grad", "out of bounds", "modified by an inplace operation")
    if isinstance(error, Exception) and not any(part in str(error) for part in explained):
        yield f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


@check(
    "loss-without-graph",
    "error",
    "Compute the loss from the network's output, outside of torch.no_grad(), without .detach(), .item() or argmax.",
)
def without_graph(watched: Watched) -> Iterator[str]:
    """Training passes under no_grad, and losses that no gradient gets through."""
    passes = sum(step.passes for step in _all(watched))
    blind = sum(step.without_graph for step in _all(watched))
    if watched.error is not None and "does not require grad" in str(watched.error):
        yield "backward() was called on a loss that does not depend on any parameter."
    elif watched.steps and blind and not passes:
        yield f"All {blind} passes in train mode were made without gradients, between {len(watched.steps)} steps."
    elif watched.steps and passes >= 2 and not watched.backwards:
        yield f"{passes} passes were made, {len(watched.steps)} steps taken, and no gradient came to the output."


@check("no-step", "error", "Call optimizer.step() after each loss.backward(), on the optimiser of this network.")
def no_step(watched: Watched) -> Iterator[str]:
    """Backward passes without steps."""
    if not watched.steps and watched.backwards >= 3 and watched.error is None:
        yield f"{watched.backwards} backward passes, and no step of an optimiser that holds this network's parameters."


@check("no-backward", "error", "Call loss.backward() between the pass and optimizer.step().")
def no_backward(watched: Watched) -> Iterator[str]:
    """Steps, or passes, without backward passes."""
    passes = sum(step.passes for step in _all(watched))
    if passes >= 3 and not watched.backwards and watched.error is None and not watched.steps:
        yield f"{passes} passes with gradients in train mode, and no backward pass came to the output."


@check(
    "step-before-backward", "error", "Call zero_grad(), then the pass, then loss.backward(), and optimizer.step() last."
)
def early_step(watched: Watched) -> Iterator[str]:
    """Steps that use the gradients of the batch before, since they come before the backward pass."""
    first = watched.steps[0] if watched.steps else None
    changed = "modified by an inplace operation" in str(watched.error or "")
    later = len(watched.steps) >= 3 and all(step.backwards for step in watched.steps[1:])
    if first and first.passes and not first.backwards and (changed or later):
        yield "The first step came after a pass and before its backward pass."


@check("gradients-not-cleared", "error", "Call optimizer.zero_grad() in each step, before loss.backward().")
def not_cleared(watched: Watched) -> Iterator[str]:
    """Gradients of earlier steps that are still there when the next backward pass begins."""
    steps = [step for step in watched.steps[1:LOOKED_AT] if step.accumulated]
    kept = sum(step.left_over is not None and float(step.left_over) > 0 for step in steps)
    if kept >= max(1, len(steps) / 2):
        yield f"Before {kept} of {len(steps)} backward passes that followed a step, there were gradients left."


@check(
    "gradients-cleared-early", "error", "Call zero_grad() before loss.backward(), or after step(), and not in between."
)
def cleared_early(watched: Watched) -> Iterator[str]:
    """Gradients that are gone when the step is taken."""
    steps = [step for step in watched.steps[:LOOKED_AT] if step.backwards and step.gradient is not None]
    if len(steps) < 2:
        return
    empty = sum(float(step.gradient) == 0 for step in steps)
    if empty == len(steps) and _holds_own(watched) and any(watched.reached):
        yield f"In {empty} of {len(steps)} steps all gradients were zero or gone, though a backward pass had been made."


@check("step-changes-nothing", "error", "Give the optimiser a learning rate over 0, and what is to be trained.")
def no_change(watched: Watched) -> Iterator[str]:
    """Steps with gradients after which the parameters are as before."""
    steps = [step for step in watched.steps[:LOOKED_AT] if step.change is not None and step.gradient is not None]
    idle = [step for step in steps if float(step.change) == 0 and float(step.gradient) > 0]
    if len(idle) >= 3 and len(idle) == len(steps) and _holds_own(watched):
        rates = ", ".join(f"{rate:g}" for rate in idle[-1].rates)
        yield f"In all {len(idle)} steps, with learning rates of {rates}, no parameter that was looked at changed."


@check(
    "optimizer-of-others",
    "error",
    "Build the optimiser from this network's parameters(), after the network is made, loaded, moved or copied.",
)
def other_parameters(watched: Watched) -> Iterator[str]:
    """Optimisers that hold none of this network's parameters."""
    if watched.optimizers and watched.steps and not _holds_own(watched):
        yield f"The optimiser took {len(watched.steps)} steps, and holds none of this network's parameters."


@check(
    "optimizer-lacks-parameters",
    "warning",
    "Build the optimiser from model.parameters(), once all layers are made.",
)
def lacking(watched: Watched) -> Iterator[str]:
    """Parameters that get gradients and that no optimiser has."""
    held = {id(p) for optimizer in watched.optimizers for group in optimizer.param_groups for p in group["params"]}
    named = dict(watched.model.named_parameters())
    missing = [name for name in named if name in watched.reached and id(named[name]) not in held]
    if watched.steps and missing and _holds_own(watched):
        yield f"{len(missing)} parameters that get gradients are in no optimiser, such as {missing[0]}."


@check(
    "parameters-without-gradient", "warning", "Use these layers in forward, or freeze them by requires_grad_(False)."
)
def unreached(watched: Watched) -> Iterator[str]:
    """Parameters that no backward pass reaches."""
    trained = [name for name, parameter in watched.model.named_parameters() if parameter.requires_grad]
    missing = [name for name in trained if name not in watched.reached]
    if watched.backwards >= 3 and missing and watched.reached:
        yield f"{len(missing)} of {len(trained)} parameters got no gradient, such as {missing[0]}."


@check(
    "trained-in-eval-mode",
    "warning",
    "Call model.train() before each epoch: eval mode, set for a test, stays.",
)
def evaluating(watched: Watched) -> Iterator[str]:
    """Steps taken in eval mode, where dropout is off and BatchNorm's statistics stand still."""
    modes = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    differs = any(isinstance(module, modes) for module in watched.model.modules())
    steps = [step for step in watched.steps if step.passes and step.backwards]
    evaluated = sum(step.evaluating == step.passes for step in steps)
    if differs and len(steps) >= 2 and evaluated > len(steps) // 2:
        yield f"{evaluated} of {len(steps)} steps were taken in eval mode."


@check("loss-kept", "warning", "Add up loss.item() or loss.detach(), not the loss: with it every step's graph is kept.")
def kept(watched: Watched) -> Iterator[str]:
    """Losses that are kept, or added up over steps, with their graphs, so that memory grows."""
    steps = len(watched.steps)
    if watched.chained >= 2:
        yield f"Losses of different steps were added with their graphs, {watched.chained} times in {steps} steps."
    elif len(watched.kept) >= max(4, steps // 2):
        yield f"{len(watched.kept)} losses of {steps} steps are still there, with their graphs."


@check("loss-not-finite", "error", "Lower the learning rate, look for log(0) and 0/0, and for NaN in the data.")
def not_finite(watched: Watched) -> Iterator[str]:
    """Losses that are NaN or infinite."""
    wrong = [loss.step for loss in watched.losses if not math.isfinite(float(loss.value))]
    scaled = any(step.backwards for step in watched.steps) and len(wrong) == 1  # fp16's scale is sought so
    if wrong and not scaled:
        yield f"{len(wrong)} of {len(watched.losses)} losses are not finite, the first after {wrong[0]} steps."


@check("loss-broadcasts", "error", "Give outputs and targets the same shape: outputs.squeeze(1), or targets[:, None].")
def broadcasts(watched: Watched) -> Iterator[str]:
    """Outputs and targets of shapes that broadcast to each other."""
    for loss in watched.losses:
        outputs, targets = loss.shapes
        if loss.name == "a difference" or (loss.name.endswith(("mse_loss", "l1_loss")) and outputs != targets):
            yield f"{loss.name} takes {outputs} and {targets} for {torch.broadcast_shapes(outputs, targets)} numbers."
            return


@check("label-range", "error", "Number the classes from 0 to one less than the outputs.")
def out_of_range(watched: Watched) -> Iterator[str]:
    """Labels that are no classes of the network."""
    error = str(watched.error or "")
    if ("Target" in error and "out of bounds" in error) or "device-side assert" in error:
        yield f"The loss ended with: {error.partition(chr(10))[0][:200]}"


@check("not-shuffled", "warning", "Give the training DataLoader shuffle=True: each batch should hold all classes.")
def not_shuffled(watched: Watched) -> Iterator[str]:
    """Labels that come in the order of the classes."""
    labels = [loss.labels for loss in watched.losses if loss.labels is not None and len(loss.labels) >= 8][:LOOKED_AT]
    classes = max((loss.classes for loss in watched.losses), default=0)
    if len(labels) < 3 or classes < 3:
        return
    several = len({int(label) for batch in labels for label in batch.unique()}) > 1
    ordered = all(bool((batch.diff() >= 0).all()) for batch in labels)
    alone = sum(len(batch.unique()) == 1 for batch in labels)
    if ordered and (several or len(labels) >= 3):
        yield f"In all {len(labels)} batches the labels are sorted; {alone} hold one class only."


@check("same-batch", "warning", "Take a new batch in each step: next(iter(loader)) begins anew each time.")
def same_batch(watched: Watched) -> Iterator[str]:
    """The same images in each step."""
    sums = [float(batch.sum) for batch in watched.batches]
    run = longest = 1
    for before, now in pairwise(sums):
        run = run + 1 if before == now else 1
        longest = max(longest, run)
    if longest >= REPEATED and any(sums):
        yield f"{longest} batches in a row have the same images."


@check("single-image-batches", "warning", "Train on batches of more images: BatchNorm needs several.")
def single(watched: Watched) -> Iterator[str]:
    """Batches of one image where there is BatchNorm."""
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in watched.model.modules())
    alone = sum(batch.count == 1 for batch in watched.batches)
    if norms and len(watched.batches) >= 3 and alone > len(watched.batches) // 2:
        yield f"{alone} of {len(watched.batches)} batches hold one image."


@check("not-normalised", "warning", "Divide pixels by 255, subtract each channel's mean and divide by its deviation.")
def unnormalised(watched: Watched) -> Iterator[str]:
    """Images far from a mean of 0 and a deviation of 1, where no normalisation comes first."""
    first = next(
        (m for m in watched.model.modules() if not list(m.children()) and not isinstance(m, nn.Identity)), None
    )
    own = isinstance(first, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm)
    large = [batch for batch in watched.batches if float(batch.largest) > 50 and float(batch.deviation) > 10]
    if not own and len(watched.batches) >= 2 and len(large) == len(watched.batches):
        batch = large[0]
        yield f"The images have a mean of {float(batch.mean):.3g} and a deviation of {float(batch.deviation):.3g}."


@check("loss-stands-still", "warning", "Review the network and its learning rate, by netreview.review.")
def stands_still(watched: Watched) -> Iterator[str]:
    """A loss of classification that is as high as a constant guess's after many steps."""
    losses = [loss for loss in watched.losses if loss.name == "cross_entropy" and loss.classes > 1]
    values = [float(loss.value) for loss in losses]
    if len(watched.steps) < 100 or len(values) < 100 or not all(map(math.isfinite, values)):
        return
    guess, late = math.log(losses[0].classes), sum(values[-20:]) / 20
    if late >= 0.995 * guess:
        yield f"After {len(watched.steps)} steps the loss is {late:.3g}; a constant guess has {guess:.3g}."


@check(
    "scheduler-calls",
    "warning",
    "Call OneCycleLR and CyclicLR after each step, other schedulers after each epoch.",
)
def scheduler_calls(watched: Watched) -> Iterator[str]:
    """Schedulers that are called too often, never, or before the optimiser."""
    steps = len(watched.steps)
    for name, calls in watched.schedulers:
        if name in PER_STEP and steps >= 10 and calls == 0:
            yield f"{name} was not called in {steps} steps."
        elif watched.early_schedules and steps and watched.steps[0].rates:
            yield f"{name} was called before the optimiser's first step."
    rates = [step.rates[0] for step in watched.steps if step.rates]
    if len(rates) >= 10 and rates[-1] < 1e-3 * max(rates) and rates[0] == max(rates):
        names = ", ".join(name for name, calls in watched.schedulers if calls) or "something"
        if not any(
            name.startswith(("Cosine", "Linear", "Polynomial", "Sequential", "Lambda"))
            for name, _ in watched.schedulers
        ):
            yield f"{names} took the learning rate from {rates[0]:.3g} to {rates[-1]:.3g} in {steps} steps."


def _all(watched: Watched) -> list:
    return [*watched.steps, watched.current]


def _holds_own(watched: Watched) -> bool:
    own = {id(parameter) for parameter in watched.model.parameters()}
    return any(
        id(p) in own for optimizer in watched.optimizers for group in optimizer.param_groups for p in group["params"]
    )
