"""What a loss wants, found out by what it makes of numbers; and whether the network gives it that."""

import functools
import warnings

import torch

from netreview.findings import Found, check
from netreview.subject import LossFails, Subject, Unanswerable

LOGITS, SCORES, LOG_PROBABILITIES, PROBABILITIES = "logits", "single logits", "log-probabilities", "probabilities"
SHAPES_ONLY = ("view", "_unsafe_view", "_reshape_alias", "squeeze", "flatten", "clone", "alias", "detach", "_to_copy")
SQUASHES = {
    "_softmax": "softmax", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh", "tanh_": "tanh",
    "hardtanh": "hardtanh", "hardtanh_": "hardtanh", "hardsigmoid": "hardsigmoid",
}  # fmt: skip
RECTIFIES = ("relu", "relu_", "clamp_min", "clamp_min_", "threshold", "threshold_")


class Loss:
    """A loss function, looked at on outputs of its own making: on the CPU, as some losses end a GPU's program."""

    def __init__(self, subject: Subject):
        self.shape = subject.picked(subject.run(subject.images)).shape
        if subject.takes_all or len(self.shape) > 2 or self.shape[0] != len(subject.images):
            raise Unanswerable
        self.function, self.labels = subject.loss_fn, subject.labels.cpu()
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(self.shape, generator=generator)

    def of(self, output: torch.Tensor) -> float:
        """The loss of an output; NaN where it raises an error."""
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return float(self.function(output, self.labels).float().mean())
        except Exception:  # whatever the user's function raises
            return float("nan")

    def gradient(self, output: torch.Tensor) -> torch.Tensor:
        """The loss's gradient at an output."""
        output = output.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.function(output, self.labels).float().sum(), output, allow_unused=True)
        return torch.zeros_like(output) if gradient is None else gradient

    @functools.cached_property
    def wants(self) -> str | None:
        """What it is made for; None where that cannot be told."""
        z = self.noise
        value = self.of(z)
        axis = min(1, z.ndim - 1)
        if not _finite(value):
            return PROBABILITIES if _finite(self.of(z.softmax(axis))) and _finite(self.of(z.sigmoid())) else None
        if z.ndim > 1 and z.shape[1] > 1 and _close(self.of(z + 3), value):
            return LOGITS
        if _close(self.of(2 * z), 2 * value) and _close(self.of(-z), -value):
            return LOG_PROBABILITIES
        try:
            high, higher, low = (self.gradient(z.new_full(z.shape, at)) for at in (60.0, 120.0, -60.0))
        except RuntimeError:  # it has no gradient
            return None
        step = high - low  # of a sigmoid's cross-entropy from 0 to 1, for each number alike
        if torch.allclose(high, higher) and bool((step > 0).all()) and _close(float(step.max()), float(step.min())):
            return SCORES
        return None

    @functools.cached_property
    def guess(self) -> float | None:
        """The loss of an output that says nothing; None where that cannot be told."""
        zeros = torch.zeros_like(self.noise)
        outputs = {
            LOGITS: [zeros],
            SCORES: [zeros],
            LOG_PROBABILITIES: [zeros.log_softmax(-1)],
            PROBABILITIES: [zeros.softmax(-1), zeros.sigmoid()],  # whichever it starts from
        }
        value = max(map(self.of, outputs.get(self.wants, [])), default=0.0)
        return value if _finite(value) and value > 0 else None


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * max(abs(a), abs(b), 1e-6)


def _last_operation(subject: Subject) -> str:
    """The name of the operation that made the logits in train mode, other than those that change shapes alone."""
    recorded, logits = subject.trained, subject.logits_of(subject.trained)
    producers = {value: operation for operation in recorded.operations for value in operation.outputs}
    operation = producers.get(logits)
    while operation is not None and operation.name in SHAPES_ONLY and len(operation.images) == 1:
        operation = producers.get(operation.images[0])
    return "" if operation is None else "dropout" if operation.is_dropout else operation.name


@check(
    "label-type",
    "error",
    advice="Give the loss labels as it takes them: for cross-entropy int64 (N,), or float (N, classes).",
)
def label_type(subject: Subject):
    """Labels of a type or shape that the loss does not take."""
    result, labels = subject.run(subject.images), subject.labels
    subject.logits(result)  # where there is none for each image, another check says so
    ways = {"as they are": labels, "as int64": labels.long(), "as float": labels.float()}
    if labels.ndim == 2:
        ways |= {"as int64 of shape (N,)": labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0].long()}
    picked = result if isinstance(result, torch.Tensor) else subject.picked(result)
    failure = None
    for output in (result if subject.takes_all else picked, subject.logits(result)):
        for way, converted in ways.items():
            try:
                subject.loss(output, converted)
            except LossFails as error:
                failure = failure or error
                continue
            if way != "as they are":
                subject.labels = converted
                yield Found(
                    "", f"Labels of type {labels.dtype} and shape {tuple(labels.shape)}: {failure}; {way} it works."
                )
            return
    if subject.labels_fit and Loss(subject).wants != PROBABILITIES:
        advice = "Make loss, output and labels fit each other: look at their shapes and types."
        yield Found("", f"{failure}, of an output of shape {tuple(picked.shape)}.", advice)


@check(
    "loss-without-gradient",
    "error",
    advice="Compute the loss from the logits themselves: argmax, round, .item() and numpy let no gradient through.",
    unless=("nothing-trainable", "label-type"),
)
def loss_without_gradient(subject: Subject):
    """Losses through which no gradient gets to the network's output."""
    if subject.takes_all:
        return
    result = subject.run(subject.images)
    subject.logits(result)  # where there is none for each image, another check says so
    output = subject.picked(result).detach().clone().requires_grad_()
    loss = subject.loss(output)
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, output, allow_unused=True)
    if gradient is None:
        yield Found("", f"The loss is {float(loss.detach()):.3g}, and does not depend on the output by any gradient.")


@check(
    "double-softmax",
    "error",
    advice="Return logits, with nothing after the last layer: this loss applies the softmax or sigmoid itself.",
)
def double_softmax(subject: Subject):
    """Softmax, sigmoid or the like between the last layer and a loss that takes logits."""
    loss, output = Loss(subject), subject.outputs(training=True)
    if loss.wants not in (LOGITS, SCORES):
        return
    last = SQUASHES.get(_last_operation(subject))
    sums = output.sum(1)
    if output.shape[1] > 1 and (output >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        yield Found(
            "", f"All outputs are positive and sum to 1{f', by {last}' if last else ''}; the loss wants logits."
        )
    elif last:
        low, high = float(output.min()), float(output.max())
        yield Found("", f"The outputs are squashed by {last}, from {low:.3g} to {high:.3g}; the loss wants logits.")


@check(
    "loss-mismatch",
    "error",
    advice="Give this loss what it is made for: NLLLoss takes log_softmax, BCELoss a sigmoid, CrossEntropyLoss logits.",
    unless=("double-softmax",),
)
def loss_mismatch(subject: Subject):
    """Outputs of another kind than the loss is made for."""
    loss, output = Loss(subject), subject.outputs(training=True)
    kind = f"from {float(output.min()):.3g} to {float(output.max()):.3g}"
    if loss.wants == LOG_PROBABILITIES and output.shape[1] > 1:
        total = output.logsumexp(1)
        if not torch.allclose(total, torch.zeros_like(total), atol=1e-2):
            yield Found("", f"The loss wants log-probabilities; the outputs run {kind}, and are none.")
    elif loss.wants == PROBABILITIES and (output.min() < 0 or output.max() > 1 + 1e-4):
        yield Found("", f"The loss wants probabilities; the outputs run {kind}.")
    elif loss.wants in (LOGITS, SCORES):
        last = _last_operation(subject)
        if last in RECTIFIES:
            share = float((output == 0).float().mean())
            evidence = f"A ReLU follows the last layer: {100 * share:.0f} % of the logits are 0."
            advice = "Remove the activation after the last layer: a logit of 0 gets no gradient, and none is negative."
            yield Found("", evidence, advice)
        elif last == "dropout":
            advice = "Put dropout before the last layer, not after it: here it drops entire classes."
            yield Found("", "Dropout follows the last layer, on the logits.", advice, "warning")
        elif last == "_log_softmax" and loss.wants == SCORES:
            yield Found("", "The loss takes a sigmoid of each number; the outputs are log-probabilities.")


@check(
    "label-range",
    "error",
    advice="Number the classes from 0, and give the network as many outputs as there are classes.",
)
def label_range(subject: Subject):
    """Labels that are no classes of the network."""
    labels, outputs = subject.targets, subject.outputs(training=False).shape[1]
    if labels is None or subject.labels_fit:
        return
    if outputs == 1 and _finite(Loss(subject).of(Loss(subject).noise)):  # of single numbers, such as a regression
        return
    yield Found("", f"Labels run from {int(labels.min())} to {int(labels.max())}, for {outputs} outputs.")


@check(
    "spare-outputs",
    "warning",
    advice="Give the last layer as many outputs as there are classes, such as model.fc = nn.Linear(features, classes).",
)
def spare_outputs(subject: Subject):
    """Far more outputs than classes among the labels."""
    labels, outputs = subject.targets, subject.outputs(training=False).shape[1]
    if labels is None or not subject.labels_fit or len(labels) < 16:
        return
    shuffled = bool((labels[1:] < labels[:-1]).any())  # else these may be the first of many, sorted by class
    if shuffled and outputs >= 2 * (int(labels.max()) + 1) and outputs > 4:
        yield Found("", f"{outputs} outputs, and the highest of {len(labels)} labels is {int(labels.max())}.")


@check(
    "initial-loss",
    "warning",
    advice="Check that loss, output and labels belong together, and the scale of the last layer's weights.",
    unless=("label-range", "double-softmax", "loss-mismatch", "loss-without-gradient", "label-type"),
)
def initial_loss(subject: Subject):
    """A loss far from that of an output that says nothing."""
    if not subject.labels_fit:
        return
    guess = Loss(subject).guess
    _, output, loss = subject.step
    accuracy, loss = subject.accuracy(output), float(loss)
    if guess is None or not _finite(loss):
        return
    too_low = loss < 0.5 * guess and accuracy < min(1.0, 2 / subject.classes)
    if loss > 2 * guess or too_low:
        evidence = (
            f"The loss is {loss:.3g} and {100 * accuracy:.0f} % are right; saying nothing has a loss of {guess:.3g}."
        )
        yield Found("", evidence)
