"""What several tests need: small data sets, and real CIFAR-10 where there is a copy."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import utils


@pytest.fixture(scope="session")
def digits() -> utils.Data:
    return utils.load_data("digits")


@pytest.fixture(scope="session")
def cifar10() -> utils.Data:
    if not os.environ.get("S9_DATA_DIR"):
        pytest.skip("needs CIFAR-10: set S9_DATA_DIR to a copy")
    return utils.load_data()


@pytest.fixture
def random_data() -> utils.Data:
    """Coloured noise, so that each image differs from all others: 40 training and 20 test images of two classes."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int):
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return images, torch.arange(count) % 2

    return utils.Data(*split(40), *split(20), ("even", "odd"), "noise", "made for tests")


@pytest.fixture
def image_folders(tmp_path, random_data):
    """train/<class>/ and test/<class>/ of PNG files that hold `random_data`."""
    for split in ("train", "test"):
        images, labels = getattr(random_data, f"{split}_images"), getattr(random_data, f"{split}_labels")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = tmp_path / "folders" / split / random_data.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03}.png")
    return tmp_path / "folders"


@pytest.fixture
def state_of_numpy_and_torch():
    """A call that tells the random states, to compare before and after."""
    return lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())  # noqa: NPY002
