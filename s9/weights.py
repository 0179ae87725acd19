"""A trained network's weights on disk, with its classes and its normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from s9.files import DamagedError, read_tensors, save_tensors


class Preprocessing(NamedTuple):
    """What belongs to a trained network besides its weights; `train` leaves it on the model as `preprocessing`."""

    classes: tuple[str, ...]  # the names of its outputs
    mean: tuple[float, ...]  # of each channel, in 0..1, that is subtracted
    std: tuple[float, ...]  # of each channel, in 0..1, that is divided by

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (N, C, H, W) as the network takes them, float32."""
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters, buffers and preprocessing of a network that `train` trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_tensors({"weights": weights, "preprocessing": tuple(model.preprocessing)}, path)


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load what `save_weights` wrote into `model`, and return it in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its weights are those of another network.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: fetch it with the rest of the kit, or train the network again.")
    try:
        content = read_tensors(path)
        weights, preprocessing = content["weights"], Preprocessing(*content["preprocessing"])
    except (DamagedError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no valid weights ({error}): fetch it again.") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} holds the weights of another network than {type(model).__name__}.") from error
    model.preprocessing = preprocessing
    return model.eval()
