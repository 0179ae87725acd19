"""Copies of networks, whatever they hold, and passes through them that say where they failed."""

import contextlib
import copy
import types
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class DoesNotRun(Exception):
    """The network's own code raised an error, in a module, on tensors of some shapes."""

    def __init__(self, where: str, kind: str, shapes: list[tuple[int, ...]], error: Exception):
        self.where = where
        message = str(error).strip().partition("\n")[0][:300]
        given = f" on {' and '.join(map(str, shapes))}" if shapes else ""
        super().__init__(f"{kind}{given} raises {type(error).__name__}: {message}")


def copied(model: nn.Module, *others):
    """A deep copy of a model, and of what belongs to it, such as an optimiser, with the copy's parameters.

    Tensors that a model keeps of its last pass are detached; what cannot be copied, such as an open file, is shared.
    Hooks that are plain functions are left out: what they write to is their owner's.
    """
    things = (model, *others)
    try:
        copies = copy.deepcopy(things)
    except Exception:  # whatever a class may raise in being copied
        memo: dict = {}
        for module in model.modules():
            for name, value in vars(module).items():
                if name not in ("_modules", "_parameters", "_buffers"):
                    _note_uncopyable(value, memo)
        copies = copy.deepcopy(things, memo)
    for own, other in zip(copies[0].parameters(), model.parameters(), strict=True):
        if not own.is_leaf:  # a ScriptModule's are copied with a graph
            own.detach_().requires_grad_(other.requires_grad)
    for module in copies[0].modules():
        for name in _HOOKS:
            hooks = vars(module).get(name) or {}
            for key in [key for key, hook in hooks.items() if isinstance(hook, types.FunctionType | partial)]:
                del hooks[key]
    return copies if others else copies[0]


def _note_uncopyable(value, memo: dict) -> None:
    """Put stand-ins into a memo of deepcopy for what cannot be copied."""
    try:
        copy.deepcopy(value)
        return
    except Exception:  # as above
        pass
    if isinstance(value, torch.Tensor):
        memo[id(value)] = value.detach().clone()
    elif isinstance(value, dict | list | tuple | set):
        for item in value.values() if isinstance(value, dict) else value:
            _note_uncopyable(item, memo)
    else:
        memo[id(value)] = value


@contextlib.contextmanager
def located(model: nn.Module) -> Iterator[None]:
    """Turn an error in a pass through `model` into a DoesNotRun that names the module it came from."""
    inside: list[tuple[str, nn.Module, tuple]] = [("", model, ())]

    def entered(module, inputs, path):
        inside.append((path, module, inputs))

    def left(*_):
        inside.pop()

    handles = []
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # these take no hooks
            handles += [
                module.register_forward_pre_hook(partial(entered, path=path)),
                module.register_forward_hook(left),
            ]
    try:
        yield
    except Exception as error:
        path, module, inputs = inside[-1]
        shapes = [tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor)]
        raise DoesNotRun(path, type(module).__name__, shapes, error) from error
    finally:
        for handle in handles:
            handle.remove()
