"""Freed memory is kept where it should be, by the system's own count of pages handed out."""

import ctypes
import platform
import resource

import pytest
import torch

from memory import kept_for_reuse

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
PAGES = 64 * 2**20 // resource.getpagesize()  # of a block of 64 MB


def pages_handed_out(blocks: int = 4) -> int:
    """How many pages the system hands out for so many blocks of 64 MB, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again():
    with kept_for_reuse():
        assert min(pages_handed_out() for _ in range(4)) < PAGES / 4  # it may take a few until there is room
    assert pages_handed_out() > 3 * PAGES


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_memory_goes_back_afterwards_also_after_an_error():
    def stopped() -> None:
        with kept_for_reuse():
            torch.ones(256 * 2**20, dtype=torch.uint8)
            assert resident_bytes() > before + 200 * 2**20
            raise KeyboardInterrupt

    before = resident_bytes()
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert resident_bytes() < before + 32 * 2**20


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    with kept_for_reuse():
        pass
