"""check_brief against networks whose answer is known by construction, each of which breaks one rule."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from models import StudentNet
from s9.architecture import layer_summary
from s9.brief import check_brief

STUDENT_TABLE = (Path(__file__).parent / "student-summary.txt").read_text()


class Fitting(nn.Module):
    """Keeps every rule; the arguments break one each."""

    def __init__(self, width=16, dilation=2, depthwise=True, pool="mean", layers=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width if depthwise else 1)
            for _ in range(layers)
        )
        self.mix = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width * 256 if pool == "flatten" else width, 10)
        self.pool = pool

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.max_pool2d(x, 2) if self.pool == "max" else F.avg_pool2d(x, 2)
        for conv in self.convs:
            x = F.relu(self.mix(F.relu(conv(x))))
        return self.head(x.flatten(1) if self.pool == "flatten" else x.mean((2, 3)))


def broken(model, accuracy=90.0):
    return [rule.rule for rule in check_brief(model, accuracy) if not rule.passed]


def test_a_network_that_fits():
    rows = {rule.rule: rule for rule in check_brief(Fitting(), 85.0)}
    assert all(rule.passed for rule in rows.values())
    # 3 * 16 * 9 + 16, six of 16 * 9 + 16, 16 * 16 + 16, 16 * 10 + 10
    assert rows["parameters"].found == f"{448 + 6 * 160 + 272 + 170:,}"
    assert rows["receptive field, pixels"].found == str(3 + 1 + 6 * (2 * 2 * 2))
    assert rows["depthwise-separable convolutions"].found == "6, such as convs.0"
    assert rows["global average pooling before the classifier"].found == "of maps of 16×16"


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"width": 450}, "parameters"),
        ({"layers": 5}, "receptive field, pixels"),  # 3 + 1 + 5 * 8 = 44: not over 44
        ({"pool": "max"}, "max pooling"),
        ({"depthwise": False}, "depthwise-separable convolutions"),
        ({"dilation": 1, "layers": 12}, "dilated convolutions"),
        ({"pool": "flatten"}, "global average pooling before the classifier"),
    ],
)
def test_each_rule_is_broken_alone(options, rule):
    assert broken(Fitting(**options)) == [rule]


def test_accuracy_is_a_bound_and_a_percentage():
    assert broken(Fitting(), 84.99) == ["test accuracy"]
    for accuracy in (-1, 100.5, float("nan")):
        with pytest.raises(ValueError, match="percentage"):
            check_brief(Fitting(), accuracy)


def test_accuracy_may_be_unknown():
    rows = check_brief(Fitting(), None)
    assert rows.passed
    assert "test accuracy" not in [rule.rule for rule in rows]


@pytest.mark.parametrize("mend", [False, True])
def test_student_breaks_two_rules(mend):
    rows = check_brief(StudentNet(use_relu=mend, norm_strided=mend, pad_strided=mend), 40.2)
    assert [rule.rule for rule in rows if not rule.passed] == ["parameters", "test accuracy"]
    assert not rows.passed
    assert {rule.rule: rule.found for rule in rows}["receptive field, pixels"] == "77"


def test_public_networks():
    resnet = check_brief(torchvision.models.resnet18(num_classes=10), 95.0)
    wanting = {rule.rule for rule in resnet if not rule.passed}
    assert wanting == {
        "parameters",
        "max pooling",
        "depthwise-separable convolutions",
        "dilated convolutions",
    }
    mobile = torchvision.models.mobilenet_v2(num_classes=10)
    assert broken(mobile) == ["parameters", "dilated convolutions"]


def test_a_layer_that_is_called_in_vain_does_not_count():
    class Vain(Fitting):
        def forward(self, x):
            self.vain(x)
            return super().forward(x)

    model = Vain(dilation=1, layers=12)
    model.vain = nn.Conv2d(3, 3, 3, dilation=2)
    assert broken(model) == ["dilated convolutions"]


def test_the_model_is_left_as_it_was_and_the_table_shows():
    model = StudentNet(use_relu=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    brief = check_brief(model, 40.2)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "214,651" in str(brief)
    assert str(brief).count("FAIL") == brief._repr_html_().count("FAIL") == 2
    assert "&lt; 200,000" in brief._repr_html_()


def test_summary_is_the_students_to_the_letter():
    assert layer_summary(StudentNet(), (3, 32, 32)) == STUDENT_TABLE.rstrip("\n")
    assert len([line for line in STUDENT_TABLE.splitlines() if "[-1" in line]) == 57


def test_summary_cannot_tell_whether_the_relu_is_applied():
    assert layer_summary(StudentNet(use_relu=True), (3, 32, 32)) == STUDENT_TABLE.rstrip("\n")


def test_summary_touches_neither_the_model_nor_the_random_state(state_of_numpy_and_torch, capsys):
    model = StudentNet().eval()
    before, state = copy.deepcopy(model.state_dict()), state_of_numpy_and_torch()
    layer_summary(model, (3, 32, 32))
    assert state_of_numpy_and_torch() == state
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert capsys.readouterr().out == ""


def body():
    """Sees 5 pixels, of 32x32 positions."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())


class Headed(nn.Module):
    """The body, a function of its map, and a linear layer on as many features as that gives."""

    def __init__(self, function, features=8, *parts):
        super().__init__()
        self.body, self.function, self.parts = body(), function, nn.Sequential(*parts)
        self.head = nn.Linear(features, 10)

    def forward(self, x):
        return self.head(self.function(self.body(x)).flatten(1))


def found(model, word):
    return next((rule.found, rule.passed) for rule in check_brief(model, 90.0) if word in rule.rule)


AVERAGES = {
    "mean((2, 3))": lambda x: x.mean((2, 3)),
    "mean(-1).mean(-1)": lambda x: x.mean(-1).mean(-1),
    "mean(2).mean(2)": lambda x: x.mean(2).mean(2),
    "flatten(2).mean(2)": lambda x: x.flatten(2).mean(2),
    "view.mean": lambda x: x.view(*x.shape[:2], -1).mean(-1),
    "sum / HW": lambda x: x.sum((2, 3)) / 1024,
    "einsum": lambda x: torch.einsum("nchw->nc", x) / 1024,
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
    "two in a row": lambda x: F.avg_pool2d(F.avg_pool2d(x, 4), 8),
    "generalised mean": lambda x: x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
    "mean and maximum": lambda x: x.mean((2, 3)) + x.amax((2, 3)),
    "logarithm behind": lambda x: x.mean((2, 3)).log1p(),
}
NO_AVERAGES = {
    "17 of 32": (lambda x: F.avg_pool2d(x, 17), 8),
    "20 of 32": (lambda x: F.avg_pool2d(x, 20), 8),
    "half": (lambda x: x[:, :, :16].mean((2, 3)), 8),
    "quarters": (lambda x: F.avg_pool2d(x, 16), 32),
    "flattened": (lambda x: x, 8192),
    "maximum": (lambda x: x.amax((2, 3)), 8),
    "the middle": (lambda x: x[:, :, 16, 16], 8),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_global_average_in_any_form(name):
    assert found(Headed(AVERAGES[name]), "global") == ("of maps of 32×32", True) or name == "two in a row"
    assert found(Headed(AVERAGES[name]), "global")[1]
    assert found(Headed(AVERAGES[name]), "receptive") == ("5" if name != "two in a row" else "8", False)


@pytest.mark.parametrize("name", NO_AVERAGES)
def test_what_is_no_global_average(name):
    function, features = NO_AVERAGES[name]
    assert found(Headed(function, features), "global") == ("none", False)


def test_receptive_field_is_asked_before_the_average_whatever_the_head_is():
    convolution = nn.Sequential(body(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 10, 1), nn.Flatten())
    before = nn.Sequential(body(), nn.Conv2d(8, 10, 1), nn.AvgPool2d(32), nn.Flatten())
    flattened = nn.Sequential(body(), nn.Flatten(), nn.Linear(8192, 10))
    for model in (convolution, before, flattened, Headed(AVERAGES["adaptive"])):
        assert found(model, "receptive") == ("5", False)
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    class Gated(Headed):
        def forward(self, x):
            x = self.body(x)
            return self.head((x * self.parts(x)).mean((2, 3)))

    assert found(Gated(None, 8, gate), "receptive") == ("5", False)


MAXIMA = {
    "shifted slices": (lambda x: torch.maximum(x[..., ::2], x[..., 1::2]).mean((2, 3)), True),
    "unfolded": (lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)).mean((2, 3)), True),
    "reshaped": (lambda x: x.reshape(*x.shape[:2], 16, 2, 16, 2).amax((3, 5)).mean((2, 3)), True),
    "max()[0]": (lambda x: x.reshape(*x.shape[:2], 16, 2, 32).max(3)[0].mean((2, 3)), True),
    "topk": (lambda x: x.flatten(2).topk(2)[0].mean(2), True),
    "global": (lambda x: x.flatten(2).max(2)[0], True),
    "pool of the negative": (lambda x: -F.max_pool2d(-x, 2).mean((2, 3)), True),
    "softmax by hand": (lambda x: (x - x.amax(1, keepdim=True)).exp().mean((2, 3)), False),
    "maxout": (lambda x: torch.maximum(x[:, :4], x[:, 4:]).repeat(1, 2, 1, 1).mean((2, 3)), False),
    "divided by its maximum": (lambda x: (x / x.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)).mean((2, 3)), False),
    "divided by each map's": (lambda x: (x / (x.amax((2, 3), keepdim=True) + 1e-6)).mean((2, 3)), False),
    "relu": (lambda x: torch.maximum(x, torch.zeros(())).mean((2, 3)), False),
}


@pytest.mark.parametrize("name", MAXIMA)
def test_maximum_over_positions_in_any_form(name):
    function, is_pooling = MAXIMA[name]
    assert found(Headed(function), "max pooling")[1] != is_pooling


def test_separable_needs_positions_to_mix_at():
    depthwise = nn.Conv2d(8, 8, 3, groups=8)

    class Einsum(Headed):
        def forward(self, x):
            return self.head(torch.einsum("nchw,kc->nkhw", self.parts(self.body(x)), self.head.weight[:8]).mean((2, 3)))

    assert found(Headed(lambda x: depthwise(x).mean((2, 3))), "separable") == ("none", False)
    assert found(Einsum(None, 8, depthwise), "separable")[1]


def test_parameters_that_are_not_used_are_told():
    model = Headed(AVERAGES["mean((2, 3))"], 8, nn.Linear(100, 10))
    assert found(model, "parameters") == ("1,908, of which 898 are used", True)
