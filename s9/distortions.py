"""Test images made worse in ways of equal squared error, to tell what a network relies on."""

import io

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import gaussian_blur


def as_jpeg(images: torch.Tensor, quality: int = 75) -> torch.Tensor:
    """Images (N, 3, H, W) uint8 after they were saved as JPEG and read again."""
    read = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        read.append(np.asarray(Image.open(file, formats=["JPEG"])))
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).contiguous()


def squared_error(images: torch.Tensor, others: torch.Tensor) -> float:
    """Mean squared difference of images (N, C, H, W) from other versions of them, for pixels in 0..255."""
    return (images.float() - others.float()).square().mean().item()


def noisy(images: torch.Tensor, error: float, seed: int = 0) -> torch.Tensor:
    """Images (N, 3, H, W) uint8 plus Gaussian noise of a mean squared error of `error`, but for clipping."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + noise * error**0.5).round().clamp(0, 255).to(torch.uint8)


def blurred(images: torch.Tensor, error: float, steps: int = 12) -> torch.Tensor:
    """Images (N, 3, H, W) uint8 blurred by one Gaussian, as wide as it takes for a mean squared error of `error`."""
    lowest, highest = 0.1, 8.0  # pixels, of the deviation
    for _ in range(steps):
        sigma = (lowest + highest) / 2
        result = gaussian_blur(images, 2 * int(3 * sigma) + 3, sigma)
        if squared_error(images, result) < error:
            lowest = sigma
        else:
            highest = sigma
    return result
