"""The least time that a training step could take on this machine, from its arithmetic and from its memory."""

import math

import measuring
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import training
import utils
from tracing import tensors_in


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, views left out."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if not any(result.alias_info for result in function._schema.returns):
            self.bytes += sum(tensor.nbytes for tensor in tensors_in([args, kwargs or {}, output]))
        return output


def work_of_a_step(experiment, data: utils.Data) -> tuple[int, int]:
    """Floating-point operations of a training step of `experiment`, and bytes that its operations read and write."""
    part = utils.subset(data, experiment.recipe.batch_size)
    run = training._Training(experiment.build(), part, experiment.recipe, utils.default_device(), False, None)
    run.network.train()
    images, labels = next(iter(run.batches))
    counts = []
    for counter in (FlopCounterMode(display=False), _Traffic()):
        with counter:
            loss, _ = run._loss(images, labels, len(labels))
            loss.backward()
        counts.append(counter.get_total_flops() if isinstance(counter, FlopCounterMode) else counter.bytes)
    return counts[0], counts[1]


def arithmetic_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second in a product of two square matrices, the best of several."""
    a, b = (torch.randn(size, size, device=utils.default_device()).to(dtype) for _ in range(2))
    return 2 * size**3 / min(measuring.seconds(lambda: a @ b) for _ in range(8))


def copy_rate(megabytes: int = 256) -> float:
    """Bytes a second that a copy reads and writes, the best of several."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=utils.default_device())
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(measuring.seconds(lambda: target.copy_(source)) for _ in range(8))


def floor(work: tuple[int, int], steps: float) -> dict[str, float]:
    """Seconds that `steps` steps of (operations, bytes) take at least, by arithmetic in bf16 and by memory."""
    operations, traffic = work
    rates = arithmetic_rate(torch.bfloat16), copy_rate()
    print(f"bf16 {rates[0] / 1e9:.0f} GFLOP/s, copy {rates[1] / 1e9:.1f} GB/s")
    print(f"a step: {operations / 1e9:.1f} GFLOP, {traffic / 1e9:.2f} GB read and written")
    return {
        "floor by arithmetic": math.ceil(1000 * steps * operations / rates[0]) / 1000,
        "floor by memory, each operation on its own": math.ceil(1000 * steps * traffic / rates[1]) / 1000,
    }
