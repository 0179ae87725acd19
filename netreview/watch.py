"""Watches some steps of a training loop as it is, and says what is wrong with the loop."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from netreview.traces import tensors_in
from netreview.watch_findings import judged
from netreview.watch_record import LOOKED_AT, Batch, Loss, Step, Watched

LOSSES = {
    "cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss", "kl_div", "multi_margin_loss", "soft_margin_loss",
}  # fmt: skip


class watch:
    """Watch a training loop: `with watch(model, optimizer) as watched: ...`, then `watched.findings`.

    The loop is the user's own, unchanged. It is seen by hooks of the model, of its parameters and of all optimisers,
    and by a mode that sees calls of loss functions; all of them are gone afterwards. Some 10 to 50 steps are enough.

    Args:
        model: the network that is trained; where it is wrapped, the wrapped one or the wrapper.
        optimizer: that is meant to train it; without one all optimisers that step are taken for it.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None):
        if not isinstance(model, nn.Module):
            raise TypeError(f"watch: the model is a {type(model).__name__}, and has to be an nn.Module.")
        self.watched = Watched(model, optimizer, judged)
        self.handles: list[RemovableHandle] = []
        self.schedulers: list[tuple[LRScheduler, Callable | None]] = []  # and the step that each had of its own

    def __enter__(self) -> Watched:
        watched = self.watched
        looked_at = _looked_at(watched.model)
        self.handles = [
            watched.model.register_forward_hook(lambda _, inputs, output: _passed(watched, inputs, output)),
            register_optimizer_step_pre_hook(lambda optimizer, *_: _before_step(watched, optimizer, looked_at)),
            register_optimizer_step_post_hook(lambda optimizer, *_: _after_step(watched, optimizer, looked_at)),
        ]
        for name, parameter in watched.model.named_parameters():
            if parameter.requires_grad and parameter.is_leaf:
                note = _noting(watched, name)
                self.handles.append(parameter.register_post_accumulate_grad_hook(note))
        self._watch_schedulers()
        self.mode = _Calls(watched)
        self.mode.__enter__()
        return watched

    def __exit__(self, kind, error, trace) -> None:
        self.mode.__exit__(kind, error, trace)
        for handle in self.handles:
            handle.remove()
        for scheduler, own in self.schedulers:
            if own is None:
                del scheduler.step
            else:
                scheduler.step = own
        self.watched.error = error
        self.watched.kept = [kept for kept in self.watched.kept if kept() is not None]

    def _watch_schedulers(self) -> None:
        """Count the calls of all schedulers of the optimiser; those that are made later are not seen."""
        watched = self.watched
        holders = gc.get_referrers(watched.given) if watched.given else []
        holders += [owner for holder in holders if type(holder) is dict for owner in gc.get_referrers(holder)]
        kinds = (LRScheduler, ReduceLROnPlateau)
        for scheduler in {id(one): one for one in holders if issubclass(type(one), kinds)}.values():
            if scheduler.optimizer is watched.given:
                watched.schedulers.append((type(scheduler).__name__, 0))
                self.schedulers.append((scheduler, vars(scheduler).get("step")))
                scheduler.step = _counting(scheduler.step, watched, len(watched.schedulers) - 1)


def _counting(step: Callable, watched: Watched, number: int) -> Callable:
    def counted(*args, **kwargs):
        name, calls = watched.schedulers[number]
        watched.schedulers[number] = name, calls + 1
        watched.current.scheduled += 1
        watched.early_schedules += not watched.steps
        return step(*args, **kwargs)

    return counted


def _noting(watched: Watched, name: str) -> Callable:
    def note(_):
        watched.reached.add(name)
        watched.current.accumulated = True

    return note


def _looked_at(model: nn.Module) -> list[nn.Parameter]:
    """A few small parameters, all over the network: those whose changes and left-over gradients are looked at."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.numel()]
    small = sorted(trained, key=lambda parameter: parameter.numel())[: max(1, len(trained) // 2)]
    return [*small[:4], *trained[-2:]]


def _passed(watched: Watched, inputs: tuple, output) -> None:
    """A pass through the network."""
    outputs = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    current, training = watched.current, watched.model.training
    if not outputs:
        return
    if not outputs[0].requires_grad:
        current.without_graph += training
        return
    current.passes += 1
    current.evaluating += not training
    outputs[0].register_hook(lambda _: _reached(watched))
    if len(watched.batches) < LOOKED_AT:
        images = next((tensor for tensor in tensors_in(inputs) if tensor.is_floating_point()), None)
        if images is not None and images.ndim > 1:
            with torch.no_grad():
                deviation, mean = torch.std_mean(images.detach().float())
                batch = Batch(len(images), mean, deviation, images.detach().abs().amax(), images.detach().sum())
            watched.batches.append(batch)


def _reached(watched: Watched) -> None:
    """A backward pass has come to the network's output: its parameters have not got their gradients yet."""
    current = watched.current
    current.backwards += 1
    watched.backwards += 1
    if 0 < len(watched.steps) < LOOKED_AT and not current.accumulated:
        gradients = [p.grad for p in watched.model.parameters() if p.grad is not None and not p.grad.is_sparse]
        current.left_over = _largest(gradients) if gradients else None


def _largest(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The largest absolute value, as a tensor, so that a GPU need not be waited for."""
    with torch.no_grad():
        return torch.stack([norm.float().to(tensors[0].device) for norm in torch._foreach_norm(tensors)]).amax()


def _before_step(watched: Watched, optimizer: torch.optim.Optimizer, looked_at: list[nn.Parameter]) -> None:
    own = {id(parameter) for parameter in watched.model.parameters()}
    holds = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if watched.given is not None and optimizer is not watched.given and not any(id(p) in own for p in holds):
        return  # another network's, as in adversarial training
    watched.optimizers.add(optimizer)
    current = watched.current
    current.rates = tuple(float(group["lr"]) for group in optimizer.param_groups if "lr" in group)
    gradients = [p.grad for p in holds if p.grad is not None and not p.grad.is_sparse]
    if len(watched.steps) < LOOKED_AT:
        current.gradient = _largest(gradients) if gradients else torch.zeros(())
        watched._before = [parameter.detach().clone() for parameter in looked_at]


def _after_step(watched: Watched, optimizer: torch.optim.Optimizer, looked_at: list[nn.Parameter]) -> None:
    if optimizer not in watched.optimizers:
        return
    before = vars(watched).pop("_before", None)
    if before:
        with torch.no_grad():
            pairs = zip(looked_at, before, strict=True)
            watched.current.change = _largest([now.detach() - then for now, then in pairs])
    watched.steps.append(watched.current)
    watched.current = Step()


class _Calls(TorchFunctionMode):
    """Sees calls of loss functions, and sums of losses."""

    def __init__(self, watched: Watched):
        super().__init__()
        self.watched = watched
        self.ages = WeakTensorKeyDictionary()  # a loss, or a sum of losses: how many steps there were before its first

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if isinstance(result, torch.Tensor):
            if name in LOSSES and result.requires_grad:
                self._lost(name, result, args, kwargs or {})
            elif name in ("add", "__add__", "__iadd__", "__radd__", "add_") and result.requires_grad:
                self._added(result, args)
            elif name in ("sub", "__sub__", "rsub", "__rsub__") and result.requires_grad and len(args) == 2:
                self._subtracted(result, args)
        return result

    def _lost(self, name: str, result: torch.Tensor, args: tuple, kwargs: dict) -> None:
        given = (*args, *(kwargs[key] for key in ("input", "target") if key in kwargs))
        if len(given) < 2 or not all(isinstance(one, torch.Tensor) for one in given[:2]):
            return
        outputs, targets = given[:2]
        watched = self.watched
        if result.numel() == 1:
            self._remember(result)
            watched.kept.append(weakref.ref(result))
        if len(watched.losses) < 20 * LOOKED_AT:
            labels = targets.detach() if not targets.is_floating_point() and targets.ndim == 1 else None
            classes = outputs.shape[1] if outputs.ndim > 1 else 0
            shapes = tuple(outputs.shape), tuple(targets.shape)
            value = result.detach().mean()
            watched.losses.append(Loss(name, shapes, value, labels, classes, len(watched.steps)))

    def _remember(self, result: torch.Tensor, age: int | None = None) -> None:
        self.ages[result] = len(self.watched.steps) if age is None else age

    def _added(self, result: torch.Tensor, args: tuple) -> None:
        known = [self.ages[a] for a in args if isinstance(a, torch.Tensor) and a in self.ages]
        if known and result.numel() == 1:
            self.watched.chained += len(known) > 1 and min(known) < max(known)
            self._remember(result, min(known))

    def _subtracted(self, result: torch.Tensor, args: tuple) -> None:
        if not all(isinstance(a, torch.Tensor) for a in args):
            return
        one, other = (tuple(a.shape) for a in args)
        count = max(one[:1] + other[:1], default=0)
        if count > 1 and {one, other} == {(count, 1), (count,)}:
            value = result.detach().float().mean()
            self.watched.losses.append(Loss("a difference", (one, other), value, None, 0, len(self.watched.steps)))
