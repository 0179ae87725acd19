from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import Normalize
from tqdm import tqdm

from s9.augmented_batches import Batches, augmented_versions, channel_statistics, to_device
from s9.randomness import epoch_seed
from utils import Recipe

PLAIN = {"mean": torch.zeros(3), "std": torch.ones(3)}


def test_channel_statistics_are_torchs(random_data):
    pixels = random_data.train_images.double() / 255
    mean, std = channel_statistics(random_data.train_images)
    torch.testing.assert_close(mean.double(), pixels.mean((0, 2, 3)), atol=5e-5, rtol=0)
    torch.testing.assert_close(std.double(), pixels.std((0, 2, 3), correction=0), atol=5e-5, rtol=0)


def test_plain_batches_are_normalised_images_in_order(random_data):
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    batches = Batches(random_data.train_images, random_data.train_labels, 16, mean, std)
    images, labels = map(torch.cat, zip(*batches, strict=True))
    expected = Normalize(mean.tolist(), std.tolist())(random_data.train_images.float() / 255)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(labels, random_data.train_labels)
    assert [len(labels) for _, labels in batches] == [16, 16, 8]
    assert len(batches) == 3
    assert next(iter(batches))[0].is_contiguous(memory_format=torch.channels_last)


def test_batches_work_under_tqdm(random_data, capsys):
    progress = tqdm(Batches(random_data.train_images, random_data.train_labels, 16, **PLAIN))
    assert progress.total == 3
    assert len(list(progress)) == 3
    assert "3/3" in capsys.readouterr().err


def test_shuffling_keeps_each_image_with_its_label_and_follows_the_seed(random_data):
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 32, 32)

    def orders(seed: int, epochs: int = 2) -> list[list[int]]:
        batches = Batches(images, torch.arange(40), 16, **PLAIN, shuffle=True, seed=seed)
        result = []
        for _ in range(epochs):
            seen, labels = map(torch.cat, zip(*batches, strict=True))
            assert torch.equal((seen[:, 0, 0, 0] * 255).round().long(), labels)
            result.append(labels.tolist())
        return result

    first, second = orders(seed=0)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert orders(seed=0) == [first, second]
    assert orders(seed=1)[0] != first


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [0, 2, 4])
def test_augmented_images_are_crops_of_the_padded_image_and_all_occur(random_data, crop, flip):
    """The slow reference: every crop of the reflect-padded image, and its mirror image."""
    image = random_data.train_images[0]
    padded = F.pad(image[None].float(), [crop] * 4, mode="reflect")[0]
    reference = {}
    for down in range(2 * crop + 1):
        for right in range(2 * crop + 1):
            piece = padded[:, down : down + 32, right : right + 32].to(torch.uint8)
            reference[piece.numpy().tobytes()] = (down, right, False)
            if flip:
                reference[piece.flip(2).numpy().tobytes()] = (down, right, True)
    count = 4000
    images = image.repeat(count, 1, 1, 1)
    batches = Batches(images, torch.zeros(count), 500, **PLAIN, crop=crop, flip=flip, seed=3)
    augmented = torch.cat([(batch * 255).round().to(torch.uint8) for batch, _ in batches])
    found = [reference[version.contiguous().numpy().tobytes()] for version in augmented]
    assert set(found) == set(reference.values())
    expected = count / len(reference)
    chi_square = sum((found.count(key) - expected) ** 2 / expected for key in reference.values())
    freedom = len(reference) - 1
    assert chi_square <= freedom + 5 * (2 * freedom) ** 0.5  # evenly, five deviations allowed


@pytest.mark.parametrize("side", [5, 16])
def test_cutout_blanks_one_square_whose_centre_lies_in_the_image(random_data, side):
    mean, std = channel_statistics(random_data.train_images)
    images = torch.full((2000, 3, 32, 32), 255, dtype=torch.uint8)
    batches = Batches(images, torch.zeros(2000), 2000, mean, std, cutout=side)
    blank = next(iter(batches))[0] == 0
    assert torch.equal(blank[:, 0], blank[:, 2])
    rows, columns = blank[:, 0].any(2).sum(1), blank[:, 0].any(1).sum(1)
    assert torch.equal(blank[:, 0].sum((1, 2)), rows * columns)  # it is a rectangle
    assert rows.max() == columns.max() == side
    assert rows.min() == columns.min() == side // 2 if side % 2 == 0 else (side + 1) // 2
    assert blank[:, 0].any(0).all()  # it reaches every pixel


def test_epoch_seeds_differ_in_the_32_bits_that_torch_keeps():
    seeds = [
        epoch_seed(seed, epoch, stream, rank) % 2**32
        for seed in range(10) for epoch in range(30) for stream in ("order", "augmentation", "dropout")
        for rank in range(4)
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds) == 3600


def test_order_and_augmentation_are_drawn_independently(random_data):
    """The same order with and without augmentation, and shifts that do not follow from the order's numbers."""
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)

    def labels(**options) -> list[int]:
        batches = Batches(images, torch.arange(40), 40, **PLAIN, shuffle=True, seed=1, **options)
        return next(iter(batches))[1].tolist()

    assert labels() == labels(crop=4, flip=True)
    plain = torch.Generator().manual_seed(epoch_seed(1, 0, "order"))
    assert labels() == torch.randperm(40, generator=plain).tolist()


def test_a_constant_channel_becomes_zero(random_data):
    images = random_data.train_images.clone()
    images[:, 2] = 77
    mean, std = channel_statistics(images)
    batch, _ = next(iter(Batches(images, random_data.train_labels, 40, mean, std)))
    assert batch.isfinite().all()
    torch.testing.assert_close(batch[:, 2], torch.zeros(40, 32, 32), atol=1e-3, rtol=0)
    torch.testing.assert_close(batch[:, :2].std((0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("size", "most"), [(32, 31), (8, 7)])
def test_a_crop_that_leaves_the_mirror_image_is_refused(size, most):
    """Up to one less than the image, every crop is one of the reflect-padded image itself."""
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, size, size)
    batches = Batches(images, torch.arange(6), 6, **PLAIN, crop=most)
    batch, labels = next(iter(batches))
    assert torch.equal((batch * 255).round().long(), labels[:, None, None, None].expand_as(batch))
    with pytest.raises(
        ValueError, match=f"crop={most + 1} is too far for images of {size}x{size}; give {most} or less"
    ):
        Batches(images, torch.arange(6), 6, **PLAIN, crop=most + 1)


def test_augmented_versions_begin_with_the_image(random_data):
    versions = augmented_versions(random_data, Recipe(crop=4, flip=True), index=5, count=8)
    assert versions.shape == (9, 3, 32, 32)
    assert versions.dtype == torch.uint8
    assert torch.equal(versions[0], random_data.train_images[5])
    assert len({version.contiguous().numpy().tobytes() for version in versions}) > 5


def test_copies_to_a_gpu_are_pinned_and_to_a_cpu_are_none():
    values = torch.arange(3)
    assert to_device(values, torch.device("cpu")) is values
    recorded = Mock()  # there may be no GPU to copy to
    copied = to_device(recorded, torch.device("cuda", 1))
    recorded.pin_memory.return_value.to.assert_called_once_with(torch.device("cuda", 1), non_blocking=True)
    assert copied is recorded.pin_memory.return_value.to.return_value
