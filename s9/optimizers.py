"""The optimisers of a recipe, among them Muon: momentum whose steps on a convolution's kernel are made orthogonal."""

from collections.abc import Callable

import torch
from torch import nn

from s9.recipes import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser: weight decay acts on matrices and kernels only, and not on those that Muon trains."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kernels = [p for p in parameters if recipe.optimizer == "muon" and _mixes_channels(p)]
    others = [p for p in parameters if all(p is not kernel for kernel in kernels)]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        {"params": kernels, "weight_decay": 0.0, "lr": recipe.kernel_rate, "orthogonal": True},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    kind = Muon if recipe.optimizer == "muon" else torch.optim.SGD
    return kind(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


def _mixes_channels(parameter: torch.Tensor) -> bool:
    """Whether it is the kernel of a convolution over more than a few channels: not depthwise, not the first one."""
    return parameter.ndim == 4 and parameter.shape[1] > 3


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Roughly the nearest matrices with orthonormal rows or columns: all singular values end between 0.7 and 1.2.

    `matrices` are (k, rows, columns); one of zeros stays so. The Newton-Schulz iteration with the coefficients of
    Jordan et al. 2024 (kellerjordan.github.io/posts/muon), which needs matrix products only.
    """
    wide = matrices.size(-2) <= matrices.size(-1)
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, factor, x, beta=3.4445)  # (3.4445 - 4.7750 gram + 2.0315 gram²) x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """SGD with momentum, whose steps are made orthogonal in groups with `orthogonal=True`.

    There a parameter is a matrix (out, in * height * width). Updates are scaled to `lr` times the norm of the kernel,
    and the kernel is rescaled to its initial norm after each step: before a BatchNorm the norm has no effect on the
    output, and a growing norm would shrink the relative update. A kernel that is zero at its first step has no size to
    keep: it learns
    by plain SGD with momentum, at the group's `lr`, for good.

    Parameters are stepped together, kernels of one shape as a stack: on a GPU, starting the arithmetic would take
    longer than the arithmetic.

    Source: Jordan et al. 2024; that kernels keep their size is from cifar10-airbench (arXiv:2404.00498).
    """

    def __init__(self, groups, lr: float, momentum: float = 0.9, nesterov: bool = True):
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0, "orthogonal": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """One step of all parameters that have a gradient. A `closure` is called before, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            steps = self._steps(parameters, group)
            if group["orthogonal"]:
                self._turn(parameters, steps, group["lr"])
            else:
                torch._foreach_add_(parameters, steps, alpha=-group["lr"])
        return loss

    def _steps(self, parameters: list[torch.Tensor], group: dict) -> list[torch.Tensor]:
        """The steps of SGD with momentum, before the learning rate."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {"velocity": torch.zeros_like(parameter), "size": parameter.norm()}
        gradients = [parameter.grad for parameter in parameters]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        velocities = [self.state[parameter]["velocity"] for parameter in parameters]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients)
        return torch._foreach_add(gradients, velocities, alpha=group["momentum"]) if group["nesterov"] else velocities

    def _turn(self, kernels: list[torch.Tensor], steps: list[torch.Tensor], lr: float) -> None:
        alike = {}
        for kernel, step in zip(kernels, steps, strict=True):
            alike.setdefault((kernel.shape, kernel.dtype, kernel.device), []).append((kernel, step))
        for pairs in alike.values():
            kernels, steps = zip(*pairs, strict=True)
            sizes = torch.stack([self.state[kernel]["size"] for kernel in kernels])[:, None, None]
            turned = turn(torch.stack(kernels).flatten(2), torch.stack(steps).flatten(2), sizes, lr)
            torch._foreach_copy_(kernels, turned.unflatten(2, kernels[0].shape[1:]).unbind())


def turn(kernels: torch.Tensor, steps: torch.Tensor, sizes: torch.Tensor, lr: float) -> torch.Tensor:
    """Kernels (k, rows, columns) after a step that is made orthogonal, of their `sizes` (k, 1, 1) again.

    Those whose size is 0 take the step as it is.
    """
    orthogonal = orthogonalize(steps)
    orthogonal *= sizes / orthogonal.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    sized = sizes > 0
    moved = kernels.sub(torch.where(sized, orthogonal, steps), alpha=lr)
    norms = moved.norm(dim=(1, 2), keepdim=True)
    return torch.where(sized & (norms > 0), moved * (sizes / norms), moved)
