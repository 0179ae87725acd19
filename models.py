"""The networks, from blocks to whole, top to bottom. What looks at a network from outside is in review.py."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WEIGHTS = Path(__file__).parent / "assets" / "weights" / "s9net.pt"

# Three layers that are PyTorch's own to the reader and to every tool, with a faster way through training on a CPU.


class Dropout(nn.Dropout):
    """nn.Dropout whose random draw on a CPU is ten times faster; p is met to 1/65,536.

    torch draws a float for each activation from one slow sequence. Here a quick generator, seeded from torch's, draws
    64 bits for every four. Like nn.Dropout it depends on torch.manual_seed, but not with the same result.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quick = self.training and x.device.type == "cpu" and torch.empty_like(x).stride() == x.stride()
        if not quick:
            return super().forward(x)
        seed = int(torch.randint(2**62, ()))
        draws = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
        kept = torch.from_numpy((draws >= round(self.p * 65536)).view(np.uint8))  # bytes turn into floats quicker
        # Laid out in memory as x is, so that nothing has to be rearranged.
        mask = kept.as_strided(x.size(), x.stride()).to(x.dtype).mul_(1 / (1 - self.p))
        return x * mask


class StrideDilatedConv2d(nn.Conv2d):
    """A convolution whose stride equals its dilation, and whose padding is a multiple of them.

    It only ever reads every stride-th pixel. To pick those first and convolve them plainly gives the same numbers, and
    spares the CPU the slow backward pass of a dilated convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int, bias: bool):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation=stride, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.device.type == "cpu":
            picked = F.avg_pool2d(x, 1, self.stride)  # a pool of one pixel: copies faster than slicing
            return F.conv2d(picked, self.weight, self.bias, padding=self.padding[0] // self.stride[0])
        return super().forward(x)


class DepthwiseDilatedConv2d(nn.Conv2d):
    """A depthwise 3x3 convolution, dilated or not, that keeps the size of the map.

    Pixels whose rows and columns are a multiple of the dilation apart never meet the others. Taken apart into such
    phases, as if each were an image, a map can be convolved plainly: the same numbers, and on a CPU a backward pass
    that is several times faster.
    """

    def __init__(self, channels: int, dilation: int):
        super().__init__(channels, channels, 3, 1, dilation, dilation, groups=channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dilation == (1, 1) or not self.training or x.device.type != "cpu":
            return super().forward(x)
        d, (height, width) = self.dilation[0], x.shape[2:]
        if height % d or width % d:
            x = F.pad(x, (0, -width % d, 0, -height % d))  # zeros, as the padding of the whole map has
        phases = x.permute(0, 2, 3, 1).unflatten(2, (-1, d)).unflatten(1, (-1, d))  # (N, H/d, d, W/d, d, C)
        phases = phases.permute(0, 2, 4, 1, 3, 5)  # (N, d, d, H/d, W/d, C)
        plain = phases.flatten(0, 2).permute(0, 3, 1, 2)  # (N * d * d, C, H/d, W/d), channels-last in memory
        plain = F.conv2d(plain, self.weight, padding=1, groups=self.groups)
        x = plain.permute(0, 2, 3, 1).unflatten(0, (-1, d, d)).permute(0, 3, 1, 4, 2, 5)
        return x.flatten(3, 4).flatten(1, 2)[:, :height, :width].permute(0, 3, 1, 2)


StrideDilatedConv2d.__name__ = StrideDilatedConv2d.__qualname__ = "Conv2d"  # as torchsummary has to show it


# The blocks keep the names, and the order of their layers, of the network that this course reviews:
# its torchsummary table must come out the same to the letter.


class DWSeparableConv2d(nn.Module):
    """Depthwise 3x3, pointwise 1x1, ReLU, BatchNorm, dropout: (N, in, H, W) -> (N, out, H, W).

    With `apply_relu=False` the ReLU is called and its result dropped, as in the student's code. A list of the modules
    that ran, such as torchsummary's table, cannot tell the two apart.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float, apply_relu: bool):
        super().__init__()
        self.apply_relu = apply_relu
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.relu = nn.ReLU()
        self.norm = nn.BatchNorm2d(out_channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pointwise(self.depthwise(x))
        rectified = self.relu(x)
        return self.dropout(self.norm(rectified if self.apply_relu else x))

    def extra_repr(self) -> str:
        return f"apply_relu={self.apply_relu}"


class DilateConv2d(nn.Module):
    """A dense 3x3 convolution with stride 2 and dilation 2, without bias, normalisation or activation."""

    def __init__(self, in_channels: int, out_channels: int, padding: int = 0):
        super().__init__()
        self.conv = StrideDilatedConv2d(in_channels, out_channels, 3, stride=2, padding=padding, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class GenericConvLayer2d(nn.Module):
    """A dense convolution without bias, normalisation or activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class SeedNet(nn.Module):
    """The student's network, 214,651 parameters: normalised images (N, 3, 32, 32) -> log-probabilities (N, classes).

    Args:
        apply_relu: False is the network as it was, True the same network with its ReLUs applied.
        mend_strides: give the three strided convolutions the padding that keeps maps of 16, 8 and 4 pixels, and
            BatchNorm and ReLU behind them. 214,971 parameters.
        dropout: probability that an activation is dropped, after each separable block.
    """

    def __init__(self, apply_relu: bool, mend_strides: bool = False, dropout: float = 0.1, num_classes: int = 10):
        super().__init__()
        padding = 1 if mend_strides else 0

        def separable(in_channels: int, out_channels: int) -> nn.Module:
            return DWSeparableConv2d(in_channels, out_channels, dropout, apply_relu)

        def strided(conv: nn.Module, out_channels: int) -> nn.Module:
            return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU()) if mend_strides else conv

        self.features = nn.Sequential(  # maps of
            separable(3, 32),  # 32x32
            separable(32, 64),
            strided(DilateConv2d(64, 32, 2 * padding), 32),  # 14x14, mended 16x16
            separable(32, 64),
            separable(64, 128),
            strided(GenericConvLayer2d(128, 64, 3, 2, padding), 64),  # 6x6, mended 8x8
            separable(64, 128),
            separable(128, 128),
            strided(GenericConvLayer2d(128, 64, 3, 2, padding), 64),  # 2x2, mended 4x4
            separable(64, 64),
            separable(64, 32),
        )
        self.classifier = nn.Sequential(GenericConvLayer2d(32, num_classes, 1), nn.AvgPool2d(4 if mend_strides else 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.classifier(self.features(x))  # (N, classes, 1, 1)
        return F.log_softmax(x.flatten(1), dim=1)


class ResidualBlock(nn.Module):
    """x plus what a depthwise 3x3 convolution and pointwise ones make of it: (N, C, H, W) -> the same.

    With an `expansion` the first of two pointwise convolutions widens the map to so many times its channels, and the
    second narrows it again; 0 is for a single one. An inverted bottleneck (MobileNetV2, arXiv:1801.04381) in
    ConvNeXt's order, which looks around first, where there are fewer channels (arXiv:2201.03545).
    """

    def __init__(self, channels: int, dilation: int = 1, expansion: int = 2):
        super().__init__()
        inner = expansion * channels or channels
        widen = [nn.Conv2d(channels, inner, 1, bias=False)] if expansion else []
        self.branch = nn.Sequential(
            DepthwiseDilatedConv2d(channels, dilation),
            *widen,
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Halve(nn.Sequential):
    """Half the height and width by averaging, then other channels: (N, in, H, W) -> (N, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int):
        pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(nn.AvgPool2d(2), pointwise, nn.BatchNorm2d(out_channels))


class S9Net(nn.Module):
    """The kit's own network, 188,906 parameters: normalised images (N, 3, 32, 32) -> logits (N, classes).

    Args:
        width: channels of the eight blocks at 16x16, where most of the network is; the stem has half as many and the
            last block half as many more.
    """

    def __init__(self, width: int = 64, num_classes: int = 10):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"S9Net: width={width} does not work; give an even number from 2 up.")
        first, last = width // 2, width * 3 // 2
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()),
            ResidualBlock(first, expansion=0),  # 32x32
            Halve(first, width),
            *[ResidualBlock(width, dilation) for dilation in 4 * (1, 2)],  # 16x16
            Halve(width, last),
            ResidualBlock(last),  # 8x8
            nn.ReLU(),
        )
        self.classifier = nn.Linear(last, num_classes)

    @classmethod
    def pretrained(cls) -> "S9Net":
        """The network as the first seed's 25 epochs left it, in eval mode.

        It takes images of CIFAR-10's classes, normalised with the mean (0.4914, 0.4822, 0.4465) and the standard
        deviation (0.2470, 0.2435, 0.2616) of pixels from 0 to 1.

        Raises:
            FileNotFoundError: the weights are not where this file is.
        """
        if not WEIGHTS.exists():
            raise FileNotFoundError(f"{WEIGHTS} is missing; fetch it with the rest of the kit, or train it anew.")
        model = cls()
        model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
        return model.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
