"""Files that are never half-written, and folders that belong to one process at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


def write_whole(path: Path, write: Callable[[Path], object], previous: Path | None = None) -> None:
    """Call `write(temporary)` and rename the result to `path`, so that `path` is never half-written.

    What was there before is kept as `previous`, if that is given.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())  # on the disk before the name is, or a power cut would leave an empty file
        if previous and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Give the file a second name, in one step, so that at any moment both names stand for whole files."""
    temporary = previous.with_name(f"{previous.name}.{os.getpid()}.tmp")
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
    os.replace(temporary, previous)
    temporary.unlink(missing_ok=True)  # where both are one file already, replacing does nothing


@contextlib.contextmanager
def locked(folder: Path, seconds: float = 0) -> Iterator[None]:
    """Hold `folder` for this process, and first delete what a killed process left half-written in it.

    The operating system gives the folder free when the process ends, however it ends.

    Raises:
        TimeoutError: another process still holds it after `seconds`; a negative number waits for ever.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=seconds):
            for left in folder.glob("*.tmp"):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            yield
    except Timeout:
        raise TimeoutError(f"{folder} is in use by another process.") from None
