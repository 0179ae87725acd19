"""Odd but healthy networks and inputs: no crash, no false word, and all is left as it was."""

import random
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from zoo import CLASSES, SIZE, Net, one_hot_bce, pictures

from netreview import receptive_field, review
from netreview.traces import trace
from s9.architecture import layer_summary
from s9.brief import check_brief


def said(model, images=None, labels=None, *others, **options):
    """The errors and warnings."""
    if images is None:
        images, labels = pictures()
    return [(f.check, f.evidence) for f in review(model, images, labels, *others, **options) if f.severity != "note"]


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Returns(Net):
    """A Net that returns its features and logits in some form."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        features = self.unit(self.relu(self.norm2(self.conv2(self.stem(x))))).flatten(1)
        return self.form(features, self.head(self.drop(features)))


@pytest.mark.parametrize(
    "form",
    [
        Output,
        lambda features, logits: (features, logits),
        lambda features, logits: [logits, features],
        lambda features, logits: {"features": features, "logits": logits, "loss": None},
        lambda features, logits: {"probabilities": logits.softmax(1), "logits": logits},
        lambda features, logits: SimpleNamespace(hidden=features, out=logits),
    ],
)
def test_the_logits_are_found_in_whatever_is_returned(form):
    torch.manual_seed(0)
    model = Returns(form)
    assert not said(model, optimizer=torch.optim.SGD(model.parameters(), 0.05))


class Keeps(Net):
    def stem(self, x):
        self.last = super().stem(x)
        return self.last


def test_networks_that_keep_a_tensor_of_their_last_pass():
    torch.manual_seed(0)
    model = Keeps()
    model(pictures()[0])
    last = model.last
    assert not said(model)
    assert model.last is last


def has_pruned(model):
    prune.random_unstructured(model.conv2, "weight", 0.3)
    model(pictures()[0])


def normalises(model):
    parametrizations.spectral_norm(model.conv2)


def holds_a_file(model):
    model.log = open("/dev/null")  # noqa: SIM115 - that it is open is the point


def is_scripted_inside(model):
    model.unit = torch.jit.script(model.unit)


def has_spares(model):
    model.loss, model.spare, model.empty = nn.CrossEntropyLoss(), nn.Identity(), nn.ModuleList()


def is_lazy(model):
    model.head = nn.LazyLinear(CLASSES)


def is_rezero(model):
    model.norm2.weight.data.zero_()
    model.norm2.bias.data.fill_(0.1)


@pytest.mark.parametrize(
    "change", [has_pruned, normalises, holds_a_file, is_scripted_inside, has_spares, is_lazy, is_rezero]
)
@pytest.mark.filterwarnings("ignore")  # torch's own, of TorchScript and of lazy layers
def test_networks_that_hold_odd_things(change):
    torch.manual_seed(0)
    model = Net()
    change(model)
    assert not said(model)


def test_auxiliary_logits_left_on_self_for_the_loss():
    class Auxiliary(Net):
        def __init__(self):
            super().__init__()
            self.aux = nn.Linear(8, CLASSES)

        def stem(self, x):
            x = super().stem(x)
            self.aux_logits = self.aux(x.mean((2, 3)))
            return x

    torch.manual_seed(0)
    assert not said(Auxiliary())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_double_and_half_networks(dtype):
    torch.manual_seed(0)
    images, labels = pictures()
    model = Net().to(dtype)
    assert not said(model, images.to(dtype), labels)
    assert receptive_field(model, (3, SIZE, SIZE))[-1].layer == "output"


def test_arrays_flat_images_one_hot_and_soft_labels():
    torch.manual_seed(0)
    images, labels = pictures()
    assert not said(Net(), images.numpy(), labels.numpy())
    flat = nn.Sequential(nn.Linear(3 * SIZE**2, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    assert not said(flat, images.flatten(1), labels)
    hot = F.one_hot(labels, CLASSES).float()
    assert not said(Net(), images, hot)
    assert not said(Net(), images, 0.9 * hot + 0.1 / CLASSES)


@pytest.mark.parametrize(
    "loss",
    [
        one_hot_bce,
        lambda z, y: F.mse_loss(z, F.one_hot(y, CLASSES).float()),
        lambda z, y: F.cross_entropy(z, y, reduction="sum"),
        lambda z, y: F.cross_entropy(z, y, reduction="none"),
        lambda z, y: F.multi_margin_loss(z, y),
        lambda z, y: F.nll_loss(z.log_softmax(1), y),
        nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.ones(CLASSES)),
    ],
)
def test_losses_that_fit(loss):
    torch.manual_seed(0)
    model = Net()
    assert not said(model, *pictures(), loss, torch.optim.Adam(model.parameters(), 1e-3))


@pytest.mark.parametrize("width", [1, None])
def test_one_logit_for_two_classes(width):
    torch.manual_seed(0)
    model, (images, labels) = Net(), pictures()
    model.head = nn.Sequential(nn.Linear(256, 1), *([] if width else [nn.Flatten(0)]))
    assert not said(model, images, labels % 2, lambda z, y: F.binary_cross_entropy_with_logits(z.flatten(), y.float()))


def test_a_network_that_normalises_by_itself():
    class Inside(Net):
        def forward(self, x):
            return super().forward((x / 255 - 0.5) / 0.25)

    torch.manual_seed(0)
    assert not said(Inside(), 255 * torch.rand(48, 3, SIZE, SIZE), pictures()[1])


def test_images_that_the_network_writes_to_stay_as_they_were():
    class Writes(Net):
        def forward(self, x):
            x -= 0.1
            return super().forward(x)

    torch.manual_seed(0)
    images, labels = pictures()
    before = images.clone()
    assert not said(Writes(), images, labels)
    trace(Writes(), images)
    assert torch.equal(images, before)


def test_hooks_are_neither_called_nor_lost():
    model, calls = Net(), []
    handle = model.conv1.register_forward_hook(lambda *_: calls.append(1))
    said(model)
    assert not calls
    model(pictures()[0])
    assert calls == [1]
    handle.remove()


class Draws(Net):
    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return super().forward(x)


@pytest.mark.parametrize(
    "look",
    [
        lambda model: review(model, *pictures()),
        lambda model: receptive_field(model, (3, SIZE, SIZE)),
        lambda model: check_brief(model, 50.0, (3, SIZE, SIZE)),
        lambda model: layer_summary(model, (3, SIZE, SIZE)),
    ],
)
def test_random_states_are_put_back(look, state_of_numpy_and_torch):
    model = Draws()
    before = state_of_numpy_and_torch(), random.getstate()
    look(model)
    assert (state_of_numpy_and_torch(), random.getstate()) == before


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adadelta])
def test_optimisers_at_their_defaults(kind):
    torch.manual_seed(0)
    model = Net()
    assert not said(model, optimizer=kind(model.parameters()))


def test_the_rate_of_a_scheduler_is_that_which_it_goes_to():
    torch.manual_seed(0)
    for schedule in (
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=1000, div_factor=1e6),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step / 1000),
    ):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule(optimizer)
        assert not said(model, optimizer=optimizer)


def test_the_group_whose_rate_is_wrong_is_named():
    torch.manual_seed(0)
    model = Net()

    def loss(output, labels):
        return F.mse_loss(output, F.one_hot(labels, CLASSES).float())

    body = [p for name, p in model.named_parameters() if not name.startswith("head")]
    optimizer = torch.optim.SGD([{"params": body}, {"params": model.head.parameters(), "lr": 300.0}], lr=0.05)
    (finding,) = [f for f in review(model, *pictures(), loss, optimizer) if f.severity != "note"]
    assert finding.check == "learning-rate"
    assert "group 1" in finding.advice


def test_what_raises_is_said_with_its_place_and_shapes_and_the_others_go_on():
    class Raises(Net):
        def __init__(self):
            super().__init__()
            self.extra = [nn.Linear(2, 2)]

        def tail(self, x):
            raise KeyError("missing")

    findings = review(Raises(), *pictures())
    (first,) = [f for f in findings if f.check == "does-not-run"]
    assert "(48, 3, 16, 16) raises KeyError" in first.evidence


def test_one_fault_gets_one_error():
    """Where one thing is wrong, nothing else is called an error for the same reason."""
    from zoo import ZOO

    several = {"biases that switch everything off"}  # which is worth a second word
    for fault in ZOO:
        if fault.name not in several:
            errors = {f.check for f in review(*fault.faulty()) if f.severity == "error"}
            assert errors <= {fault.check}, (fault.name, errors)
