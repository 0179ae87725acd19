"""Whether a network equals one matrix, and which."""

import copy

import torch
from torch import nn

from netreview.findings import Found, check
from netreview.subject import Subject

AFFINE_TOLERANCE = 1e-4


@check(
    "affine-network",
    "error",
    advice="Insert non-linearities, such as ReLUs, between the layers: without them all layers collapse into one.",
)
def affine_network(subject: Subject):
    """Whether the logits of a + b - c are those of a, plus those of b, minus those of c."""
    excess = _superposition_excess(subject)
    evaluated, _ = subject.traces
    live = evaluated.live
    structure = all(
        operation.is_affine or operation.name in ("_log_softmax", "_softmax")
        for operation in evaluated.operations
        if operation.images and any(value in live for value in operation.outputs)
    )
    if excess is not None and excess < AFFINE_TOLERANCE:
        count = sum(parameter.numel() for parameter in subject.model.parameters())
        size = subject.images.shape[1:].numel() + 1
        evidence = (
            f"f(a+b-c) and f(a)+f(b)-f(c) differ by {excess:.0e} of the logits' spread; {count:,} parameters equal "
            f"a matrix of {size} x {subject.outputs(training=False).shape[1]}."
        )
        yield Found("", evidence, severity=None if structure else "warning")


def _superposition_excess(subject: Subject) -> float | None:
    """How far the logits are from affine, as a share of their spread; None where they have none."""
    images, model = subject.settled_images, subject.settled
    count = min(8, len(images) // 3) or 1
    a, b, c = (images[start:][:count] for start in (0, len(images) // 3, len(images) // 2))
    c = c.flip(-1)
    whole, *parts = (_free_of_shift(subject.rows(x, model)) for x in (a + b - c, a, b, c))
    spread = (parts[0] - parts[2]).abs().max()
    if not spread > 1e-12 * parts[0].abs().max():
        return None
    return float((whole - parts[0] - parts[1] + parts[2]).abs().max() / spread)


def _free_of_shift(output: torch.Tensor) -> torch.Tensor:
    """Logits less their mean over the classes, to which softmax is invariant; the logs of probabilities."""
    is_softmax = (output >= 0).all() and torch.allclose(output.sum(1), output.new_ones(len(output)), atol=1e-5)
    if is_softmax:
        output = output.clamp_min(torch.finfo(output.dtype).tiny).log()
    return output - output.mean(1, keepdim=True)


def affine_equivalent(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix and bias that an affine network is equivalent to, in eval mode.

    Returns:
        matrix (C * H * W, classes) and bias (classes,), float64, with `images.flatten(1) @ matrix + bias` equal to the
        network's logits; up to log_softmax, if the network ends in it.

    Raises:
        ValueError: the network is not affine, or no gradient reaches its input.
    """
    model = copy.deepcopy(model).double().eval().cpu()
    origin = model(torch.zeros(1, *input_size, dtype=torch.double)).detach()
    takes_softmax = torch.allclose(origin.logsumexp(1), origin.new_zeros(1), atol=1e-9)
    logits = _free_of_shift if takes_softmax else (lambda output: output)
    bias = logits(origin)[0]
    images = torch.zeros(len(bias), *input_size, dtype=torch.double, requires_grad=True)
    own_logits = logits(model(images)).diagonal()  # class k of image k, so that one backward pass gives all gradients
    if not own_logits.requires_grad:
        raise ValueError("affine_equivalent: no gradient reaches the input of this network (detached?).")
    (gradients,) = torch.autograd.grad(own_logits.sum(), images)
    matrix = gradients.flatten(1).T
    with torch.no_grad():
        others = torch.randn(24, *input_size, generator=torch.Generator().manual_seed(0)).double()
        expected = logits(model(others))
        excess = (others.flatten(1) @ matrix + bias - expected).abs().max()
    if not excess <= AFFINE_TOLERANCE * (expected - bias).abs().max():
        raise ValueError("affine_equivalent: this network is not affine.")
    return matrix, bias
