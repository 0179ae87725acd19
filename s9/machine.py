"""The machine that a training runs on: its device, its number formats, its name for records, and its memory."""

import contextlib
import ctypes
import platform
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from s9.data import Data


def default_device() -> torch.device:
    """The GPU where there is one, NVIDIA's or Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def chosen_device(device: torch.device | str | None) -> torch.device:
    """`device`, or the default one for None.

    Raises:
        ValueError: there is no such device here.
    """
    if device is None:
        return default_device()
    try:
        torch.empty(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).partition("\n")[0][:150]
        raise ValueError(f"device={str(device)!r} is not to be had here ({reason}): give None for the best.") from error


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; one that only emulates it is slower in it than in fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # not in torch 2.7
        return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    processor = Path("/proc/cpuinfo")
    return processor.exists() and bool({"avx512_bf16", "amx_bf16"} & set(processor.read_text().split()))


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The number format for `precision` on `device`: "auto" takes bf16 where there are instructions for it.

    Raises:
        ValueError: the device cannot compute in this precision.
    """
    on_gpu = device.type == "cuda"
    automatic = torch.bfloat16 if has_bf16(device) else torch.float16 if on_gpu else torch.float32
    if precision == "fp16" and not on_gpu:
        raise ValueError('Recipe: precision="fp16" needs an NVIDIA GPU; choose "fp32" or "auto".')
    if precision == "bf16" and device.type != "cpu" and not has_bf16(device):
        raise ValueError('Recipe: precision="bf16" is not what this GPU computes in; choose "auto" or "fp32".')
    return {"auto": automatic, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Compute in `dtype` where that is safe; nothing for float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def environment(data: Data, device: torch.device, dtype: torch.dtype) -> dict:
    """Hardware and software, recorded with results; `dtype` is what was computed in."""
    return {
        "device": device_name(device),
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "data": f"{data.name}, {data.copy}",
    }


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and how many of its cores torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()}, {torch.get_num_threads()} CPU cores"


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of <malloc.h>
MB = 2**20

_lock, _users = threading.Lock(), 0


@contextlib.contextmanager
def kept_for_reuse(device: torch.device) -> Iterator[None]:
    """While training on a CPU, let the C library keep freed memory, so that what comes next finds it ready.

    glibc hands large blocks back to the system as soon as they are freed, and the system clears them page by page
    before it gives them out again. Each activation of a training step on a CPU would pay for that. The price is a
    higher peak, by a tenth to a third. The setting is the process's: it holds until the last of several trainings ends.
    Where the C library is another one this does nothing.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
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
