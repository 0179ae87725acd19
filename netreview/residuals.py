"""Checks of what is added to what, and of what is used twice."""

from torch import nn

from netreview.findings import Found, check
from netreview.subject import Subject
from netreview.traces import Call, Operation, Trace, Value, tensors_in


@check(
    "adds-itself",
    "warning",
    advice="Add the block's input to its output, and keep the two apart under different names.",
)
def adds_itself(subject: Subject):
    """Additions and concatenations of a tensor and itself."""
    recorded = subject.trained
    for operation in recorded.used:
        if operation.name not in ("add", "add_", "cat", "sub", "sub_") or not operation.images:
            continue
        operands = tensors_in(operation.args[0] if operation.name == "cat" else list(operation.args[:2]))
        if len({id(tensor) for tensor in operands}) < len(operands):
            what = {"cat": "concatenated", "sub": "subtracted", "sub_": "subtracted"}.get(operation.name, "added")
            yield Found(operation.where, f"A tensor of shape {tuple(operands[0].shape)} and itself are {what}.")


@check(
    "shortcut-overwritten",
    "warning",
    advice="Use inplace=False for the first activation of the block: the shortcut is to carry the input as it came.",
)
def shortcut_overwritten(subject: Subject):
    """Residual blocks whose in-place activation changes their own input, which the shortcut then adds."""
    recorded = subject.trained
    places: dict[str, str] = {}
    for call in recorded.calls:
        if call.path and call.inputs and (found := _overwritten(recorded, call)):
            places.setdefault(found.where, f"{found.name} overwrites the input of {call.path}, which is added later.")
    for where, evidence in places.items():
        yield Found(where, evidence)


def _overwritten(recorded: Trace, call: Call) -> Operation | None:
    """The in-place activation within a call that rewrites what the call was given, and later adds."""
    given = {id(value.tensor) for value in call.inputs}
    inside = recorded.operations[call.start : call.end]
    for index, operation in enumerate(inside):
        if not operation.name.endswith("_") or operation.name in ("add_", "sub_", "copy_", "mul_", "div_"):
            continue
        rewritten = [value for value in operation.outputs if id(value.tensor) in given]
        if rewritten and any(_adds(later, rewritten[0], inside[index + 1 :]) for later in inside[index + 1 :]):
            return operation
    return None


def _adds(operation: Operation, shortcut: Value, operations: list[Operation]) -> bool:
    """Whether an operation adds a value and what was computed from it."""
    if operation.name not in ("add", "add_") or shortcut not in operation.inputs or len(operation.images) < 2:
        return False
    reached = {shortcut}
    for later in operations:
        if later is operation:
            return any(value in reached and value is not shortcut for value in operation.inputs)
        if any(value in reached for value in later.inputs):
            reached.update(later.outputs)
    return False


@check(
    "shared-module",
    "warning",
    advice="Make a new one for each place, as by [Block() for _ in range(n)]: n * [Block()] is one, n times.",
)
def shared_modules(subject: Subject):
    """One module, with parameters, in several places of a container."""
    for path, container in subject.original.named_modules():
        if isinstance(container, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            children = list(container._modules.values())
            for child in {id(child): child for child in children if child is not None}.values():
                times = sum(other is child for other in children)
                count = sum(parameter.numel() for parameter in child.parameters())
                if times > 1 and count:
                    evidence = (
                        f"One {type(child).__name__} stands in {times} places, with the same {count:,} parameters."
                    )
                    yield Found(path, evidence)


@check(
    "shared-norm",
    "warning",
    advice="Give each place a BatchNorm of its own: one keeps one set of statistics, and these places differ.",
    unless=("shared-module",),
)
def shared_norms(subject: Subject):
    """BatchNorms that are called twice in one call of the module that holds them."""
    recorded = subject.trained
    counts: dict[str, int] = {}
    for call in recorded.calls:
        counts[call.path] = counts.get(call.path, 0) + 1
    for path, times in counts.items():
        module = subject.model.get_submodule(path)
        holder = path.rpartition(".")[0]
        while holder and holder not in counts:  # a ModuleList is not called
            holder = holder.rpartition(".")[0]
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and times > counts.get(holder, 1):
            yield Found(path, f"It is called {times} times in one pass, on different maps.")


@check(
    "side-output",
    "warning",
    advice="Go on with what this returns: as it is, the logits are computed from the value before it.",
)
def side_output(subject: Subject):
    """Dropout, activations and norms whose result reaches a side output only, while the logits pass it by."""
    recorded = subject.trained
    if len(recorded.outputs) < 2:
        return
    main = recorded.reaching([subject.logits_of(recorded)])
    layers = [operation for operation in recorded.operations if operation.is_layer]
    for call in recorded.calls:
        module = subject.model.get_submodule(call.path)
        small = not list(module.children()) and len(call.inputs) == 1 and call.outputs
        if not small or any(value in main for value in call.outputs) or not _acts(module):
            continue
        passed_by = [layer for layer in layers if call.inputs[0] in layer.inputs and layer.outputs[0] in main]
        if passed_by and any(value in recorded.live for value in call.outputs):
            evidence = (
                f"{type(module).__name__}'s result is in a side output; {passed_by[0].where} reads what it was given."
            )
            yield Found(call.path, evidence)


def _acts(module: nn.Module) -> bool:
    """Whether it is a layer that the logits are meant to pass through: dropout, a norm or an activation."""
    kinds = nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm
    return isinstance(module, kinds) or type(module).__module__ == "torch.nn.modules.activation"
