"""Muon for convolutional networks: momentum whose steps on a kernel are made orthogonal."""

import torch


def mixes_channels(parameter: torch.Tensor) -> bool:
    """Whether it is the kernel of a convolution over more than a few channels: not depthwise, not the first one."""
    return parameter.ndim == 4 and parameter.shape[1] > 3


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Roughly the nearest matrices with orthonormal rows or columns: all singular values end between 0.7 and 1.2.

    `matrices` are (..., rows, columns). The Newton-Schulz iteration with the coefficients of Jordan et al. 2024
    (kellerjordan.github.io/posts/muon), which needs matrix products only.
    """
    wide = matrices.size(-2) <= matrices.size(-1)
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum, whose steps are made orthogonal in groups with `orthogonal=True`.

    There a parameter is a matrix (out, in * height * width). A step has the size of the kernel itself times `lr`, and
    the kernel is put back to its first size after it: with BatchNorm behind it its size has no meaning, and if it grew,
    the same steps would turn it less and less.

    Source: Jordan et al. 2024; that kernels keep their size is from cifar10-airbench (arXiv:2404.00498).
    """

    def __init__(self, groups, lr: float, momentum: float = 0.9):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step of all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: torch.Tensor, group: dict) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if not state:
            state["velocity"], state["size"] = torch.zeros_like(parameter), parameter.norm()
        gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
        velocity = state["velocity"].mul_(momentum).add_(gradient)
        step = gradient.add(velocity, alpha=momentum)
        if group["orthogonal"]:
            step = orthogonalize(step.flatten(1)).view_as(parameter)
            step = step * (state["size"] / step.norm())
        parameter.sub_(step, alpha=group["lr"])
        if group["orthogonal"]:
            parameter.mul_(state["size"] / parameter.norm())
