"""Files that are never half-written or silently damaged, and folders that belong to one process at a time."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

UNFINISHED = ".s9-unfinished-"  # begins the names of the kit's own temporary folders, and of nothing else
SEAL = b"crc32 "


class DamagedError(ValueError):
    """A file is not what was written there."""


def told(path: str | Path) -> str:
    """A path as a message names it: on one line, and not for ever."""
    text = str(path) if str(path).isprintable() else repr(str(path))
    return text if len(text) <= 250 else f"{text[:100]}…{text[-100:]}"


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A new temporary folder of the kit's own, on the file system of `folder`; it is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as temporary:
        yield Path(temporary)


def write_whole(path: Path, write: Callable[[Path], object], previous: Path | None = None) -> None:
    """Call `write(temporary)` and rename the result to `path`, so that `path` is never half-written.

    An earlier file is kept as `previous`, if that is given.

    Raises:
        OSError: of `path`, whichever file could not be written; earlier files are intact.
    """
    try:
        with unfinished(path.parent) as folder:
            temporary = folder / path.name
            write(temporary)
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())  # on the disk before the name is, or a power cut would leave an empty file
            if previous and path.exists():
                _keep(path, previous, folder / previous.name)
            os.replace(temporary, path)
    except OSError as error:  # a full disk names no file, and otherwise it would be the temporary one
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def _keep(path: Path, previous: Path, temporary: Path) -> None:
    """Give the file a second name, in one step, so that both names stand for complete files at any moment."""
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
    os.replace(temporary, previous)


@contextlib.contextmanager
def locked(folder: Path, seconds: float = 0) -> Iterator[None]:
    """Hold `folder` for this process, and first delete what the kit's own killed processes left unfinished in it.

    The operating system gives the folder free when the process ends, however it ends.

    Raises:
        TimeoutError: another process still holds it after `seconds`; a negative number waits for ever.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".s9-lock", timeout=seconds):  # not "lock": some filelocks empty what is there
            for left in folder.glob(f"{UNFINISHED}*"):
                if not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
            yield
    except Timeout:
        raise TimeoutError(f"{folder} is in use by another process.") from None


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """Hold one file while it is read, changed and written; others wait, and what is beside it stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".s9-lock-{path.name}")):
        yield


def save_tensors(content, path: Path, previous: Path | None = None) -> None:
    """torch.save with a checksum over every byte of the file, which torch.load does not look at; see `write_whole`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, lambda temporary: temporary.write_bytes(_sealed(buffer.getvalue())), previous)


def _sealed(archive: bytes) -> bytes:
    """A zip file with the CRC-32 of its bytes as its comment; it has none yet."""
    length = len(SEAL) + 8
    archive = archive[:-2] + length.to_bytes(2, "little") + SEAL
    return archive + f"{zlib.crc32(archive):08x}".encode()


def read_tensors(path: Path):
    """What `save_tensors` wrote, of tensors and plain Python only: nothing in the file is executed.

    Raises:
        DamagedError: a byte of the file is not what was written, or it is no such file.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    archive, checksum = content[:-8], content[-8:]
    if not archive.endswith(SEAL) or f"{zlib.crc32(archive):08x}".encode() != checksum:
        raise DamagedError(f"{path} is damaged: its checksum is wrong")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own message says how to run what is in the file
        raise DamagedError(f"{path} holds something other than tensors and plain Python") from error
