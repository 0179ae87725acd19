"""The optimisers of a recipe, among them Muon: momentum whose steps on a convolution's kernel are made orthogonal."""

import torch
from torch import nn

from s9.recipes import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser: weight decay acts on matrices and kernels only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kernels = [p for p in parameters if recipe.optimizer == "muon" and _mixes_channels(p) and p.any()]
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

    `matrices` are (..., rows, columns); one of zeros stays so. The Newton-Schulz iteration with the coefficients of
    Jordan et al. 2024 (kellerjordan.github.io/posts/muon), which needs matrix products only.
    """
    wide = matrices.size(-2) <= matrices.size(-1)
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """SGD with momentum, whose steps are made orthogonal in groups with `orthogonal=True`.

    There a parameter is a matrix (out, in * height * width). A step has the size of the kernel itself times `lr`, and
    the kernel is put back to its first size after it: with BatchNorm behind it its size has no meaning, and if it grew,
    the same steps would turn it less and less.

    Kernels of one shape are stacked, and the other parameters of a group taken together, so that a step on a GPU
    starts few operations.

    Source: Jordan et al. 2024; that kernels keep their size is from cifar10-airbench (arXiv:2404.00498).

    Raises:
        ValueError: a parameter with `orthogonal=True` is all zeros, so that it has no size to keep.
    """

    def __init__(self, groups, lr: float, momentum: float = 0.9, nesterov: bool = True):
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0, "orthogonal": False}
        super().__init__(groups, defaults)
        for group in self.param_groups:
            if group["orthogonal"] and not all(parameter.any() for parameter in group["params"]):
                raise ValueError(
                    "Muon: a kernel of zeros has no size to keep; give it to a group without orthogonal=True."
                )

    @torch.no_grad()
    def step(self, closure=None):
        """One step of all parameters that have a gradient; the loss that `closure` gives, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
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
                self.state[parameter]["velocity"] = torch.zeros_like(parameter)
                self.state[parameter]["size"] = parameter.norm()
        gradients = [parameter.grad for parameter in parameters]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        velocities = [self.state[parameter]["velocity"] for parameter in parameters]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients)
        return torch._foreach_add(gradients, velocities, alpha=group["momentum"]) if group["nesterov"] else velocities

    def _turn(self, kernels: list[torch.Tensor], steps: list[torch.Tensor], lr: float) -> None:
        """Turn kernels by orthogonal steps; those of one shape at once."""
        by_shape: dict[tuple, list[int]] = {}
        for index, kernel in enumerate(kernels):
            by_shape.setdefault((kernel.shape, kernel.dtype, kernel.device), []).append(index)
        for members in by_shape.values():
            alike = [kernels[index] for index in members]
            turned = orthogonalize(torch.stack([steps[index].flatten(1) for index in members]))
            sizes = torch.stack([self.state[kernel]["size"] for kernel in alike])[:, None, None]
            matrices = torch.stack([kernel.flatten(1) for kernel in alike])
            matrices = matrices - lr * turned * _ratio(sizes, turned)
            matrices = matrices * _ratio(sizes, matrices)
            torch._foreach_copy_(alike, list(matrices.view(-1, *alike[0].shape).unbind()))


def _ratio(sizes: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """What brings each of (k, rows, columns) to its size, (k, 1, 1); zeros stay zeros."""
    return sizes / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
