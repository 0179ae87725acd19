"""Data loading: images per second, augmented (crop, flip, cutout) and normalised, in batches of 512.

`python -m scripts.benchmarks.feed [--images N] [--rounds N]`
"""

import argparse

import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import utils
from s9.augmented_batches import Batches, channel_statistics
from s9.data import Data, subset
from scripts.benchmarks import measuring, plain

RECIPE = utils.Recipe(batch_size=512, crop=4, flip=True, cutout=8)


def ours(data: Data):
    """The kit's batches."""
    mean, std = channel_statistics(data.train_images)
    return Batches(
        data.train_images, data.train_labels, RECIPE.batch_size, mean, std, shuffle=True, crop=RECIPE.crop,
        flip=RECIPE.flip, cutout=RECIPE.cutout,
    )  # fmt: skip


def transforms_v2(data: Data):
    """torchvision.transforms.v2 on tensors, image by image, since on a batch it draws once for all."""
    mean, std = (statistic.tolist() for statistic in channel_statistics(data.train_images))
    share = (RECIPE.cutout / 32) ** 2
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=RECIPE.crop, padding_mode="reflect"), v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std),
            v2.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0)),
        ]
    )  # fmt: skip

    def collate(pairs):
        images, labels = zip(*pairs, strict=True)
        return torch.stack([transform(image) for image in images]), torch.stack(labels)

    dataset = TensorDataset(data.train_images, data.train_labels)
    return DataLoader(dataset, RECIPE.batch_size, shuffle=True, collate_fn=collate)


def kornia_batches(data: Data):
    """kornia.augmentation on whole batches."""
    import kornia.augmentation as K

    mean, std = channel_statistics(data.train_images)
    share = (RECIPE.cutout / 32) ** 2
    augment = torch.nn.Sequential(
        K.RandomCrop((32, 32), padding=RECIPE.crop, padding_mode="reflect"), K.RandomHorizontalFlip(),
        K.Normalize(mean, std), K.RandomErasing((share, share), (1.0, 1.0), p=1.0),
    )  # fmt: skip
    for rows in torch.randperm(len(data.train_labels)).split(RECIPE.batch_size):
        yield augment(data.train_images[rows].float() / 255), data.train_labels[rows]


def main() -> None:
    """Measure all implementations, and record them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    data = subset(utils.load_data(), given.images)
    count = len(data.train_labels)

    def rate(make) -> float:
        return count / measuring.seconds(lambda: [None for _ in make()])

    sides = {
        "ours": lambda: rate(lambda: ours(data)),
        "DataLoader of PIL images, 0 workers": lambda: rate(lambda: plain.loader(data, RECIPE)),
        "DataLoader of PIL images, 2 workers": lambda: rate(lambda: plain.loader(data, RECIPE, 2)),
        "transforms.v2 on tensors": lambda: rate(lambda: transforms_v2(data)),
        "kornia on batches": lambda: rate(lambda: kornia_batches(data)),
    }
    measuring.record("feed", measuring.take_turns(sides, given.rounds), "images/s", data)


if __name__ == "__main__":
    main()
