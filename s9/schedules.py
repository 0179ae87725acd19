"""The learning-rate schedules of a recipe."""

import torch

from s9.recipes import Recipe


def make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's schedule, to be stepped after each batch."""
    if recipe.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=recipe.epochs * steps_per_epoch,
            pct_start=recipe.warmup,
            cycle_momentum=False,
        )
    return torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_epochs * steps_per_epoch, recipe.step_factor)
