"""Random states that are put back after a review."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def kept_random_states() -> Iterator[None]:
    """Leave Python's, numpy's and torch's random states, at the end, as they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what a network may draw from
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
