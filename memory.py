"""Memory that training frees and wants again in every step."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of <malloc.h>
MB = 2**20


@contextlib.contextmanager
def kept_for_reuse() -> Iterator[None]:
    """Let the C library keep the memory that is freed inside, so that what comes next finds it ready.

    glibc hands large blocks back to the system as soon as they are freed, and the system clears them page by page
    before it gives them out again. Each activation of a training step on a CPU would pay for that. Where the C library
    is another one this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    glibc = ctypes.CDLL(None)
    glibc.mallopt(M_MMAP_MAX, 0)
    glibc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:  # back to the most that glibc keeps of its own accord
        glibc.mallopt(M_MMAP_MAX, 65536)
        glibc.mallopt(M_MMAP_THRESHOLD, 32 * MB)
        glibc.mallopt(M_TRIM_THRESHOLD, 64 * MB)
        glibc.malloc_trim(0)
