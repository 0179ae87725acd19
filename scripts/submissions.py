"""Finds the network in what a student handed in, and reviews it: `python -m scripts.submissions FOLDER` prints JSON."""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import re
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from netreview import review
from netreview.targets import Unusable, made, source
from netreview.traces import tensors_in
from s9.brief import check_brief

SIZE = (3, 32, 32)
SKIPPED = re.compile(r"(^\.|__pycache__|checkpoints|__MACOSX|site-packages|^venv$|^test_|^setup\.py$)")
MOST_TRIED = 20


def files_of(submission: Path) -> list[Path]:
    """The files of Python and the notebooks of a submission, which is one of these or a folder."""
    if submission.is_file():
        return [submission]
    found = [path for path in sorted(submission.rglob("*")) if path.suffix in (".py", ".ipynb") and path.is_file()]
    return [path for path in found if not any(map(SKIPPED.search, path.relative_to(submission).parts))]


def candidates(submission: Path) -> list[str]:
    """What may be the network, as FILE:CLASS, the likeliest first.

    Classes derived from a Module that no other of these classes uses; those that the submission calls most come first.
    """
    trees = {}
    for path in files_of(submission):
        with contextlib.suppress(SyntaxError, ValueError, KeyError, OSError):
            trees[path] = ast.parse(source(path))
    classes = [
        (path, part) for path, tree in trees.items() for part in ast.walk(tree) if isinstance(part, ast.ClassDef)
    ]
    names = {"Module", "Sequential", "LightningModule"}
    for _ in range(4):  # classes derived from classes
        names |= {part.name for _, part in classes if any(_last(base) in names for base in part.bases)}
    networks = [(path, part) for path, part in classes if part.name in names]
    inside = {}  # which classes mention which
    for _, part in networks:
        mentioned = {item.id for item in ast.walk(part) if isinstance(item, ast.Name)}
        inside.setdefault(part.name, set()).update(mentioned - {part.name})
    used = set().union(*inside.values()) if inside else set()
    called: dict[str, int] = {}
    for tree in trees.values():
        for call in (item for item in ast.walk(tree) if isinstance(item, ast.Call)):
            called[_last(call.func)] = called.get(_last(call.func), 0) + 1
    found = {f"{path}:{part.name}": (part.name in used, -called.get(part.name, 0)) for path, part in networks}
    return sorted(found, key=found.get)[:MOST_TRIED]


def _last(expression: ast.expr) -> str:
    return ast.unparse(expression).rpartition(".")[2]


def mark_one(submission: Path, arguments: str = "") -> dict:
    """The row of a submission: its network, rules and findings, or the sentence that says why there are none."""
    row = {"submission": submission.name, "network": "", "parameters": "", "problem": ""}
    found = candidates(submission)
    problems = [] if found else ["No class derived from nn.Module was found."]
    for target in found:
        try:
            model = _classifier(target, arguments)
        except Unusable as error:
            problems.append(str(error))
            continue
        row["network"] = str(Path(target).relative_to(submission if submission.is_dir() else submission.parent))
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        return row | _judged(model)
    return row | {"problem": problems[0]}


def _classifier(target: str, arguments: str) -> nn.Module:
    """A network that gives a row of numbers for an image of CIFAR-10.

    Raises:
        Unusable: it does not.
    """
    try:
        model = made(target)
    except Unusable:
        if not arguments:
            raise
        model = made(target, arguments)
    if not isinstance(model, nn.Module):
        raise Unusable(f"{target} returns no network, but a {type(model).__name__}.")
    model = model.cpu()
    try:
        with torch.no_grad():
            outputs = tensors_in(model.eval()(torch.randn(2, *SIZE)))
    except Exception as error:
        message = str(error).strip().partition("\n")[0][:200]
        raise Unusable(f"{target} does not run on images of 32x32 ({type(error).__name__}: {message}).") from error
    if not any(output.ndim == 2 and len(output) == 2 and output.shape[1] > 1 for output in outputs):
        raise Unusable(f"{target} gives no row of logits for each image.")
    return model.train()


def _judged(model: nn.Module) -> dict:
    """The assignment's rules and the review's findings, as far as they can be had."""
    judged: dict = {"rules": [], "findings": [], "problem": ""}
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, *SIZE, generator=generator), torch.arange(64) % 10
    try:
        judged["rules"] = [rule._asdict() for rule in check_brief(model, None)]
        judged["findings"] = [vars(finding) for finding in review(model, images, labels)]
    except Exception as error:  # their code may raise anything
        judged["problem"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    return judged


def main() -> int:
    """Print the row of the submission that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("submission", type=Path)
    parser.add_argument("--args", default="")
    parser.add_argument("--memory", type=float, default=8, help="gigabytes that it may take")
    given = parser.parse_args()
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits of this kind
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(given.memory * 2**30),) * 2)
    warnings.simplefilter("ignore")
    print(json.dumps(mark_one(given.submission.resolve(), given.args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
