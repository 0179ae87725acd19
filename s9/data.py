"""What a data set is: labelled images in memory, split into training and test images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class DataError(RuntimeError):
    """The data cannot be used; the message says which file or value, and what to do."""


class Data(NamedTuple):
    """A labelled image data set in memory, split into training and test images."""

    train_images: torch.Tensor  # (N, 3, 32, 32) uint8
    train_labels: torch.Tensor  # (N,) int64, 0 .. len(classes) - 1
    test_images: torch.Tensor  # (M, 3, 32, 32) uint8
    test_labels: torch.Tensor  # (M,) int64
    classes: tuple[str, ...]
    name: str  # for titles, such as "CIFAR-10"
    copy: str  # which copy it is, for records
    train_jpeg: torch.Tensor | None = None  # (N,) bool, whether its file was a JPEG; None where there were no files
    test_jpeg: torch.Tensor | None = None  # (M,) bool


def check_data(data: Data) -> None:
    """Check what training needs of a data set, however it was made.

    Raises:
        TypeError: it is no `Data`.
        DataError: images or labels are not as `Data` says; the message says which.
    """
    if not isinstance(data, Data):
        raise TypeError(f"Data: give what load_data returns, not {type(data).__name__}.")
    for split in ("train", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        for name, values in (("images", images), ("labels", labels)):
            if not isinstance(values, torch.Tensor):
                raise DataError(f"{split}_{name} are of type {type(values).__name__}; give a tensor.")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"{split}_images are {tuple(images.shape)} {images.dtype}; give (N, 3, H, W) of uint8.")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(f"{split}_labels are {tuple(labels.shape)} {labels.dtype}; give one int64 an image.")
        if len(images) < 2:
            raise DataError(f"There are {len(images)} {split} images; give at least two.")
        lowest, highest, classes = labels.min().item(), labels.max().item(), len(data.classes)
        if lowest < 0 or highest >= classes:
            raise DataError(
                f"{split}_labels reach from {lowest} to {highest}, and there are {classes} classes: number the classes "
                "from 0."
            )
    if len(data.classes) < 2:
        raise DataError(f"There is {len(data.classes)} class; give at least two.")
    for name in data.classes:
        if not isinstance(name, str) or name.encode("utf-8", "ignore").decode() != name:  # bytes in no known code
            raise DataError(f"{name!a} is no name for a class: give it as text, and set LC_ALL=C.UTF-8 to read it.")
    ours, theirs = (tuple(images.shape[1:]) for images in (data.train_images, data.test_images))
    if ours != theirs:
        raise DataError(f"Training images are {ours} and test images {theirs}: give images of one size.")


def subset(data: Data, count: int, seed: int = 0) -> Data:
    """`count` random training images of `data`, or all where there are no more, and all its test images."""
    chosen = _shuffled(data, "subset", seed)[:count]
    return _with_training_images(data, chosen, f"{data.copy}, {len(chosen):,} of its training images")


def without_jpeg(data: Data) -> Data:
    """`data` without the training images whose files were JPEGs. All its test images stay.

    Where a few images were compressed and these are mostly of one class, a network learns to tell that class by the
    traces of the compression.
    """
    if data.train_jpeg is None or not data.train_jpeg.any():
        return data
    kept = (~data.train_jpeg).nonzero().flatten()
    return _with_training_images(
        data, kept, f"{data.copy}, {int(data.train_jpeg.sum()):,} JPEG training images left out"
    )


def hold_out(data: Data, count: int, seed: int = 0) -> Data:
    """Set `count` random training images aside as the test images, so that settings are chosen without the test set.

    Raises:
        DataError: there are not more than `count` training images.
    """
    total = len(data.train_labels)
    if not 0 < count < total:
        raise DataError(f"{count} of {total} training images cannot be held out: choose 1 to {total - 1}.")
    order = _shuffled(data, "hold_out", seed)
    held, kept = order[:count], order[count:]
    copy = f"{data.copy}, {count:,} training images held out as the test set"
    return _with_training_images(data, kept, copy)._replace(
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
        test_jpeg=None if data.train_jpeg is None else data.train_jpeg[held],
    )


def _with_training_images(data: Data, chosen: torch.Tensor, copy: str) -> Data:
    """`data` with those of its training images that `chosen`, int64, names."""
    return data._replace(
        train_images=data.train_images[chosen],
        train_labels=data.train_labels[chosen],
        train_jpeg=None if data.train_jpeg is None else data.train_jpeg[chosen],
        copy=copy,
    )


def _shuffled(data: Data, purpose: str, seed: int) -> torch.Tensor:
    """The training images' indices in an order that is another one for each purpose."""
    mixed = np.random.SeedSequence((seed, *purpose.encode())).generate_state(1)[0]
    return torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(int(mixed)))
