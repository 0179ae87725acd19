"""Review a network from the command line: python -m netreview MODULE:CALLABLE, file.py:Net or notebook.ipynb:Net."""

import argparse
import copy
import html
import sys
from pathlib import Path

import torch
from torch import nn

from netreview.findings import Findings
from netreview.randomness import kept_random_states
from netreview.reviewer import review
from netreview.script import main_of_script
from netreview.targets import Unusable, made
from netreview.traces import tensors_in

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }} th, td {{ padding: .4em .6em; border: 1px solid #bbb; vertical-align: top }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def main(arguments: list[str] | None = None) -> int:
    """Print what a review finds; 0 where there is no error, 1 where there is one, 2 where nothing could be reviewed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--script"]:
        return main_of_script(arguments[1:])
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.images < 2 or min(given.size) < 1:
        parser.error("--images takes 2 or more, and --size numbers of 1 or more.")
    try:
        title, findings = reviewed(given)
        if given.html:
            given.html.write_text(page(title, findings._repr_html_()), encoding="utf-8")
    except (Unusable, ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{title}:")
    if not given.data:
        print("Give real images with --data MODULE:CALLABLE: noise says nothing about the data.")
    print(findings)
    return int(any(finding.severity == "error" for finding in findings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netreview",
        description="Review an image classifier; or, as netreview --script FILE, watch a training script. "
        "Exit code: 0 no error, 1 an error was found, 2 nothing was reviewed.",
    )
    parser.add_argument(
        "network", metavar="NETWORK", help="what makes it: MODULE:CALLABLE, path/to/file.py:Net or notebook.ipynb:Net"
    )
    parser.add_argument("--args", default="", help='arguments for it, as Python writes them: --args "10, dropout=0.1"')
    parser.add_argument("--data", metavar="MODULE:CALLABLE", help="what gives images and labels (default: noise)")
    parser.add_argument("--size", nargs=3, type=int, default=(3, 32, 32), metavar=("C", "H", "W"), help="of the noise")
    parser.add_argument("--images", type=int, default=64, help="how many of them to use (default: 64)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write what is found as a page, too")
    return parser


def reviewed(given: argparse.Namespace) -> tuple[str, Findings]:
    """What was reviewed, in a line, and what was found.

    Raises:
        Unusable: it cannot be reviewed.
    """
    model = made(given.network, given.args)
    if not isinstance(model, nn.Module):
        raise Unusable(f"{given.network} returns no network, but a {type(model).__name__}.")
    images, labels = _data(given.data) if given.data else _noise(model, given.images, given.size)
    title = f"{given.network} on {len(images[: given.images])} images{'' if given.data else ' of noise'}"
    try:
        return title, review(model, images[: given.images], labels[: given.images])
    except ValueError:
        raise
    except Exception as error:  # whatever else a network may do
        raise Unusable(f"{given.network} cannot be reviewed: {type(error).__name__}: {error}") from error


def page(title: str, body: str) -> str:
    """A page of HTML that needs nothing else; `body` is HTML."""
    return PAGE.format(title=html.escape(title), body=body)


def _data(target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels that a callable gives."""
    given = made(target)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise Unusable(f"{target} has to return (images, labels), and returns a {type(given).__name__}.")
    return tuple(given)


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
