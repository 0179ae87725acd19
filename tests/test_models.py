import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import utils
from models import S9Net, StudentNet

ASSETS = Path(models.__file__).parent / "assets"

# Parameters by hand: DW(i, o) has 9i + io + 2o, a dense 3x3 convolution 9io, a 1x1 one io.
SEPARABLE = [(3, 32), (32, 64), (32, 64), (64, 128), (64, 128), (128, 128), (64, 64), (64, 32)]
BY_HAND = sum(9 * i + i * o + 2 * o for i, o in SEPARABLE) + 9 * 64 * 32 + 9 * 128 * 64 + 9 * 128 * 64 + 32 * 10


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("use_relu", [False, True])
def test_student_has_the_parameters_counted_by_hand(use_relu):
    assert count(StudentNet(use_relu)) == BY_HAND == 214_651


def test_mended_strides_add_three_batchnorms():
    assert count(StudentNet(use_relu=True, norm_strided=True, pad_strided=True)) == BY_HAND + 2 * (32 + 64 + 64)


@pytest.mark.parametrize(("pad_strided", "sizes"), [(False, [32, 14, 6, 2]), (True, [32, 16, 8, 4])])
def test_map_sizes(pad_strided, sizes):
    model, seen = StudentNet(use_relu=True, pad_strided=pad_strided).eval(), []
    for layer in model.features:
        layer.register_forward_hook(lambda _, __, output: seen.append(output.shape[-1]))
    model(torch.zeros(1, 3, 32, 32))
    assert list(dict.fromkeys(seen)) == sizes


def reference_logits(model: StudentNet, x: torch.Tensor) -> torch.Tensor:
    """StudentNet in eval mode, written out with functions alone."""
    weights = iter(model.state_dict().values())

    def separable(x):
        x = F.conv2d(x, next(weights), padding=1, groups=x.shape[1])
        x = F.conv2d(x, next(weights))
        x = x.clamp(min=0) if model.features[0].use_relu else x
        gain, bias, mean, variance, _ = (next(weights) for _ in range(5))
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return x * gain[:, None, None] + bias[:, None, None]

    x = F.conv2d(separable(separable(x)), next(weights), stride=2, dilation=2)
    x = F.conv2d(separable(separable(x)), next(weights), stride=2)
    x = F.conv2d(separable(separable(x)), next(weights), stride=2)
    x = F.conv2d(separable(separable(x)), next(weights))
    return x.mean((2, 3)).log_softmax(1)


@pytest.mark.parametrize("use_relu", [False, True])
def test_student_is_the_network_written_out(use_relu):
    torch.manual_seed(0)
    model = StudentNet(use_relu)
    model(torch.randn(64, 3, 32, 32))  # statistics other than 0 and 1
    images = torch.randn(8, 3, 32, 32)
    model.eval()
    torch.testing.assert_close(model(images), reference_logits(model, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_relu", [False, True])
def test_only_without_relu_is_the_network_affine(use_relu):
    torch.manual_seed(0)
    model = StudentNet(use_relu).double()
    model(torch.randn(64, 3, 32, 32).double())  # BatchNorm statistics at which signals keep their size
    model.eval()
    a, b = torch.randn(2, 4, 3, 32, 32).double()
    excess = model(a + b) - model(a) - model(b) + model(torch.zeros(1, 3, 32, 32).double())
    excess -= excess.mean(1, keepdim=True)  # log_softmax shifts all logits of an image alike
    size = (model(a) - model(b)).abs().max()
    assert bool(excess.abs().max() > 0.01 * size) is use_relu
    assert bool(excess.abs().max() > 1e-9 * size) is use_relu


def test_block_names_are_the_students():
    kinds = {type(module).__name__ for module in StudentNet().modules()}
    assert {"DWSeparableConv2d", "DilateConv2d", "GenericConvLayer2d", "Conv2d", "Dropout"} <= kinds


def s9net_by_hand(width: int) -> int:
    """Convolutions, BatchNorms (two numbers a channel) and the linear layer."""
    first, last = width // 2, width * 3 // 2

    def block(channels):  # depthwise, to twice as many, and back
        return 9 * channels + 2 * channels * 2 * channels + 2 * (2 * channels + channels)

    stem = 27 * first + 2 * first + 9 * first + first * first + 2 * 2 * first
    halves = first * width + 2 * width + width * last + 2 * last
    return stem + halves + 8 * block(width) + block(last) + 10 * last + 10


@pytest.mark.parametrize("width", [64, 16])
def test_s9net_has_the_parameters_counted_by_hand(width):
    assert count(S9Net(width)) == s9net_by_hand(width)
    assert s9net_by_hand(64) == 188_906 < 200_000


def s9net_reference(model: S9Net, x: torch.Tensor) -> torch.Tensor:
    """S9Net in eval mode, written out with functions alone."""
    weights = iter(model.state_dict().values())

    def norm(x):
        gain, bias, mean, variance, _ = (next(weights)[:, None, None] if i < 4 else next(weights) for i in range(5))
        return (x - mean) / (variance + 1e-5).sqrt() * gain + bias

    def block(x, dilation=1, expand=True):
        y = F.conv2d(x, next(weights), padding=dilation, dilation=dilation, groups=x.shape[1])
        y = F.conv2d(y, next(weights)) if expand else y
        return x + norm(F.conv2d(norm(y).clamp(min=0), next(weights)))

    x = norm(F.conv2d(x, next(weights), padding=1)).clamp(min=0)
    x = block(x, expand=False)
    x = norm(F.conv2d(F.avg_pool2d(x, 2), next(weights)))
    for dilation in 4 * (1, 2):
        x = block(x, dilation)
    x = norm(F.conv2d(F.avg_pool2d(x, 2), next(weights)))
    x = block(x).clamp(min=0).mean((2, 3))
    return F.linear(x, next(weights), next(weights))


def test_s9net_is_the_network_written_out():
    torch.manual_seed(0)
    model = S9Net(16).double()
    model(torch.randn(64, 3, 32, 32).double())  # statistics other than 0 and 1
    model.eval()
    images = torch.randn(4, 3, 32, 32).double()
    torch.testing.assert_close(model(images), s9net_reference(model, images))


@pytest.mark.parametrize("width", [0, 15])
def test_a_width_that_cannot_be_is_refused(width):
    with pytest.raises(ValueError, match=f"width={width}"):
        S9Net(width)


def test_weights_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "WEIGHTS", tmp_path / "s9net.pt")
    with pytest.raises(FileNotFoundError, match=r"s9net\.pt is missing"):
        S9Net.pretrained()


def test_pretrained_weights_classify_as_recorded(cifar10):
    recorded = {row["run"]: row["test_accuracy"] for row in json.loads((ASSETS / "results.json").read_text())}
    part = cifar10._replace(test_images=cifar10.test_images[::7], test_labels=cifar10.test_labels[::7])
    predicted, _ = utils.predict(S9Net.pretrained(), part, device="cpu")
    accuracy = 100 * (predicted == part.test_labels.numpy()).mean()
    assert accuracy == pytest.approx(recorded["s9net"], abs=2)  # a part of the test set: 0.7 points are one deviation
    assert models.WEIGHTS.stat().st_size < 1_000_000
