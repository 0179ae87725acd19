import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from models import StudentNet
from netreview import receptive_field


def test_receptive_field_of_student():
    rows = receptive_field(StudentNet(), (3, 32, 32))
    assert [row.receptive_field for row in rows if row.kernel > 1] == [3, 5, 9, 13, 17, 21, 29, 37, 45, 61, 77, 85]
    assert [row.jump for row in rows if row.stride > 1] == [2, 4, 8, 16]
    assert rows[2] == ("features.1.depthwise", 3, 1, 1, 1, 5, False)
    assert rows[-1] == ("output", 1, 1, 1, 16, 85, False)


def sum_pool(x, kernel_size, stride=None, padding=0, dilation=1, **_):
    """Looks where F.max_pool2d looks; but a maximum passes the gradient on to one place alone."""
    window = torch.ones(x.shape[1], 1, kernel_size, kernel_size, dtype=x.dtype)
    return F.conv2d(x, window, None, stride or kernel_size, padding, dilation, groups=x.shape[1])


def measured_field(model: nn.Module, size: int, monkeypatch) -> tuple[int, int]:
    """The oracle: height and width of the part of a large image that the middle output position depends on.

    With positive weights and inputs nothing cancels out, so that the gradient is zero only where nothing is seen.
    """
    monkeypatch.setattr(F, "max_pool2d", sum_pool)
    model = copy.deepcopy(model).double().eval()
    for name, parameter in model.named_parameters():
        parameter.data = torch.rand_like(parameter) / 10 + (0.1 if name.endswith("weight") else 0)
    image = torch.rand(1, 3, size, size, dtype=torch.double) + 0.1
    image.requires_grad_()
    output = model(image)
    output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()
    seen = image.grad[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    assert 0 < rows.min() < rows.max() < size - 1, "the image is too small for the oracle"
    return int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return F.relu(x + self.inner(x))


class Functional(nn.Module):
    """Layers without modules, two branches side by side, and a strided slice."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 3, 3, 3))

    def forward(self, x):
        x = F.conv2d(x, self.weight, stride=2, dilation=3)
        left, right = F.avg_pool2d(x, 2), F.max_pool2d(x[..., ::2, ::2], 3, 1, 1)
        return F.avg_pool2d(torch.cat([left[..., :30, :30], right[..., :30, :30]], 1), 3, 1)


def conv(i, o, kernel=3, **options):
    return nn.Conv2d(i, o, kernel, **options)


STACKS = {
    "plain": nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4)),
    "strided": nn.Sequential(conv(3, 4, stride=2), conv(4, 4, stride=2), conv(4, 4)),
    "dilated": nn.Sequential(conv(3, 4, dilation=2), conv(4, 4, 5, dilation=3, padding=4)),
    "pooled": nn.Sequential(conv(3, 4), nn.MaxPool2d(2), conv(4, 4), nn.AvgPool2d(3, 2), nn.MaxPool2d(2, dilation=2)),
    "oblong": nn.Sequential(conv(3, 4, (1, 7)), conv(4, 4, (5, 1), stride=(2, 1)), conv(4, 4, 3)),
    "normalised": nn.Sequential(conv(3, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4, groups=2)),
    "residual": nn.Sequential(
        conv(3, 4), Residual(conv(4, 4, 7, padding=3)), conv(4, 4, stride=2), Residual(nn.Identity())
    ),
    "reused": nn.Sequential(conv(3, 4), *[conv(4, 4, padding=1)] * 3),
    "functional": Functional(),
    "student": StudentNet(use_relu=True).features,
    "mended": StudentNet(use_relu=True, norm_strided=True, pad_strided=True).features,
}


@pytest.mark.parametrize("name", STACKS)
def test_receptive_field_is_the_extent_of_the_gradient(name, monkeypatch):
    size = 127
    found = receptive_field(STACKS[name], (3, size, size))[-1].receptive_field
    height, width = measured_field(STACKS[name], size, monkeypatch)
    assert found == (height if height == width else (height, width))


def test_receptive_field_of_a_whole_classifier_counts_the_global_pool():
    rows = receptive_field(torchvision.models.resnet18(weights=None), (3, 224, 224))
    assert rows[-1].receptive_field == 435 + 6 * 32  # the published 435, and a pool over 7x7 positions 32 pixels apart
    flattened = nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(4 * 30 * 30, 10))
    assert receptive_field(flattened, (3, 32, 32))[-1].receptive_field == 32


def test_receptive_field_leaves_the_model_alone():
    model = StudentNet(use_relu=True)
    before = copy.deepcopy(model.state_dict())
    receptive_field(model, (3, 32, 32))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Module(nn.Module):
    """A function of maps as a module."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleDict(parts)

    def forward(self, x):
        return self.function(x, self.parts) if self.parts else self.function(x)


def shuffled(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def scaled(x, parts):
    return x * torch.sigmoid(parts["gate"](x.mean((2, 3), keepdim=True)))


def on_channels_last(x, parts):
    return parts["linear"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def shifted(x):
    return F.pad(x, (3, 0))[..., :-3] + F.pad(x, (0, 3))[..., 3:]


ANY_OPERATION = {  # by hand: what a pixel in the middle sees
    "shuffled": (nn.Sequential(conv(3, 8), Module(shuffled), conv(8, 8)), 5),
    "channels last": (nn.Sequential(conv(3, 8), Module(on_channels_last, linear=nn.Linear(8, 8)), conv(8, 8)), 5),
    "unshuffled": (nn.Sequential(nn.PixelUnshuffle(2), conv(12, 8)), 6),
    "shifted": (Module(shifted), (1, 7)),
    "rolled": (Module(lambda x: x + x.roll(2, 2)), (3, 1)),
    "enlarged": (nn.Sequential(conv(3, 8), nn.Upsample(scale_factor=2), conv(8, 8)), 4),
    "transposed": (nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 8, 2, 2)), 3),
    "normalised": (nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), conv(8, 8)), 5),
    "gated": (nn.Sequential(conv(3, 8), Module(scaled, gate=conv(8, 8, 1)), conv(8, 8)), 5),
    "unfolded": (Module(lambda x: F.unfold(x, 3).view(len(x), 27, 30, 30)), 3),
}


@pytest.mark.parametrize("name", ANY_OPERATION)
def test_receptive_field_behind_any_operation(name):
    model, expected = ANY_OPERATION[name]
    row = receptive_field(model, (3, 32, 32))[-1]
    assert (row.receptive_field, row.clipped) == (expected, False)


def test_receptive_field_says_where_the_image_is_too_small():
    mixed = Module(lambda x: torch.fft.ifft2(torch.fft.fft2(x) * 0.5).real)
    row = receptive_field(nn.Sequential(conv(3, 4), mixed), (3, 32, 32))[-1]
    assert (row.receptive_field, row.clipped) == (32, True)
    assert "at least 32" in str(row)
    beyond = receptive_field(nn.Sequential(*[conv(3, 3, 7, padding=3) for _ in range(9)]), (3, 32, 32))[-1]
    assert (beyond.receptive_field, beyond.clipped) == (1 + 9 * 6, False)  # of the formula, which nothing contradicts


@pytest.mark.parametrize("size", [(3, 80, 100), (3, 224, 224)])
def test_receptive_field_on_large_images(size):
    model = nn.Sequential(conv(3, 4, stride=2), conv(4, 4), Module(shuffled), conv(4, 4, 5))
    assert receptive_field(model, size)[-1].receptive_field == 3 + 4 + 8


def test_receptive_field_refuses_computed_places():
    def warped(x):
        grid = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), x.shape, align_corners=False)
        return F.grid_sample(x, grid + x.mean(), align_corners=False)

    def deformed(x):
        return torchvision.ops.deform_conv2d(x, x[:, :2].repeat(1, 9, 1, 1), torch.ones(4, 3, 3, 3), padding=1)

    def picked(x):
        return x.gather(3, x.argsort(3))

    for function in (warped, deformed, picked):
        with pytest.raises(ValueError, match="places that it computes"):
            receptive_field(Module(function), (3, 32, 32))


def test_receptive_field_refuses_an_output_that_ignores_the_image():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(1, 10)

    with pytest.raises(ValueError, match="depends on the image"):
        receptive_field(Constant(), (3, 32, 32))
