"""Classifies pictures with a trained network: `python -m scripts.classify runs/mine holiday.jpg *.png`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models import load_model
from s9.data import DataError
from scripts.endings import exit_code
from utils import classify


def classify_all(given: argparse.Namespace) -> None:
    """Print the likeliest classes of each picture.

    Raises:
        DataError: some files are no pictures; all others were classified before.
    """
    model, failed = load_model(given.run), []
    width = max(len(str(picture)) for picture in given.pictures)
    for picture in given.pictures:
        try:
            likely = list(classify(model, picture).items())[: given.top]
        except DataError as error:
            failed.append(str(error))
        else:
            print(f"{picture!s:{width}}  " + "  ".join(f"{name} {100 * share:.0f} %" for name, share in likely))
    if failed:
        raise DataError("\n".join(failed))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.classify", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, such as runs/mine")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    parser.add_argument("--top", type=int, default=3, help="classes to print for each picture (default: 3)")
    return exit_code(classify_all, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
