"""Batches of shuffled, augmented and normalised images, made on the device."""

import math

import torch

from s9.data import Data
from s9.randomness import epoch_seed
from s9.recipes import Recipe, check_crop


def channel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), in 0..1, to four digits.

    A channel that is the same everywhere gets a deviation of 1, so that normalising leaves it at 0, as scikit-learn's
    StandardScaler has it.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    std = variance.sqrt().float().round(decimals=4)
    return mean.float().round(decimals=4), torch.where(std > 0, std, 1.0)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device; to a GPU from pinned memory, which it reads beside other work."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class Batches:
    """Batches of shuffled, augmented and normalised images, made on the device without worker processes.

    Iterating gives (images, labels): float32 (B, C, H, W), channels-last in memory, and int64 (B,). The last batch may
    be smaller. Everything random is drawn anew for each image and depends only on `seed` and `epoch`.

    Args:
        images, labels: uint8 (N, C, H, W) and int64 (N,).
        mean, std: of each channel, in 0..1, as `channel_statistics` gives them.
        shuffle: take the images in a new order each epoch.
        crop: shift each image by up to this many pixels along both axes; the border is filled by reflection.
        flip: mirror half of the images, left to right.
        cutout: side of a square that is set to zero, in pixels; its centre lies anywhere in the image, so that part of
            it may lie outside (DeVries and Taylor 2017, arXiv:1708.04552). 0 for none.

    Raises:
        ValueError: `crop` reaches further than the image's mirror image.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        batch_size: int,
        mean: torch.Tensor,
        std: torch.Tensor,
        shuffle: bool = False,
        crop: int = 0,
        flip: bool = False,
        cutout: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        n, self.channels, self.height, self.width = images.shape
        check_crop(crop, self.height, self.width)
        device = torch.device(device)
        # One long list of pixels: shuffling, cropping and flipping a batch is then a single look-up.
        self.pixels = to_device(images, device).permute(0, 2, 3, 1).reshape(-1, self.channels)
        self.labels = to_device(labels, device)
        self.scale = (1 / (255 * std)).repeat(self.height * self.width).to(device)
        self.shift = (-mean / std).repeat(self.height * self.width).to(device)
        self.n, self.batch_size, self.device = n, batch_size, device
        self.shuffle, self.crop, self.flip, self.cutout = shuffle, crop, flip, cutout
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def __iter__(self):
        """One epoch; the next one differs. Set `epoch` to repeat one."""
        # Drawn on the CPU, so that every device sees the same images, and at once, so that a GPU waits only once.
        shuffling, augmenting = (
            torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch, stream))
            for stream in ("order", "augmentation")
        )
        self.epoch += 1

        def draw(high: int) -> torch.Tensor:
            return torch.randint(high, (self.n,), generator=augmenting)

        order = torch.randperm(self.n, generator=shuffling) if self.shuffle else torch.arange(self.n)
        drawn = {
            "index": order,
            "down": draw(2 * self.crop + 1) - self.crop,
            "right": draw(2 * self.crop + 1) - self.crop,
            "mirrored": draw(2 if self.flip else 1),
            "cut_y": draw(self.height),
            "cut_x": draw(self.width),
        }
        drawn = {name: to_device(values, self.device) for name, values in drawn.items()}
        for start in range(0, self.n, self.batch_size):
            yield self._batch(**{name: values[start : start + self.batch_size] for name, values in drawn.items()})

    def _batch(self, index, down, right, mirrored, cut_y, cut_x) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(self.height, device=self.device)
        x = torch.arange(self.width, device=self.device)
        rows = _reflect(y + down[:, None], self.height)  # (B, H)
        columns = _reflect(torch.where(mirrored[:, None] == 1, x.flip(0), x) + right[:, None], self.width)  # (B, W)
        places = (index[:, None, None] * self.height + rows[:, :, None]) * self.width + columns[:, None, :]  # (B, H, W)
        images = self.pixels.index_select(0, places.flatten()).view(len(index), -1)  # (B, H * W * C)
        images = images.float().mul_(self.scale).add_(self.shift)
        images = images.view(len(index), self.height, self.width, self.channels)
        if self.cutout:
            half = self.cutout // 2
            cut_rows = (y >= cut_y[:, None] - half) & (y < cut_y[:, None] - half + self.cutout)  # (B, H)
            cut_columns = (x >= cut_x[:, None] - half) & (x < cut_x[:, None] - half + self.cutout)  # (B, W)
            images.masked_fill_((cut_rows[:, :, None] & cut_columns[:, None, :])[..., None], 0)  # 0 is the mean
        return images.permute(0, 3, 1, 2), self.labels[index]


def augmented_versions(data: Data, recipe: Recipe, index: int = 0, count: int = 8) -> torch.Tensor:
    """A training image, and then `count` of its augmentations by `recipe`: (1 + count, 3, H, W) uint8."""
    image = data.train_images[index]
    # A mean of 0 and a deviation of 1 leave the pixels at 0..1.
    batches = Batches(
        image.repeat(count, 1, 1, 1), torch.zeros(count), count, torch.zeros(3), torch.ones(3), crop=recipe.crop,
        flip=recipe.flip, cutout=recipe.cutout, seed=recipe.seed,
    )  # fmt: skip
    augmented, _ = next(iter(batches))
    return torch.cat([image[None], (augmented * 255).round().to(torch.uint8)])


def _reflect(position: torch.Tensor, size: int) -> torch.Tensor:
    """Mirror positions outside 0..size-1 back into it, about the first and the last pixel."""
    position = position.abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
