"""The least time that a training step could take on this machine, from its arithmetic and from its memory."""

from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import utils
from netreview.traces import tensors_in
from s9.data import Data, subset
from s9.machine import default_device, resolve_precision
from scripts.benchmarks import measuring


class _Traffic(TorchDispatchMode):
    """Counts operations, and the bytes that they read and write, views left out."""

    def __init__(self):
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if not any(result.alias_info for result in function._schema.returns):
            self.operations += 1
            self.bytes += sum(tensor.nbytes for tensor in tensors_in([args, kwargs or {}, output]))
        return output


class Work(NamedTuple):
    """What a training step has to do."""

    arithmetic: int  # floating-point operations of its convolutions and matrix products
    traffic: int  # bytes that its operations read and write, each on its own
    operations: int


def work_of_a_step(experiment, data: Data) -> Work:
    """Forward and backward pass of `experiment` for one batch, the optimiser left out."""
    part = subset(data, experiment.recipe.batch_size)
    device = default_device()
    dtype = resolve_precision(experiment.recipe.precision, device)
    run = utils.Trainer(experiment.build(), part, experiment.recipe, device, dtype)
    run.network.train()
    images, labels = next(iter(run.batches))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run.loss(images, labels)
    with _Traffic() as traffic:
        loss, _ = run.loss(images, labels)
        loss.backward()
    # The gradients of a layer's input and of its weights take as much as the layer each. (The counter's own number for
    # them is too high: it takes those of a depthwise convolution for those of a dense one.)
    return Work(3 * counter.get_total_flops(), traffic.bytes, traffic.operations)


def arithmetic_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations per second in a product of two square matrices, the best of several."""
    a, b = (torch.randn(size, size, device=default_device()).to(dtype) for _ in range(2))
    return 2 * size**3 / min(measuring.seconds(lambda: a @ b) for _ in range(8))


def copy_rate(megabytes: int = 256) -> float:
    """Bytes per second that a copy reads and writes, the best of several."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=default_device())
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(measuring.seconds(lambda: target.copy_(source)) for _ in range(8))


def floor(work: Work, steps: float) -> dict[str, float]:
    """Seconds that `steps` steps take at least, by arithmetic in bf16 and by memory."""
    rates = arithmetic_rate(torch.bfloat16), copy_rate()
    print(f"bf16 {rates[0] / 1e9:.0f} GFLOP/s, copy {rates[1] / 1e9:.1f} GB/s")
    return {
        "floor: by arithmetic": steps * work.arithmetic / rates[0],
        "floor: by memory, each operation on its own": steps * work.traffic / rates[1],
    }
