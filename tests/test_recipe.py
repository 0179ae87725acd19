"""What a recipe refuses."""

import numpy as np
import pytest
import torch

from s9.recipes import Recipe, check_recipe_fits

IMAGES = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)


def test_numpy_scalars_are_numbers():
    recipe = Recipe(
        learning_rate=np.logspace(-3, -1, 3)[1], epochs=np.int64(3), momentum=np.float32(0.5), nesterov=np.bool_(True)
    )
    assert recipe == Recipe(learning_rate=0.01, epochs=3, momentum=0.5, nesterov=True)
    assert type(recipe.learning_rate) is float
    assert type(recipe.epochs) is int
    assert type(recipe.nesterov) is bool
    with pytest.raises(ValueError, match=r"epochs=2\.0 does not work; give a value of type int"):
        Recipe(epochs=np.float64(2))


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("momentum", {"optimizer": "adamw", "momentum": 0.9}),
        ("nesterov", {"optimizer": "adamw", "momentum": 0.9, "nesterov": True}),
        ("kernel_rate", {"kernel_rate": 0.1}),
        ("warmup", {"warmup": 0.3}),
        ("step_epochs", {"schedule": "one-cycle", "step_epochs": 3}),
        ("step_factor", {"schedule": "one-cycle", "step_factor": 0.5}),
    ],
)
def test_a_field_that_would_do_nothing_is_refused(field, options):
    with pytest.raises(ValueError, match=r"does not use it; leave it at"):
        Recipe(**options)
    options = {name: value for name, value in options.items() if name not in (field, "momentum", "nesterov")}
    Recipe(**options)


def test_recipes_that_do_not_fit_the_images_are_refused():
    check_recipe_fits(Recipe(batch_size=40, crop=31), IMAGES)
    with pytest.raises(ValueError, match="batch_size=41 is more than the 40 training images; give 40 or less"):
        check_recipe_fits(Recipe(batch_size=41), IMAGES)
    with pytest.raises(ValueError, match="crop=32 is too far for images of 32x32; give 31 or less"):
        check_recipe_fits(Recipe(batch_size=40, crop=32), IMAGES)
