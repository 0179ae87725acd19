"""Reviews a network from the command line: `python -m netreview MODULE:CALLABLE`."""

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

import torch

from netreview import review


def loaded(named: str):
    """The object that MODULE:NAME or path/to/file.py:NAME names; the folder of the file comes first for its imports.

    Raises:
        ValueError: there is none; the message says why.
    """
    source, _, name = named.rpartition(":")
    if not source or not name:
        raise ValueError(f"{named!r} names nothing: write MODULE:NAME or path/to/file.py:NAME.")
    try:
        if source.endswith(".py"):
            path = Path(source).resolve()
            sys.path.insert(0, str(path.parent))
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, "")
            module = importlib.import_module(source)
        return getattr(module, name)
    except (Exception, SystemExit) as error:  # whatever the user's own code does
        raise ValueError(f"{named} cannot be loaded ({type(error).__name__}: {error}).") from error


def random_batch(size: tuple[int, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal noise in place of normalised images, and the labels 0 to 9 in turn."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *size, generator=generator), torch.arange(count) % 10


def main(arguments: list[str] | None = None) -> int:
    """Review what the command line names: 0 without errors, 1 where some were found, 2 where it could not be done."""
    parser = argparse.ArgumentParser(prog="python -m netreview", description="Review an image classifier.")
    parser.add_argument("network", metavar="MODULE:CALLABLE", help="what returns the network; or path/to/file.py:NAME")
    parser.add_argument(
        "--data", metavar="MODULE:CALLABLE", help="what returns images (N, C, H, W), normalised, and labels (N,)"
    )
    parser.add_argument("--size", nargs=3, type=int, default=(3, 32, 32), metavar=("C", "H", "W"), help="of an image")
    parser.add_argument("--images", type=int, default=128, help="how many are made up without --data (default: 128)")
    given = parser.parse_args(arguments)
    try:
        if given.images < 2:
            raise ValueError(f"--images {given.images} are too few: give 2 or more.")
        images, labels = loaded(given.data)() if given.data else random_batch(given.size, given.images)
        model = loaded(given.network)()
        if not isinstance(model, torch.nn.Module):
            raise ValueError(f"{given.network}() gives {type(model).__name__}, which is no network.")
        findings = review(model, images, labels)
    except Exception as error:
        print(f"{given.network} could not be reviewed: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    kind = "images" if given.data else "images of random noise (give your own by --data)"
    print(f"{given.network} on {len(labels)} {kind}:\n{findings}")
    return int(any(finding.severity == "error" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
