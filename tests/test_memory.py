"""Freed memory is kept where it should be, by the system's own counts, in a process of its own."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from memory import kept_for_reuse

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, or no /proc")

PRELUDE = """
import resource
import torch
from memory import kept_for_reuse

PAGE = resource.getpagesize()

def pages_handed_out(megabytes=64):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(megabytes * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE
"""


def execute(code: str) -> None:
    """Run `code` in a new process, whose memory no other test has been through."""
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", PRELUDE + code], check=True, cwd=root, timeout=120)


@on_glibc
def test_freed_memory_is_used_again():
    execute("""
with kept_for_reuse():
    assert min(pages_handed_out() for _ in range(4)) * PAGE < 16 * 2**20  # it may take a few until there is room
assert pages_handed_out() * PAGE > 3 * 64 * 2**20
""")


@on_glibc
def test_memory_goes_back_afterwards_also_after_an_error():
    execute("""
before = resident_bytes()
try:
    with kept_for_reuse():
        torch.ones(256 * 2**20, dtype=torch.uint8)
        assert resident_bytes() > before + 200 * 2**20
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
assert resident_bytes() < before + 32 * 2**20
""")


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    with kept_for_reuse():
        pass
