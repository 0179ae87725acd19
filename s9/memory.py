"""Memory that training on a CPU frees and wants again in every step."""

import contextlib
import ctypes
import platform
import threading
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of <malloc.h>
MB = 2**20

_lock, _users = threading.Lock(), 0


@contextlib.contextmanager
def kept_for_reuse() -> Iterator[None]:
    """Let the C library keep the memory that is freed inside, so that what comes next finds it ready.

    glibc hands large blocks back to the system as soon as they are freed, and the system clears them page by page
    before it gives them out again. Each activation of a training step on a CPU would pay for that. The price is a
    higher peak, by a tenth to a third. The setting is the process's: it holds until the last of several trainings ends.
    Where the C library is another one this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    _count_user(1)
    try:
        yield
    finally:
        _count_user(-1)


def _count_user(change: int) -> None:
    """Count one user more or less; the first one sets, and the last one takes back."""
    global _users
    glibc = ctypes.CDLL(None)
    with _lock:
        _users += change
        if change > 0 and _users == 1:
            glibc.mallopt(M_MMAP_MAX, 0)
            glibc.mallopt(M_TRIM_THRESHOLD, -1)  # never
        elif _users == 0:
            # glibc cannot be told to adapt its thresholds again; these are where adapting would end.
            glibc.mallopt(M_MMAP_MAX, 65536)
            glibc.mallopt(M_MMAP_THRESHOLD, 32 * MB)
            glibc.mallopt(M_TRIM_THRESHOLD, 64 * MB)
            glibc.malloc_trim(0)
