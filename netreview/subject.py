"""Copies of what is reviewed, and what several checks need of them."""

import copy
import functools

import torch
from torch import nn

from netreview.traces import Trace, tensors_in, trace


class Subject:
    """Copies of what is reviewed, and what several checks need of them, computed once."""

    def __init__(self, model, images, labels, loss_fn, optimizer):
        self.original, self.optimizer = model, optimizer
        self.images, self.labels, self.loss_fn = images, labels, loss_fn
        self.model = copy.deepcopy(model)

    @functools.cached_property
    def traces(self) -> tuple[Trace, Trace]:
        """Of a forward pass of two images, in eval mode and in train mode."""
        return trace(self.model, self.images[:2]), trace(self.model, self.images[:2], training=True)

    @functools.cached_property
    def settled(self) -> nn.Module:
        """A copy in eval mode and double precision, whose BatchNorms have statistics even if it was never trained.

        In single precision where double does not work.
        """
        model = copy.deepcopy(self.model)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if norms and all(norm.num_batches_tracked is not None and norm.num_batches_tracked == 0 for norm in norms):
            for norm in norms:
                norm.momentum = 1.0
            with torch.no_grad():
                model.train()(self.images)
        model.eval()
        try:  # in double precision nothing is lost to rounding
            precise = copy.deepcopy(model).double()
            precise(self.images[:2].double())
            return precise
        except RuntimeError:  # something in it does not follow .double()
            return model

    @property
    def settled_images(self) -> torch.Tensor:
        """The images in the precision of `settled`."""
        return self.images.to(next((p.dtype for p in self.settled.parameters()), torch.float32))

    def outputs(self, training: bool) -> torch.Tensor:
        """The first tensor that a fresh copy gives for all images, without a graph."""
        with torch.no_grad():
            return tensors_in(copy.deepcopy(self.model).train(training)(self.images))[0]

    @functools.cached_property
    def step(self) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """A copy after one backward pass in train mode, its output and its loss."""
        model = copy.deepcopy(self.model).train()
        model.zero_grad()
        output = tensors_in(model(self.images))[0]
        loss = self.loss_fn(output, self.labels) if self.labels_fit else output.square().mean()
        if loss.requires_grad:
            loss.backward()
        return model, output.detach(), loss.detach()

    @functools.cached_property
    def labels_fit(self) -> bool:
        """Whether every label is a class of the network."""
        classes = self.outputs(training=False).shape[1]
        return bool(self.labels.min() >= 0 and self.labels.max() < classes)

    @functools.cached_property
    def gradients(self) -> dict[str, float]:
        """The gradient of each layer's weights in one step, as a share of the weights' own size."""
        if not self.labels_fit:
            return {}
        model, _, _ = self.step
        weights = {path: getattr(module, "weight", None) for path, module in model.named_modules()}
        return {
            path: float(weight.grad.norm() / weight.detach().norm().clamp_min(1e-12))
            for path, weight in weights.items()
            if isinstance(weight, nn.Parameter) and weight.grad is not None and weight.ndim > 1
        }
