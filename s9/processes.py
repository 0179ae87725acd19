"""Data-parallel training in several processes, one per GPU or CPU, that torchrun starts on one machine or many.

`torchrun --nproc-per-node 2 train.py NAME` runs train.py twice; what follows makes the two work on one model.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import inspect
import os
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = datetime.timedelta(minutes=10)  # that a process waits for the others before it takes them for lost


@contextlib.contextmanager
def joined() -> Iterator[Team]:
    """Join the processes that torchrun started, over NCCL on GPUs and gloo on CPUs; alone, do nothing.

    Raises:
        ValueError: the environment says that there are others, and torchrun has not said who.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield Team()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not size.isdecimal():
        lacking = f", and {missing[0]} is not" if missing else ""
        raise ValueError(f"WORLD_SIZE={size} is set{lacking}: start with torchrun, or unset WORLD_SIZE.")
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Team()
    finally:
        if on_gpu:  # gloo ends with its process; torch 2.7's now and then hangs when it is taken down before
            dist.destroy_process_group()


class Team:
    """The processes that train one model together, or this one alone, for which each method does next to nothing.

    All processes make the same batches, and each takes its share of each. The weighted mean of their losses, and so of
    their gradients, is that of the whole batch.
    """

    def __init__(self):
        started = dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if started else (0, 1)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> tuple[slice, float]:
        """Which of `count` images are this process's, and by what to multiply their mean loss.

        Where there are fewer images than processes, some take one with a weight of 0, since all have to take the step.
        """
        own = len(range(self.rank, count, self.size))
        return (slice(self.rank, count, self.size), own * self.size / count) if own else (slice(0, 1), 0.0)

    def mean(self, numbers: torch.Tensor) -> torch.Tensor:
        """The mean of `numbers` over all processes, so that one that is not finite is seen by all."""
        if self.size > 1:
            numbers = numbers.clone()
            dist.all_reduce(numbers)
            numbers /= self.size
        return numbers

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """A network of the same parameters and buffers whose gradients are averaged over all processes.

        On GPUs its BatchNorms see the batch of all processes. SyncBatchNorm has no CPU version: there each process
        normalises by its own share of the batch, and `average_statistics` averages what they have gathered.
        """
        if self.size == 1:
            return model
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            return DistributedDataParallel(synchronised(model), device_ids=[index])
        arguments = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in arguments else "broadcast_buffers"  # torch < 2.14
        return DistributedDataParallel(model, **{name: False})

    def average_statistics(self, model: nn.Module) -> None:
        """Average the running statistics of BatchNorm over all processes."""
        if self.size > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.mean(buffer))

    def by_main(self, compute: Callable, *arguments):
        """What `compute(*arguments)` gives or raises in the main process, in every process: only that one calls it."""
        if self.size == 1:
            return compute(*arguments)
        outcome = [None, None]
        if self.is_main:
            try:
                outcome[0] = compute(*arguments)
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1]:
            raise outcome[1]
        return outcome[0]

    def first_answer(self, answer: str | None) -> str | None:
        """The first of all processes' answers that is not empty."""
        if self.size == 1:
            return answer
        answers = [None] * self.size
        dist.all_gather_object(answers, answer)
        return next((answer for answer in answers if answer), None)


def synchronised(model: nn.Module) -> nn.Module:
    """Other modules of the same tensors, whose BatchNorms see the batch of all processes; `model` stays as it is."""
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model, held))
