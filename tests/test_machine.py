"""The C library is told to keep freed memory, and told otherwise again afterwards, whatever happens between."""

import ctypes
import platform
from unittest import mock

import pytest
import torch

from s9.machine import kept_for_reuse

CPU = torch.device("cpu")
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # glibc's malloc.h


def test_glibc_keeps_memory_inside_and_gives_it_back_after_an_error(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    glibc = mock.Mock()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: glibc)

    def stopped() -> None:
        with kept_for_reuse(CPU):
            assert glibc.mock_calls == [mock.call.mallopt(MMAP_MAX, 0), mock.call.mallopt(TRIM_THRESHOLD, -1)]
            glibc.reset_mock()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert glibc.mock_calls[:-1] == [
        mock.call.mallopt(MMAP_MAX, 65536),
        mock.call.mallopt(MMAP_THRESHOLD, 32 * 2**20),
        mock.call.mallopt(TRIM_THRESHOLD, 64 * 2**20),
    ]
    assert glibc.mock_calls[-1] == mock.call.malloc_trim(0)


def test_the_last_of_several_users_takes_the_setting_back(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    glibc = mock.Mock()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: glibc)
    first, second = kept_for_reuse(CPU), kept_for_reuse(CPU)
    first.__enter__()
    second.__enter__()
    assert len(glibc.mock_calls) == 2
    first.__exit__(None, None, None)
    assert len(glibc.mock_calls) == 2
    second.__exit__(None, None, None)
    assert glibc.mock_calls[-1] == mock.call.malloc_trim(0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_takes_these_settings():
    """mallopt gives 1 where it knows a setting and takes its value."""
    glibc = ctypes.CDLL(None)
    for setting, value in ((MMAP_MAX, 65536), (MMAP_THRESHOLD, 32 * 2**20), (TRIM_THRESHOLD, 64 * 2**20)):
        assert glibc.mallopt(setting, value) == 1


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    with kept_for_reuse(CPU):
        pass


def test_on_a_gpu_the_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", None)
    with kept_for_reuse(torch.device("cuda")):
        pass
