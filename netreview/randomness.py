"""Random states that are put back."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def kept_random_states() -> Iterator[None]:
    """Leave Python's, numpy's and torch's random states, at the end, as they were."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what a network may draw from
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
