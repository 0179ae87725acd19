"""Copies under review, and intermediate results that several checks share."""

import functools
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from netreview.copies import DoesNotRun, copied, located
from netreview.randomness import kept_random_states
from netreview.traces import Trace, Value, tensors_in, trace


class Unanswerable(Exception):
    """A check cannot be made, for a reason that another check reports."""


class LossFails(Unanswerable):
    """The loss raised an error: on labels of the wrong kind or range, or outputs of the wrong kind."""


class Subject:
    """Copies under review, and intermediate results that several checks share.

    Each property raises DoesNotRun where the network's own code does, and Unanswerable where something else is missing
    that another check reports.
    """

    def __init__(self, model, images, labels, loss_fn, optimizer):
        self.original, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.images, self.labels = (_tensor(values).detach().clone() for values in (images, labels))
        self.model = copied(model)

    # Passes through it

    def run(self, images: torch.Tensor, training: bool = False, model: nn.Module | None = None):
        """What a fresh copy returns for images, without a graph; the same random numbers are drawn each time."""
        model = copied(model or self.model).train(training)
        with torch.no_grad(), kept_random_states(), located(model):
            torch.manual_seed(0)
            return model(images.clone())

    def outputs(self, training: bool) -> torch.Tensor:
        """The logits (N, classes) of all images."""
        return self._outputs[training]

    @functools.cached_property
    def _outputs(self) -> dict[bool, torch.Tensor]:
        return _Lazily(lambda training: self.logits(self.run(self.images, training)).float())

    @functools.cached_property
    def few(self) -> torch.Tensor:
        """Two images; all where the network does not take two."""
        try:
            self.run(self.images[:2])
            return self.images[:2]
        except DoesNotRun:
            return self.images

    @functools.cached_property
    def evaluated(self) -> Trace:
        """A pass of `few` in eval mode."""
        return trace(self.model, self.few)

    @functools.cached_property
    def trained(self) -> Trace:
        """A pass of up to 32 images in train mode."""
        images = self.images[:32] if len(self.few) == 2 else self.images
        return trace(self.model, images, training=True)

    @property
    def traces(self) -> tuple[Trace, Trace]:
        """Passes in eval mode and in train mode."""
        return self.evaluated, self.trained

    # Its output and its loss

    def logits(self, result) -> torch.Tensor:
        """Of what the network returned for all images, that which has a row of logits for each, as (N, classes)."""
        rows = _rows(self.picked(result))
        if len(rows) != len(self.images):
            raise Unanswerable
        return rows

    def rows(self, images: torch.Tensor, model: nn.Module) -> torch.Tensor:
        """The logits of some images, where the network takes fewer than it was given."""
        if len(self.few) != 2:
            raise Unanswerable
        return _rows(self.picked(self.run(images, model=model)))

    def picked(self, result) -> torch.Tensor:
        """Of what the network returned, the tensor of the logits, as it is."""
        if isinstance(result, torch.Tensor):
            candidates = [result]
        else:
            named = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
            candidates = tensors_in(named) or tensors_in(result)
        fitting = [tensor for tensor in candidates if self._are_logits(tensor)]
        if not fitting:
            raise Unanswerable
        most = self.targets.max() if self.targets is not None else 0
        wide = [tensor for tensor in fitting if _rows(tensor).shape[1] > most]
        return min(wide, key=lambda tensor: _rows(tensor).shape[1]) if wide else fitting[0]

    def _are_logits(self, tensor: torch.Tensor) -> bool:
        return tensor.is_floating_point() and tensor.ndim > 0 and _rows(tensor).ndim == 2

    def logits_of(self, recorded: Trace) -> Value:
        """The value of the logits in a trace."""
        wanted = self.picked(recorded.result)
        return next(value for value in recorded.outputs if value.tensor is wanted)

    @functools.cached_property
    def targets(self) -> torch.Tensor | None:
        """The class of each image, int64 (N,), also where the labels are one-hot or soft; None where they are none."""
        labels = self.labels
        if labels.ndim == 2 and labels.shape[1] > 1:
            return labels.argmax(1)
        labels = labels.flatten()
        whole = len(labels) == len(self.images) and bool((labels == labels.round()).all())
        return labels.long() if whole else None

    @functools.cached_property
    def classes(self) -> int:
        """How many classes the network tells apart; a single logit tells two."""
        return max(2, self.outputs(training=False).shape[1])

    @functools.cached_property
    def labels_fit(self) -> bool:
        """Whether every label is a class of the network."""
        targets = self.targets
        return targets is not None and bool(targets.min() >= 0) and bool(targets.max() < self.classes)

    @functools.cached_property
    def takes_all(self) -> bool:
        """Whether the loss takes all that the network returns, rather than the logits alone."""
        result = self.run(self.images)
        if isinstance(result, torch.Tensor):
            return False
        try:
            return isinstance(self.loss_fn(result, self.labels), torch.Tensor)
        except Exception:  # whatever a loss raises on what it is not made for
            return False

    def loss(self, result, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of what the network returned, or of logits, as a number."""
        labels = self.labels if labels is None else labels
        if not self.takes_all and not isinstance(result, torch.Tensor):
            result = self.picked(result)
        if isinstance(result, torch.Tensor) and result.ndim > 2:
            result = _rows(result)
        try:
            return self.loss_fn(result, labels).mean()  # of reduction="none", too
        except Exception as error:  # whatever the user's function raises
            raise LossFails(
                f"the loss raises {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            ) from error

    def accuracy(self, logits: torch.Tensor) -> float:
        """The share of the images that is right."""
        answers = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
        return float((answers == self.targets).float().mean())

    # Copies of it in a certain state

    @functools.cached_property
    def settled(self) -> nn.Module:
        """A copy in eval mode and double precision, whose BatchNorms have the statistics of these images.

        float32 where float64 fails.
        """
        model = copied(self.model).eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.momentum = 1.0
                module.train()
        with torch.no_grad(), kept_random_states(), located(model):
            model(self.images.clone())
        model.eval()
        try:  # in double precision nothing is lost to rounding
            precise = copied(model).double()
            with torch.no_grad():
                precise(self.few.double())
            return precise
        except Exception:  # something in it does not support .double()
            return model

    @property
    def settled_images(self) -> torch.Tensor:
        """The images in the precision of `settled`."""
        return self.images.to(_like(self.settled).dtype)

    @functools.cached_property
    def step(self) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """A copy after one backward pass in train mode, its logits and its loss."""
        return self._step(copied(self.model))

    def _step(self, model: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        model.train().zero_grad()
        with kept_random_states(), located(model):
            torch.manual_seed(0)
            result = model(self.images.clone())
        logits = self.logits(result).detach().float()
        loss = self.loss(result)
        if loss.requires_grad:
            loss.backward()
        return model, logits, loss.detach()

    @functools.cached_property
    def gradients(self) -> dict[str, float]:
        """The gradient of each layer's weights in one step, as a share of the weights' own size.

        What starts from zero, so that it lets no gradient through yet, is set to small numbers first, and left out.
        """
        model = copied(self.model)
        zeros = awakened(model)
        model, _, _ = self._step(model) if zeros else self.step
        return {
            name.removesuffix(".weight"): float(p.grad.norm() / p.detach().norm().clamp_min(1e-12))
            for name, p in model.named_parameters()
            if name.endswith("weight") and p.ndim > 1 and p.grad is not None and name not in zeros
        }

    @functools.cached_property
    def weight_dtype(self) -> torch.dtype:
        """The type of the network's weights."""
        return _like(self.model).dtype


def awakened(model: nn.Module) -> set[str]:
    """Set what starts from zero, or as a layer scale next to it, to small numbers; returns these parameters' names.

    Biases are left as they are.
    """
    zeros = {
        name
        for name, p in model.named_parameters()
        if not name.endswith("bias") and p.numel() and bool((p == p.flatten()[0]).all()) and abs(p.flatten()[0]) <= 1e-4
    }
    with torch.no_grad(), kept_random_states():
        torch.manual_seed(0)
        for name in zeros:
            model.get_parameter(name).normal_(std=0.01)
    return zeros


class _Lazily(dict):
    """A dictionary that computes what it is asked for."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def __missing__(self, key):
        self[key] = self.compute(key)
        return self[key]


def _tensor(values) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else torch.from_numpy(np.asarray(values))


def _like(model: nn.Module) -> torch.Tensor:
    """A floating-point parameter of a model, or a single-precision number where it has none."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))


def _rows(output: torch.Tensor) -> torch.Tensor:
    """Logits (N,), (N, classes) or (N, classes, 1, 1) as (N, classes)."""
    if output.ndim > 2 and output.shape[2:].numel() == 1:
        return output.flatten(1)
    return output[:, None] if output.ndim == 1 else output
