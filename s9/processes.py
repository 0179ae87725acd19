"""Data-parallel training in several processes, one a GPU or a CPU, that torchrun starts on one machine or many.

`torchrun --nproc-per-node 2 train.py NAME` runs train.py twice; what follows makes the two work on one model.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = datetime.timedelta(minutes=10)  # that a process waits for the others before it takes them for lost


class World(NamedTuple):
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0


def current_world() -> World:
    """The processes that were joined, or this one alone."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, over NCCL on GPUs and gloo on CPUs; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield World()
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield current_world()
    finally:
        if on_gpu:  # gloo ends with its process; torch 2.7's now and then hangs when it is taken down before
            dist.destroy_process_group()


def data_parallel(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The model whose gradients are averaged over all processes; alone, the model itself.

    On GPUs its BatchNorms see the batch of all processes. SyncBatchNorm has no CPU version: there each process
    normalises by its own share of the batch, and `average_statistics` averages what they have gathered.
    """
    if world.size == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # holds the same parameters and statistics
        return DistributedDataParallel(model, device_ids=[device.index or torch.cuda.current_device()])
    arguments = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in arguments else "broadcast_buffers"  # before torch 2.14
    return DistributedDataParallel(model, **{name: False})


def average_statistics(model: nn.Module, world: World) -> None:
    """Average the running statistics of BatchNorm over all processes."""
    for buffer in model.buffers():
        if world.size > 1 and buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world.size


def total(numbers: torch.Tensor, world: World) -> torch.Tensor:
    """The sum of `numbers` over all processes."""
    if world.size > 1:
        dist.all_reduce(numbers)
    return numbers


def by_main(world: World, compute: Callable[[], object]):
    """What `compute()` gives or raises in the main process, in every process: only the main one calls it."""
    outcome = [None, None]
    if world.is_main:
        try:
            outcome[0] = compute()
        except Exception as error:
            if world.size == 1:
                raise
            outcome[1] = error
    if world.size > 1:
        dist.broadcast_object_list(outcome)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]
