import torch
from PIL import Image

from s9.data import Data
from s9.distortions import as_jpeg, blurred, noisy, squared_error
from scripts.shortcut import lossless_others, measure


def smooth_images(count: int) -> torch.Tensor:
    coarse = torch.randint(40, 216, (count, 3, 5, 5), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear").to(torch.uint8)


def test_noise_and_blur_have_the_squared_error_that_is_asked_for():
    images = smooth_images(50)
    assert abs(squared_error(images, noisy(images, 40.0)) - 40) < 2
    images = noisy(images, 200.0)  # something to blur away
    assert abs(squared_error(images, blurred(images, 100.0)) - 100) < 5


def test_jpeg_is_what_pillow_saves(tmp_path):
    images = smooth_images(2)
    Image.fromarray(images[1].permute(1, 2, 0).numpy()).save(tmp_path / "image.jpg", quality=60)
    with Image.open(tmp_path / "image.jpg") as image:
        assert as_jpeg(images, 60)[1, :, 3, 7].tolist() == list(image.getpixel((7, 3)))
    assert 1 < squared_error(images, as_jpeg(images, 60)) < squared_error(images, as_jpeg(images, 10))


class SeesBlocks(torch.nn.Module):
    """Says "ship" to an image that steps more at the borders of JPEG's 8x8 blocks than elsewhere."""

    def forward(self, x):
        steps = x.diff(dim=3).abs().mean((1, 2))  # (N, 31)
        borders = steps[:, 7::8].mean(1) > 1.3 * (steps.sum(1) - steps[:, 7::8].sum(1)) / 28
        return torch.stack([(~borders).float(), borders.float()], 1)


def test_a_network_that_goes_by_jpegs_blocks_is_caught():
    images, labels = smooth_images(60), torch.arange(60) % 2
    jpeg = torch.zeros(60, dtype=torch.bool)
    jpeg[:4] = True
    data = Data(images, labels, images, labels, ("frog", "ship"), "made", "for this test", jpeg, jpeg)
    assert len(lossless_others(data).test_labels) == 28
    assert (lossless_others(data).test_labels == 0).all()
    rows = {row["images"]: row for row in measure(SeesBlocks(), data, quality=20)}
    called = {name: row["called_ship"] for name, row in rows.items()}
    assert called["as they are"] <= 3
    assert called["JPEG, quality 20"] > called["noise"] + 5
    assert rows["as they are"]["accuracy"] == round(100 * (1 - called["as they are"] / 28), 2)
