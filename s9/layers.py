"""PyTorch's Conv2d and Dropout, with a faster way through training on a CPU."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def _takes_fast_path(layer: nn.Module, x: torch.Tensor) -> bool:
    return layer.training and x.device.type == "cpu" and not torch.compiler.is_compiling()


class Conv2d(nn.Conv2d):
    """nn.Conv2d whose dilated forms are quicker to train on a CPU, with the same numbers up to rounding.

    torch's backward pass of a dilated convolution is slow there. Two forms of it come down to a plain convolution:

    - Where the stride equals the dilation, and the padding is a multiple of them, only every stride-th pixel is ever
      read. Those are picked first.
    - A depthwise convolution that keeps the size of its map never brings together pixels whose rows or columns are not
      a multiple of the dilation apart. The map is taken apart into such phases, as if each were an image.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dilated = _takes_fast_path(self, x) and max(self.dilation) > 1 and x.ndim == 4
        if dilated and self.padding_mode == "zeros" and not isinstance(self.padding, str):
            if self.stride == self.dilation and not any(p % s for p, s in zip(self.padding, self.stride, strict=True)):
                return self._picked(x)
            if self._is_depthwise_of_one_size():
                return self._in_phases(x)
        return super().forward(x)

    def _is_depthwise_of_one_size(self) -> bool:
        keeps_size = all(
            k % 2 and p == k // 2 * d for k, p, d in zip(self.kernel_size, self.padding, self.dilation, strict=True)
        )
        return keeps_size and self.stride == (1, 1) and self.groups == self.in_channels

    def _picked(self, x: torch.Tensor) -> torch.Tensor:
        picked = F.avg_pool2d(x, 1, self.stride)  # a pool of one pixel: copies faster than slicing
        padding = tuple(p // s for p, s in zip(self.padding, self.stride, strict=True))
        return F.conv2d(picked, self.weight, self.bias, padding=padding, groups=self.groups)

    def _in_phases(self, x: torch.Tensor) -> torch.Tensor:
        (down, right), (height, width) = self.dilation, x.shape[2:]
        if height % down or width % right:
            x = F.pad(x, (0, -width % right, 0, -height % down))  # zeros, as the padding of the whole map has
        phases = x.permute(0, 2, 3, 1).unflatten(2, (-1, right)).unflatten(1, (-1, down))  # (N, H/d, d, W/d, d, C)
        phases = phases.permute(0, 2, 4, 1, 3, 5)  # (N, d, d, H/d, W/d, C)
        plain = phases.flatten(0, 2).permute(0, 3, 1, 2)  # (N * d * d, C, H/d, W/d), channels-last in memory
        plain = F.conv2d(plain, self.weight, self.bias, padding=[k // 2 for k in self.kernel_size], groups=self.groups)
        x = plain.permute(0, 2, 3, 1).unflatten(0, (-1, down, right)).permute(0, 3, 1, 4, 2, 5)
        return x.flatten(3, 4).flatten(1, 2)[:, :height, :width].permute(0, 3, 1, 2)


class Dropout(nn.Dropout):
    """nn.Dropout whose random draw on a CPU is ten times faster; p is met to 1/65,536.

    torch draws a float for each activation from one slow sequence. Here a quick generator, seeded from torch's, draws
    64 bits for every four. Like nn.Dropout it depends on torch.manual_seed, but not with the same result.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dense = torch.empty_like(x).stride() == x.stride()
        if not (_takes_fast_path(self, x) and dense and 0 < self.p < 1):
            return super().forward(x)
        seed = int(torch.randint(2**62, ()))
        draws = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
        kept = torch.from_numpy((draws >= round(self.p * 65536)).view(np.uint8))  # bytes turn into floats quicker
        # Laid out in memory as x is, so that nothing has to be rearranged.
        mask = kept.as_strided(x.size(), x.stride()).to(x.dtype).mul_(1 / (1 - self.p))
        return x.mul_(mask) if self.inplace else x * mask
