"""Watches a training script as it is: `python -m netreview --script train.py`."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from netreview.findings import Findings
from netreview.watch import watch


class _Enough(BaseException):
    """Enough steps were seen; nothing that the script catches."""


class _FirstNetwork:
    """Watches the first network that is trained, the outermost module of a pass with gradients, for some steps."""

    def __init__(self, steps: int):
        self.steps, self.taken = steps, 0
        self.watching: watch | None = None
        self.handles = [register_module_forward_pre_hook(self.entered), register_optimizer_step_post_hook(self.stepped)]

    def entered(self, module: nn.Module, _) -> None:
        trained = any(parameter.requires_grad for parameter in module.parameters())
        if self.watching is None and trained and module.training and torch.is_grad_enabled():
            self.watching = watch(module)
            self.watching.__enter__()

    def stepped(self, *_) -> None:
        self.taken += 1
        if self.taken >= self.steps:
            raise _Enough

    def end(self, error: BaseException | None) -> Findings:
        for handle in self.handles:
            handle.remove()
        if self.watching is None:
            return Findings()
        self.watching.__exit__(type(error) if error else None, error, None)
        return self.watching.watched.findings


def main_of_script(arguments: list[str]) -> int:
    """Run a script under watch and print what is found; 0 no error, 1 an error was found, 2 nothing was trained."""
    parser = argparse.ArgumentParser(prog="netreview --script", description=__doc__)
    parser.add_argument("script", type=Path)
    parser.add_argument("--steps", type=int, default=50, help="until the script is ended (default: 50)")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given, others = parser.parse_known_args(arguments[:end])  # what is not known is the script's own
    if not given.script.is_file():
        parser.error(f"There is no file {given.script}.")
    if given.steps < 1:
        parser.error("--steps takes 1 or more.")
    first, error = _FirstNetwork(given.steps), None
    own, path = sys.argv, sys.path[:]
    sys.argv = [str(given.script), *others, *arguments[end + 1 :]]
    sys.path.insert(0, str(given.script.resolve().parent))
    try:
        runpy.run_path(str(given.script), run_name="__main__")
    except _Enough:
        pass
    except SystemExit as stop:
        error = None if not stop.code else RuntimeError(f"the script ended with exit code {stop.code}")
    except Exception as raised:  # the script's own code may raise anything
        error = raised
    finally:
        sys.argv, sys.path[:] = own, path
        findings = first.end(error)
    if first.watching is None:
        how = f", and ended with {type(error).__name__}: {str(error).partition(chr(10))[0]}" if error else ""
        print(f"netreview: {given.script} trained no network{how}.", file=sys.stderr)
        return 2
    name = type(first.watching.watched.model).__name__
    print(f"{given.script}, {first.taken} steps of {name}:\n{findings}")
    return int(any(finding.severity == "error" for finding in findings))
