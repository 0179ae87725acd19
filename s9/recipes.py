"""How to train: everything but the network and the data."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Recipe:
    """How to train: everything but the network and the data. The defaults are the student's choices."""

    epochs: int = 25  # passes over the training images
    batch_size: int = 512  # images per step; the last step of an epoch takes the rest
    optimizer: str = "sgd"  # or "adamw", or "muon": Muon for all convolutions but depthwise ones, SGD for the rest
    learning_rate: float = 0.01  # the highest of the schedule
    kernel_rate: float = 0.05  # "muon": largest learning rate of its kernels, relative to their norm
    momentum: float = 0.0  # "sgd", "muon"
    nesterov: bool = False  # "sgd", "muon": Nesterov's form of it
    weight_decay: float = 0.0  # on matrices and kernels that SGD or AdamW trains, not on biases and normalisation
    schedule: str = "step"  # "step" or "one-cycle"
    step_epochs: int = 15  # "step": epochs until the rate falls
    step_factor: float = 0.1  # "step": what it is multiplied by
    warmup: float = 0.15  # "one-cycle": share of the steps in which the rate rises
    crop: int = 0  # augmentation: largest shift of an image, in pixels
    flip: bool = False  # augmentation: mirror half of the images
    cutout: int = 0  # augmentation: side of the blanked-out square, in pixels
    label_smoothing: float = 0.0  # share of the target spread over all classes
    seed: int = 0  # of the order, the augmentation and dropout
    precision: str = "auto"  # "fp32", "bf16", "fp16" (GPU only), or "auto": the fastest with hardware support

    def __post_init__(self):
        def check(holds: bool, field: str, remedy: str):
            if not holds:
                raise ValueError(f"Recipe: {field}={getattr(self, field)!r} does not work; {remedy}.")

        defaults = {field.name: field.default for field in fields(self)}
        for field, default in defaults.items():
            if isinstance(getattr(self, field), np.generic):  # such as an element of np.logspace
                object.__setattr__(self, field, getattr(self, field).item())
            kinds = (int, float) if type(default) is float else (type(default),)
            check(type(getattr(self, field)) in kinds, field, f"give a value of type {kinds[-1].__name__}")
        for field, choices in RECIPE_CHOICES.items():
            check(getattr(self, field) in choices, field, f"choose from {', '.join(choices)}")
        for field in ("epochs", "batch_size", "step_epochs", "crop", "cutout", "seed"):
            lowest = 1 if field in ("epochs", "batch_size", "step_epochs") else 0
            check(lowest <= getattr(self, field) < 2**31, field, f"give a whole number from {lowest} to {2**31 - 1}")
        for field in ("learning_rate", "kernel_rate", "step_factor"):
            check(0 < getattr(self, field) < math.inf, field, "give a number over 0")
        for field in ("momentum", "label_smoothing", "warmup"):
            check(0 <= getattr(self, field) < 1, field, "give a number from 0 up to, but not including, 1")
        check(0 <= self.weight_decay < math.inf, "weight_decay", "give a number from 0 up")
        check(self.momentum > 0 or not self.nesterov, "nesterov", "give it a momentum over 0")
        for field, (chooser, choices) in USED_BY.items():
            unused = getattr(self, chooser) not in choices and getattr(self, field) != defaults[field]
            remedy = f'{chooser}="{getattr(self, chooser)}" does not use it; leave it at {defaults[field]!r}'
            check(not unused, field, remedy)


RECIPE_CHOICES = {
    "optimizer": ("sgd", "adamw", "muon"),
    "schedule": ("step", "one-cycle"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}

USED_BY = {  # fields that only some choices of another field use
    "step_epochs": ("schedule", ("step",)),
    "step_factor": ("schedule", ("step",)),
    "warmup": ("schedule", ("one-cycle",)),
    "kernel_rate": ("optimizer", ("muon",)),
    "momentum": ("optimizer", ("sgd", "muon")),
    "nesterov": ("optimizer", ("sgd", "muon")),
}

STUDENT_RECIPE = Recipe()  # the student's; the augmentation was not published, so there is none
ONE_CYCLE = replace(STUDENT_RECIPE, schedule="one-cycle", learning_rate=0.1, momentum=0.9, nesterov=True)
AUGMENTED = replace(ONE_CYCLE, crop=4, flip=True, label_smoothing=0.1)
S9_RECIPE = replace(AUGMENTED, batch_size=256, learning_rate=0.15, weight_decay=5e-4, optimizer="muon")


def check_crop(crop: int, height: int, width: int) -> None:
    """Compare a crop with the image that it shifts and mirrors at its rim.

    Raises:
        ValueError: the mirror image ends before the crop does.
    """
    most = min(height, width) - 1
    if crop > most:
        raise ValueError(f"Recipe: crop={crop} is too far for images of {height}x{width}; give {most} or less.")


def check_recipe_fits(recipe: Recipe, images: torch.Tensor) -> None:
    """Compare a recipe with the training images, (N, C, H, W).

    Raises:
        TypeError: it is no recipe.
        ValueError: they do not fit; the message names the field and the remedy.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"Recipe: give a Recipe, not {type(recipe).__name__}.")
    count = len(images)
    check_crop(recipe.crop, *images.shape[2:])
    if recipe.batch_size > count:
        raise ValueError(
            f"Recipe: batch_size={recipe.batch_size} is more than the {count} training images; give {count} or less."
        )
    steps = recipe.epochs * math.ceil(count / recipe.batch_size)
    if recipe.schedule == "one-cycle" and (steps < 2 or 0 < recipe.warmup * steps <= 1):
        raise ValueError(
            f'Recipe: schedule="one-cycle" has no room to rise in {steps} steps; train for more epochs, in smaller '
            "batches, or with warmup=0."
        )
