"""The trainings of the course, by name: a network of models.py and the recipe that trains it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NamedTuple

import torch

import models
from s9.recipes import AUGMENTED, ONE_CYCLE, S9_RECIPE, STUDENT_RECIPE, Recipe


class Experiment(NamedTuple):
    """A network and how it is trained. `options` are the arguments of the class `network` in models.py."""

    network: str
    options: dict
    recipe: Recipe

    def build(self) -> torch.nn.Module:
        """The network with the initial weights that belong to the recipe's seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            return getattr(models, self.network)(**self.options)

    def changed(self, settings: list[tuple[str, object]], seed: int | None = None) -> Experiment:
        """The same with other settings of the recipe, and another seed if one is given."""
        recipe = replace(self.recipe, **dict(settings))
        return self._replace(recipe=recipe if seed is None else replace(recipe, seed=seed))

    def __str__(self) -> str:
        return f"{self.network}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


def steps_from(name: str, *steps: tuple[str, dict[str, object]]) -> dict[str, Experiment]:
    """Experiments of which each is the one before with some settings changed; the first changes EXPERIMENTS[name]."""
    experiment, made, of_recipe = EXPERIMENTS[name], {}, {field.name for field in fields(Recipe)}
    for step, changed in steps:
        network = changed.get("network", experiment.network)
        options = {} if "network" in changed else experiment.options
        options = options | {key: changed[key] for key in changed.keys() - of_recipe - {"network"}}
        recipe = replace(experiment.recipe, **{key: changed[key] for key in changed.keys() & of_recipe})
        made[step] = experiment = Experiment(network, options, recipe)
    return made


EXPERIMENTS = {
    "student": Experiment("StudentNet", {}, STUDENT_RECIPE),
    # The same with the augmentation that its course proposed, and that the student may have used.
    "student-augmented": Experiment("StudentNet", {}, replace(STUDENT_RECIPE, crop=4, flip=True, cutout=16)),
    # Earlier steps, each with a group of changes.
    "ladder-1": Experiment("StudentNet", {"use_relu": True}, STUDENT_RECIPE),
    "ladder-2": Experiment("StudentNet", {"use_relu": True}, ONE_CYCLE),
    "ladder-3": Experiment("StudentNet", {"use_relu": True, "norm_strided": True, "pad_strided": True}, ONE_CYCLE),
    "ladder-4": Experiment(
        "StudentNet", {"use_relu": True, "norm_strided": True, "pad_strided": True, "dropout": 0.0}, AUGMENTED
    ),
    # From there to the kit's own network.
    "ladder-5": Experiment("S9Net", {}, AUGMENTED),
    "ladder-6": Experiment("S9Net", {}, replace(S9_RECIPE, optimizer="sgd")),
}

# From the student's network to S9Net, one change a step.
EXPERIMENTS |= steps_from(
    "student",
    ("student-relu", {"use_relu": True}),
    ("student-lr0.1", {"learning_rate": 0.1}),
    ("student-momentum", {"momentum": 0.9, "nesterov": True}),
    ("student-one-cycle", {"schedule": "one-cycle"}),
    ("student-norm", {"norm_strided": True}),
    ("student-padding", {"pad_strided": True}),
    ("student-flip-crop", {"flip": True, "crop": 4}),
    ("student-smoothing", {"label_smoothing": 0.1}),
    ("student-no-dropout", {"dropout": 0.0}),
    ("s9net-architecture", {"network": "S9Net"}),
    ("s9net-batch-256", {"batch_size": 256}),
    ("s9net-lr0.15", {"learning_rate": 0.15}),
    ("s9net-decay", {"weight_decay": 5e-4}),
    ("s9net", {"optimizer": "muon"}),
)
