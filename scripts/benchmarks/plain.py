"""The standard pipeline that the kit is compared with: PIL images, a DataLoader, torch's own layers, fp32, NCHW."""

from __future__ import annotations

import copy

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import utils
from s9 import layers
from s9.augmented_batches import channel_statistics
from s9.data import Data


class PilImages(Dataset):
    """Images one by one, as torchvision's CIFAR10 gives them."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform):
        self.images, self.labels, self.transform = images.permute(0, 2, 3, 1).numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loader(data: Data, recipe: utils.Recipe, workers: int = 0) -> DataLoader:
    """The training images of `data`, augmented as `recipe` says, in shuffled batches."""
    mean, std = (statistic.tolist() for statistic in channel_statistics(data.train_images))
    steps = [transforms.RandomCrop(32, padding=recipe.crop, padding_mode="reflect")] if recipe.crop else []
    steps += [transforms.RandomHorizontalFlip()] if recipe.flip else []
    steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    if recipe.cutout:  # torchvision's cutout: a square of the same area, inside the image
        share = (recipe.cutout / 32) ** 2
        steps += [transforms.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0))]
    dataset = PilImages(data.train_images, data.train_labels, transforms.Compose(steps))
    return DataLoader(dataset, recipe.batch_size, shuffle=True, num_workers=workers)


def network(model: nn.Module) -> nn.Module:
    """A copy with torch's own layers in place of the kit's quicker ones."""
    own = {layers.Dropout: nn.Dropout, layers.Conv2d: nn.Conv2d}
    model = copy.deepcopy(model)
    for module in model.modules():
        module.__class__ = own.get(type(module), type(module))
    return model


def train_epoch(model: nn.Module, batches: DataLoader, optimizer, scheduler, label_smoothing: float) -> None:
    """One epoch in fp32."""
    model.train()
    for images, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels, label_smoothing=label_smoothing).backward()
        optimizer.step()
        scheduler.step()
