"""What a recipe refuses, and the device and number format that it is trained with."""

from unittest import mock

import numpy as np
import pytest
import torch

from s9 import recipes
from s9.machine import resolve_precision
from s9.recipes import Recipe, check_recipe_fits

CPU, GPU = torch.device("cpu"), torch.device("cuda")
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


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx512_f": True, "avx512_vnni": True}, torch.float32),  # Skylake to Ice Lake: bf16 would be emulated
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_auto_takes_bf16_where_the_processor_has_its_instructions(monkeypatch, instructions, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("bf16", CPU) == torch.bfloat16  # asked for by name, it is given


@pytest.mark.parametrize(("capability", "automatic"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_precision_on_gpus_with_and_without_bf16(monkeypatch, capability, automatic):
    """A T4 has 7.5, an A100 8.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", GPU) == automatic
    if automatic is torch.float16:
        with pytest.raises(ValueError, match=r"bf16.*this GPU"):
            resolve_precision("bf16", GPU)
    else:
        assert resolve_precision("bf16", GPU) == torch.bfloat16


def test_apples_gpu_computes_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert recipes.default_device() == torch.device("mps")
    assert resolve_precision("auto", torch.device("mps")) == torch.float32
    for precision in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=precision):
            resolve_precision(precision, torch.device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert recipes.default_device() == CPU


def test_an_older_torch_is_told_by_the_system(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for flags, expected in (("fpu avx512f avx512_bf16", torch.bfloat16), ("fpu avx512f", torch.float32)):
        cpuinfo = mock.Mock(exists=lambda: True, read_text=lambda flags=flags: f"flags : {flags}\n")
        monkeypatch.setattr(recipes, "Path", lambda path, cpuinfo=cpuinfo: cpuinfo)
        assert resolve_precision("auto", CPU) == expected
