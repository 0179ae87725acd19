"""The networks, building blocks first."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from s9.cards import MODEL, read_card
from s9.layers import Conv2d, Dropout
from s9.weights import load_weights

WEIGHTS = Path(__file__).parent / "assets" / "weights" / "s9net.pt"

# Class names and layer order follow the student's code, so that torchsummary prints the same table.


class DWSeparableConv2d(nn.Module):
    """Depthwise 3x3, pointwise 1x1, ReLU, BatchNorm, dropout: (N, in, H, W) -> (N, out, H, W).

    Without `use_relu` the ReLU's result is discarded, as in the student's code. torchsummary's table is the same in
    both cases.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float, use_relu: bool = False):
        super().__init__()
        self.use_relu = use_relu
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.relu = nn.ReLU()
        self.norm = nn.BatchNorm2d(out_channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pointwise(self.depthwise(x))
        rectified = self.relu(x)
        return self.dropout(self.norm(rectified if self.use_relu else x))

    def extra_repr(self) -> str:
        return f"use_relu={self.use_relu}"


class DilateConv2d(nn.Module):
    """A dense 3x3 convolution with stride 2 and dilation 2, without bias, normalisation or activation."""

    def __init__(self, in_channels: int, out_channels: int, padding: int = 0):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 3, stride=2, padding=padding, dilation=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class GenericConvLayer2d(nn.Module):
    """A dense convolution without bias, normalisation or activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class StudentNet(nn.Module):
    """The student's network, 214,651 parameters: normalised images (N, 3, 32, 32) -> log-probabilities (N, classes).

    Without arguments it is the network as published.

    Args:
        use_relu: use what the blocks' ReLUs return.
        norm_strided: BatchNorm and ReLU after the three strided convolutions; 214,971 parameters.
        pad_strided: padding, so that the feature maps have 16, 8 and 4 pixels.
        dropout: probability that an activation is dropped, after each separable block.
    """

    def __init__(
        self,
        use_relu: bool = False,
        norm_strided: bool = False,
        pad_strided: bool = False,
        dropout: float = 0.1,
        num_classes: int = 10,
    ):
        super().__init__()
        self.options = {
            "use_relu": use_relu, "norm_strided": norm_strided, "pad_strided": pad_strided, "dropout": dropout,
            "num_classes": num_classes,
        }  # fmt: skip
        padding = 1 if pad_strided else 0

        def separable(in_channels: int, out_channels: int) -> nn.Module:
            return DWSeparableConv2d(in_channels, out_channels, dropout, use_relu)

        def strided(conv: nn.Module, out_channels: int) -> nn.Module:
            return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU()) if norm_strided else conv

        self.features = nn.Sequential(  # maps of
            separable(3, 32),  # 32x32
            separable(32, 64),
            strided(DilateConv2d(64, 32, 2 * padding), 32),  # 14x14, padded 16x16
            separable(32, 64),
            separable(64, 128),
            strided(GenericConvLayer2d(128, 64, 3, 2, padding), 64),  # 6x6, padded 8x8
            separable(64, 128),
            separable(128, 128),
            strided(GenericConvLayer2d(128, 64, 3, 2, padding), 64),  # 2x2, padded 4x4
            separable(64, 64),
            separable(64, 32),
        )
        self.classifier = nn.Sequential(GenericConvLayer2d(32, num_classes, 1), nn.AvgPool2d(4 if pad_strided else 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.classifier(self.features(x))  # (N, classes, 1, 1)
        return F.log_softmax(x.flatten(1), dim=1)


class ResidualBlock(nn.Module):
    """x + f(x), with f a depthwise 3x3 convolution and one or two pointwise ones: (N, C, H, W) -> the same.

    With an `expansion` the first of two pointwise convolutions multiplies the channels by it, and the second restores
    them; 0: a single pointwise convolution. An inverted bottleneck (MobileNetV2, arXiv:1801.04381) in ConvNeXt's
    order: depthwise first, where there are fewer channels (arXiv:2201.03545).
    """

    def __init__(self, channels: int, dilation: int = 1, expansion: int = 2):
        super().__init__()
        inner = expansion * channels or channels
        widen = [nn.Conv2d(channels, inner, 1, bias=False)] if expansion else []
        self.branch = nn.Sequential(
            Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False),
            *widen,
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Downsample(nn.Sequential):
    """2x2 average pooling, a pointwise convolution and BatchNorm: (N, in, H, W) -> (N, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int):
        pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(nn.AvgPool2d(2), pointwise, nn.BatchNorm2d(out_channels))


class S9Net(nn.Module):
    """The kit's own network, 188,906 parameters: normalised images (N, 3, 32, 32) -> logits (N, classes).

    Args:
        width: channels of the eight blocks at 16x16; the stem has width / 2, the last block 3 * width / 2.
    """

    def __init__(self, width: int = 64, num_classes: int = 10):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"S9Net: width={width} does not work; give an even number from 2 up.")
        self.options = {"width": width, "num_classes": num_classes}
        first, last = width // 2, width * 3 // 2
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()),
            ResidualBlock(first, expansion=0),  # 32x32
            Downsample(first, width),
            *[ResidualBlock(width, dilation) for dilation in 4 * (1, 2)],  # 16x16
            Downsample(width, last),
            ResidualBlock(last),  # 8x8
            nn.ReLU(),
        )
        self.classifier = nn.Linear(last, num_classes)

    @classmethod
    def pretrained(cls) -> "S9Net":
        """The network with the weights after 25 epochs, seed 0, in eval mode, with its classes and its normalisation.

        Raises:
            FileNotFoundError: the weights file is missing.
            ValueError: the file with the weights is damaged.
        """
        return load_weights(cls(), WEIGHTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def load_model(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The network of a finished run, such as runs/mine, in eval mode, with its classes and preprocessing.

    Args:
        folder: where the run is.
        model: a new network of the same kind; networks of models.py are made from the card.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: card or weights are damaged, or the card does not say how the network is made.
    """
    card = read_card(folder)
    if model is None:
        kind = globals().get(card["network"])
        if kind is None or card["options"] is None:
            raise ValueError(
                f"{folder}: {card['network']} is no network of models.py; give one: load_model(folder, MyNetwork())."
            )
        model = kind(**card["options"])
    return load_weights(model, Path(folder).expanduser() / MODEL)
