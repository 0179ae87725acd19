"""Review a network from the command line: python -m netreview MODULE:CALLABLE, or path/to/file.py:Net."""

import argparse
import copy
import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from netreview.randomness import kept_random_states
from netreview.reviewer import review
from netreview.traces import tensors_in


class Unusable(Exception):
    """What was named on the command line is not there, or does not work."""


def main(arguments: list[str] | None = None) -> int:
    """Print what a review finds; 0 where there is no error, 1 where there is one, 2 where nothing could be reviewed."""
    parser = argparse.ArgumentParser(prog="netreview", description="Review an image classifier.")
    parser.add_argument("network", metavar="MODULE:CALLABLE", help="what makes the network; or path/to/file.py:Net")
    parser.add_argument("--data", metavar="MODULE:CALLABLE", help="what gives images and labels (default: noise)")
    parser.add_argument("--size", nargs=3, type=int, default=(3, 32, 32), metavar=("C", "H", "W"), help="of the noise")
    parser.add_argument("--images", type=int, default=64, help="how many of them to use (default: 64)")
    given = parser.parse_args(arguments)
    if given.images < 2 or min(given.size) < 1:
        parser.error("--images takes 2 or more, and --size numbers of 1 or more.")
    try:
        model = _made(given.network)
        if not isinstance(model, nn.Module):
            raise Unusable(f"{given.network} gives no network, but a {type(model).__name__}.")
        images, labels = _data(given.data) if given.data else _noise(model, given.images, given.size)
        findings = review(model, images[: given.images], labels[: given.images])
    except (Unusable, ValueError) as error:
        parser.error(str(error))
    print(f"{given.network} on {len(images[: given.images])} images{'' if given.data else ' of noise'}:")
    if not given.data:
        print("Name real images with --data MODULE:CALLABLE: of noise, nothing is said about the data.")
    print(findings)
    return int(any(finding.severity == "error" for finding in findings))


def _made(target: str):
    """What MODULE:CALLABLE, or FILE:CALLABLE, gives when it is called."""
    place, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():
        raise Unusable(f"{target!r} names no callable: give MODULE:CALLABLE or path/to/file.py:CALLABLE.")
    folder, module = (Path(place).parent, Path(place).stem) if place.endswith(".py") else (Path(), place)
    if place.endswith(".py") and not Path(place).is_file():
        raise Unusable(f"There is no file {place}.")
    arguments, sys.argv = sys.argv, [place]  # the module may have a command line of its own
    sys.path.insert(0, str(folder.resolve()))  # its neighbours are imported from here
    try:
        made = getattr(importlib.import_module(module), name)
        return made if isinstance(made, nn.Module) else made()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise Unusable(f"{target} cannot be made: {type(error).__name__}: {error}") from error
    finally:
        sys.argv = arguments


def _data(target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels that a callable gives."""
    made = _made(target)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise Unusable(f"{target} has to give (images, labels), and gives a {type(made).__name__}.")
    return tuple(made)


def _noise(model: nn.Module, count: int, size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal images, and labels that take turns among as many classes as the network has."""
    generator = torch.Generator().manual_seed(0)
    images, classes = torch.randn(count, *size, generator=generator), 10
    try:
        with torch.no_grad(), kept_random_states():
            classes = tensors_in(copy.deepcopy(model).eval()(images[:2]))[0].shape[-1]
    except Exception:  # whatever is wrong with it, the review says so
        pass
    return images, torch.arange(count) % classes


if __name__ == "__main__":
    sys.exit(main())
