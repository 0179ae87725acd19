"""All random states that training depends on: Python's, numpy's and torch's."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

STREAMS = ("order", "augmentation", "dropout")  # what is drawn independently of the others


def epoch_seed(seed: int, epoch: int, stream: str, rank: int = 0) -> int:
    """A seed for one stream of random numbers in one epoch of one process; all of them differ.

    It has 32 bits, since torch's generator on a CPU ignores any others. numpy's SeedSequence mixes them.
    """
    return int(np.random.SeedSequence((seed, epoch, STREAMS.index(stream), rank)).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what a network may draw from
    torch.manual_seed(seed)


def random_states() -> dict:
    """All states as tensors and plain Python, for a checkpoint."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def set_random_states(states: dict) -> None:
    """Put `random_states()` back; those of GPUs only where there are as many."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    if states.get("mps") and torch.backends.mps.is_available():
        torch.mps.set_rng_state(*states["mps"])


@contextlib.contextmanager
def kept_random_states() -> Iterator[None]:
    """Leave all random states, at the end, as they were."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)
