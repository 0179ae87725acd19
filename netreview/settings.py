"""Checks of what is set: attributes, the settings of layers, and the optimiser's."""

import difflib
import math

import torch
from torch import nn

from netreview.basics import batchnorms
from netreview.findings import Found, check
from netreview.subject import Subject

# What a scheduler, or torch itself, adds to an optimiser's groups.
OF_GROUPS = {
    "params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_lr", "max_momentum", "base_momentum",
    "swa_lr", "lr_scale",
}  # fmt: skip


@check(
    "unread-attribute",
    "warning",
    advice="Spell it as PyTorch does, requires_grad; on a module, call module.requires_grad_(False).",
)
def unread_attributes(subject: Subject):
    """Attributes that look like PyTorch's own, and that PyTorch never reads."""
    found: dict[str, list[str]] = {}
    for name, parameter in subject.original.named_parameters():
        for attribute in vars(parameter):
            if difflib.get_close_matches(attribute, ["requires_grad", "trainable"], cutoff=0.85):
                found.setdefault(attribute, []).append(name)
    for path, module in subject.original.named_modules():
        for attribute, value in vars(module).items():
            alike = difflib.get_close_matches(attribute, ["requires_grad", "trainable"], cutoff=0.85)
            if alike and isinstance(value, bool):
                found.setdefault(attribute, []).append(path or "the network")
    for attribute, places in found.items():
        still = sum(p.requires_grad for p in subject.original.parameters())
        evidence = f"{attribute} is set on {len(places)} of its parts, the first {places[0]}, and is read by nothing; "
        yield Found(places[0], evidence + f"{still} parameters have requires_grad.")


@check(
    "batchnorm-settings",
    "warning",
    advice="Leave BatchNorm's momentum at 0.1 and its eps at 1e-5, PyTorch's own: momentum is the new batch's share.",
)
def batchnorm_settings(subject: Subject):
    """BatchNorms whose running statistics do not move, or forget at once, or whose eps outweighs the variance."""
    said: dict[str, list[str]] = {}
    for path, norm in batchnorms(subject.model):
        if norm.track_running_stats and norm.momentum is not None and not 0 < norm.momentum < 0.9:
            what = "never move" if norm.momentum == 0 else "hold little more than the last batch's"
            said.setdefault(f"momentum={norm.momentum:g}: the running statistics {what}", []).append(path)
        if not 0 < norm.eps <= 0.01:
            said.setdefault(f"eps={norm.eps:g}", []).append(path)
    for what, paths in said.items():
        yield Found(paths[0], f"{what}, in {len(paths)} BatchNorms.")


@check(
    "dropout-settings",
    "warning",
    advice="Drop less, 0.1 to 0.5: p is the share that is dropped, not the share that is kept.",
)
def dropout_settings(subject: Subject):
    """Dropout that drops nearly everything."""
    for path, module in subject.model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0.8:
            severity = "error" if module.p == 1 else None
            yield Found(
                path, f"p={module.p:g}: in training {100 * module.p:g} % of the numbers are 0.", severity=severity
            )


@check(
    "left-in-eval-mode",
    "warning",
    advice="Call model.train() before each epoch of training: eval mode, set for a test, stays until then.",
)
def left_in_eval_mode(subject: Subject):
    """Networks given with their optimiser, for training, that are in eval mode all over."""
    modes = [
        module.training
        for module in subject.original.modules()
        if isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm)
    ]
    if subject.optimizer is not None and modes and not any(modes) and not subject.original.training:
        evidence = f"All {len(modes)} of its dropouts and BatchNorms are in eval mode: they would not act in training."
        # One that has been trained may have come here from a test.
        trained = any(norm.num_batches_tracked for _, norm in batchnorms(subject.original))
        yield Found("", evidence, severity="note" if trained else None)


@check(
    "optimizer-misses-parameters",
    "error",
    advice="Build the optimiser from model.parameters(), after the last layer is added.",
    unless=("nothing-trainable",),
)
def optimizer_misses(subject: Subject):
    """Parameters missing from the optimiser."""
    if subject.optimizer is None:
        return
    held = {id(parameter) for group in subject.optimizer.param_groups for parameter in group["params"]}
    own = {id(parameter): name for name, parameter in subject.original.named_parameters()}
    missed = [
        name for name, parameter in subject.original.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]  # fmt: skip
    if missed:
        strangers = len(held - own.keys())
        evidence = f"{len(missed)} parameters are missing from the optimiser, the first {missed[0]}."
        if strangers:
            evidence += f" It holds {strangers} that are not the network's: was it built for another, or for a copy?"
        yield Found(missed[0].rpartition(".")[0], evidence)


@check(
    "optimizer-settings",
    "warning",
    advice="Set it as is usual for this optimiser; nothing can be learnt with such a number.",
)
def optimizer_settings(subject: Subject):
    """Numbers of the optimiser that hinder all learning, and settings that it never reads."""
    if subject.optimizer is None:
        return
    optimizer = subject.optimizer
    for name in vars(optimizer):
        if name in optimizer.defaults or name in ("learning_rate", "wd"):
            advice = f'Set it in each of optimizer.param_groups, as group["lr"]: {name} on the optimiser is not read.'
            yield Found("", f"optimizer.{name} is set, and read by nothing.", advice)
    several = len(optimizer.param_groups) > 1
    for index, group in enumerate(optimizer.param_groups):
        where = f"group {index}" if several else ""
        for evidence, advice in _said_of_group(subject, group):
            yield Found(where, evidence, advice)


def _said_of_group(subject: Subject, group: dict):
    """What is wrong with a group's numbers, and what to do."""
    known = subject.optimizer.defaults.keys() | OF_GROUPS
    for name in group.keys() - known:
        if alike := difflib.get_close_matches(name, subject.optimizer.defaults, cutoff=0.75):
            yield f"{name!r} is set, and read by nothing.", f"Call it {alike[0]!r}."
    rate = highest_rate(group)
    if rate == 0:
        yield "Its learning rate is 0: these parameters never change.", None
    if group.get("maximize"):
        yield (
            "maximize is set: it climbs towards a higher loss.",
            "Leave out maximize=True: a loss is to be made small.",
        )
    momentum = float(group.get("momentum") or 0)
    if momentum >= 1 or momentum < 0:
        yield f"A momentum of {momentum:g} adds up steps without end.", "Set momentum to 0.9."
    first, second = group["betas"][:2] if "betas" in group else (0, 1)
    if first > second:
        yield f"betas=({first:g}, {second:g}): the first is the larger.", "Swap them: Adam's are (0.9, 0.999)."
    decay = float(group.get("weight_decay") or 0)
    if decay < 0:
        yield f"A weight decay of {decay:g} makes weights grow.", "Set weight_decay to 0, or above it."
    elif decay and (said := _said_of_decay(subject, group, decay, rate, min(momentum, 0.999))):
        yield said, "Lower weight_decay: 5e-4 is usual for SGD and Adam, 0.01 to 0.1 for AdamW."


def _said_of_decay(subject: Subject, group: dict, decay: float, rate: float, momentum: float) -> str | None:
    """Whether weight decay takes weights away faster than they can be learnt."""
    decoupled = group.get("decoupled_weight_decay", isinstance(subject.optimizer, torch.optim.AdamW))
    if "betas" not in group or decoupled:
        shrinks = rate * decay / (1 - momentum)  # the share of each weight that a step takes away
        steps = math.log(2) / shrinks if shrinks > 0 else math.inf
        return f"With a weight decay of {decay:g} all weights halve in {steps:.0f} steps." if steps < 60 else None
    model, _, _ = subject.step  # Adam with L2: the decay competes with the gradient
    held = {id(parameter) for parameter in group["params"]}
    names = [name for name, p in subject.original.named_parameters() if id(p) in held and p.ndim > 1]
    pairs = [(decay * p.norm(), p.grad.norm()) for p in map(model.get_parameter, names) if p.grad is not None]
    outweighed = sum(bool(pull > 3 * gradient) for pull, gradient in pairs)
    if outweighed > len(pairs) / 2:
        return f"A weight decay of {decay:g} is over three times the gradient in {outweighed} of {len(pairs)} layers."
    return None


def highest_rate(group: dict) -> float:
    """The highest learning rate that a group's scheduler, if it has one, will bring it to."""
    return max(float(group[name]) for name in ("lr", "initial_lr", "max_lr") if name in group)
