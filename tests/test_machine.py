"""The device, the number format, and what the C library is told about memory."""

import ctypes
import platform
from unittest import mock

import pytest
import torch

from s9 import machine
from s9.machine import default_device, kept_for_reuse, resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")
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


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx512_f": True, "avx512_vnni": True}, torch.float32),  # Skylake to Ice Lake: bf16 would be emulated
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_auto_takes_bf16_where_the_processor_has_its_instructions(monkeypatch, instructions, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("bf16", CPU) == torch.bfloat16  # asked for by name, it is given


@pytest.mark.parametrize(("capability", "automatic"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_precision_on_gpus_with_and_without_bf16(monkeypatch, capability, automatic):
    """A T4 has 7.5, an A100 8.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", GPU) == automatic
    if automatic is torch.float16:
        with pytest.raises(ValueError, match=r"bf16.*this GPU"):
            resolve_precision("bf16", GPU)
    else:
        assert resolve_precision("bf16", GPU) == torch.bfloat16


def test_apples_gpu_computes_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert default_device() == torch.device("mps")
    assert resolve_precision("auto", torch.device("mps")) == torch.float32
    for precision in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=precision):
            resolve_precision(precision, torch.device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert default_device() == CPU


def test_an_older_torch_is_told_by_the_system(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for flags, expected in (("fpu avx512f avx512_bf16", torch.bfloat16), ("fpu avx512f", torch.float32)):
        cpuinfo = mock.Mock(exists=lambda: True, read_text=lambda flags=flags: f"flags : {flags}\n")
        monkeypatch.setattr(machine, "Path", lambda path, cpuinfo=cpuinfo: cpuinfo)
        assert resolve_precision("auto", CPU) == expected
