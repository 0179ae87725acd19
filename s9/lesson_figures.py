"""Figures: what `utils` offers as plot_... and as the picture of an architecture.

Each plot returns a matplotlib Figure for the caller to show or save. Its first title line says what to see, the second,
`caption`, what it was measured on: network, data set, accuracy.
"""

import functools
import io
import math
import textwrap
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib import font_manager
from PIL import Image

TRAIN_COLOUR, TEST_COLOUR, REFERENCE_COLOUR = (sns.color_palette("colorblind")[index] for index in (1, 0, 7))


MOST_CLASSES = 20  # that a figure shows one by one; of more it shows some, and says so
LONGEST_NAME = 16  # characters of a class name in a figure
# After matplotlib's own: what has Chinese, Japanese and Korean letters on Linux, macOS and Windows.
FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "Arial Unicode MS", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans", "Noto Sans Devanagari",
)  # fmt: skip


@functools.cache
def _fonts_here() -> tuple[list[str], frozenset[int]]:
    """Which of FONTS are installed, and the letters that they have between them."""
    here = set(font_manager.get_font_names())
    names = [name for name in FONTS if name in here]
    files = [font_manager.findfont(name) for name in names]
    return names, frozenset(letter for file in files for letter in font_manager.get_font(file).get_charmap())


def names_to_draw(classes: tuple[str, ...]) -> list[str]:
    """Class names for a figure: long ones shortened in the middle, and "class 3" where no font has the letters."""
    _, letters = _fonts_here()
    drawn, half = [], LONGEST_NAME // 2
    for number, name in enumerate(classes):
        if not all(ord(letter) in letters for letter in name):
            name = f"class {number}"
        drawn.append(name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}")
    return drawn


def classes_shown(classes: tuple[str, ...]) -> tuple[list[int], str]:
    """The classes that a figure has room for, spread over all of them, and how its title counts them."""
    count = len(classes)
    if count <= MOST_CLASSES:
        return list(range(count)), f"{count} classes"
    return [round(place) for place in np.linspace(0, count - 1, MOST_CLASSES)], f"{MOST_CLASSES} of {count} classes"


def new_figure(rows: int, columns: int, width: float, height: float, title: str, caption: str, **options):
    """A grid of axes under two title lines; sizes in inches."""
    style = {"text.parse_math": False, "font.family": _fonts_here()[0]}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options
        )
        figure.suptitle(f"{title}\n{caption}", fontsize=15)
    plt.close(figure)  # the caller shows it: a notebook would otherwise show it twice
    return figure, axes


def show_image(axis, image: torch.Tensor, title: str = "") -> None:
    """Draw a uint8 image (3, H, W) without ticks."""
    axis.imshow(image.permute(1, 2, 0).numpy())
    axis.set_title(title, fontsize=13)
    axis.set(xticks=[], yticks=[])


def plot_samples(data, caption: str, seed: int = 0) -> plt.Figure:
    """Five random training images of each class, two classes a row; of many classes some."""
    generator = torch.Generator().manual_seed(seed)
    shown, counted = classes_shown(data.classes)
    names, rows, size = names_to_draw(data.classes), math.ceil(len(shown) / 2), data.train_images.shape[-1]
    title = f"{counted}, {size}x{size} pixels: ten classes, small images"
    figure, axes = new_figure(rows, 10, 11, 1.3 * rows + 0.8, title, caption)
    for place, label in enumerate(shown):
        row = axes[place // 2, 5 * (place % 2) :][:5]
        members = (data.train_labels == label).nonzero().flatten()
        chosen = members[torch.randperm(len(members), generator=generator)[:5]]
        for axis, index in zip(row, chosen, strict=False):
            show_image(axis, data.train_images[index])
        row[0].set_title(names[label], fontsize=14, loc="left")
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def plot_augmentations(versions: torch.Tensor, caption: str) -> plt.Figure:
    """An image beside its augmentations: (1 + count, 3, H, W) uint8, as `augmented_versions` gives them."""
    title = "One image, eight augmented versions"
    figure, axes = new_figure(1, len(versions), 1.25 * len(versions), 2.1, title, caption)
    for axis, version in zip(axes.flat, versions, strict=True):
        show_image(axis, version, "original" if axis is axes.flat[0] else "")
    return figure


def plot_receptive_field(rows: list[tuple[str, int]], image: torch.Tensor, caption: str) -> plt.Figure:
    """Squares, as large as each (layer, receptive field) of `rows`, about the middle of a uint8 image (3, H, W)."""
    size = image.shape[-1]
    largest = max(field for _, field in rows)
    title = f"The output sees {rows[-1][1]} pixels a side of an image that has {size}"
    figure, axes = new_figure(1, 1, 7.5, 6.5, title, caption)
    axis = axes[0, 0]
    axis.imshow(image.permute(1, 2, 0).numpy(), extent=(0, size, size, 0))
    for (layer, field), colour in zip(rows, sns.color_palette("viridis_r", len(rows)), strict=True):
        corner = (size - field) / 2
        label = f"{field:>3} {layer}"
        axis.add_patch(plt.Rectangle((corner, corner), field, field, fill=False, edgecolor=colour, lw=2, label=label))
    reach = (largest - size) / 2 + 2
    axis.set(xlim=(min(-reach, 0), max(size + reach, size)), ylim=(max(size + reach, size), min(-reach, 0)))
    axis.set(xlabel="pixels", ylabel="pixels")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), prop={"family": "monospace", "size": 10})
    return figure


def plot_templates(matrix: np.ndarray, classes: tuple[str, ...], caption: str, size: int = 32) -> plt.Figure:
    """The columns of a (3 * size * size, classes) matrix as pictures: what each class is compared with, pixel by pixel.

    Grey is a weight of 0; each picture is scaled by its own largest weight. Of many classes some are shown.
    """
    shown, _ = classes_shown(classes)
    names, columns = names_to_draw(classes), min(5, math.ceil(len(shown) / 2))
    rows = math.ceil(len(shown) / columns)
    some = "" if len(shown) == len(classes) else f", {len(shown)} of them here"
    title = f"All that the network knows: {len(classes)} blurred pictures{some}"
    figure, axes = new_figure(rows, columns, max(6.5, 2.1 * columns), 2.3 * rows + 0.6, title, caption)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, label in zip(axes.flat, shown, strict=False):
        weights = matrix[:, label]
        picture = 127.5 * (1 + weights / max(np.abs(weights).max(), 1e-12))
        show_image(axis, torch.from_numpy(picture.round().astype(np.uint8)).view(3, size, size), names[label])
    return figure


def plot_logits_against(network: np.ndarray, matrix: np.ndarray, caption: str) -> plt.Figure:
    """The logits of a network against those of the matrix that replaces it, both (N, classes)."""
    largest = np.abs(network - matrix).max()
    title = f"One matrix gives the same {network.size:,} logits, within {largest:.0e}"
    figure, axes = new_figure(1, 1, 6.5, 6, title, caption)
    axis = axes[0, 0]
    axis.plot(matrix.ravel(), network.ravel(), ".", color=TEST_COLOUR, alpha=0.3, markersize=4)
    ends = [min(network.min(), matrix.min()), max(network.max(), matrix.max())]
    axis.plot(ends, ends, "-", color=REFERENCE_COLOUR, linewidth=1)
    axis.set(xlabel="logit of pixels times matrix", ylabel="logit of the network", aspect="equal")
    axis.grid(alpha=0.3)
    return figure


def plot_learning_rate_range(curve, given: float, caption: str) -> plt.Figure:
    """A `review.RangeTest`: the loss on one batch while the learning rate rises, and the rate `given`."""
    title = f"The loss falls fastest at a rate of {curve.steepest:.2g}; given is {given:.2g}"
    figure, axes = new_figure(1, 1, 8, 4.5, title, caption)
    axis = axes[0, 0]
    axis.semilogx(curve.rates, curve.losses, ".-", color=TEST_COLOUR)
    for rate, style, label in ((given, "--", "given"), (curve.steepest, "-", "falls fastest")):
        axis.axvline(rate, linestyle=style, color=TRAIN_COLOUR, label=label)
    axis.set(xlabel="learning rate, one step each", ylabel="loss before the step")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def plot_ladder(rungs: dict[str, list[dict]], caption: str) -> plt.Figure:
    """The last test accuracy of each run as a bar with its gain over the run before, and their curves beside it.

    Args:
        rungs: from what a run changes, given the one before, to its history; in order.
    """
    last = [history[-1]["test_accuracy"] for history in rungs.values()]
    gains = [after - before for before, after in pairwise(last)]
    title = f"From {last[0]:.1f} % to {last[-1]:.1f} %"
    height = max(4.5, 0.75 * len(rungs) + 1.6)
    figure, axes = new_figure(1, 2, 13, height, title, caption, gridspec_kw={"width_ratios": [1.25, 1]})
    bars, curves = axes[0]
    colours = sns.color_palette("viridis_r", len(rungs) + 1)[1:]
    labels = [textwrap.fill(change, 30) for change in rungs]
    bars.barh(range(len(rungs)), last, color=colours)
    for place, (accuracy, gain) in enumerate(zip(last, [None, *gains], strict=True)):
        text = f"{accuracy:.1f} %" + ("" if gain is None else f"  ({gain:+.1f})")
        bars.text(accuracy + 1, place, text, va="center", fontsize=12)
    bars.set_yticks(range(len(rungs)), labels)
    bars.set(xlim=(0, 1.4 * max(last)), xlabel="test accuracy, %, last epoch (gain over the bar above)")
    bars.set_xticks(range(0, 101, 20))
    bars.invert_yaxis()
    for history, colour, label in zip(rungs.values(), colours, labels, strict=True):
        epochs = [record["epoch"] for record in history]
        curves.plot(epochs, [record["test_accuracy"] for record in history], ".-", color=colour, label=label)
    curves.set(xlabel="epoch", ylabel="test accuracy, %")
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.grid(alpha=0.3)
    return figure


def plot_search(rows: list[dict], caption: str, chosen: str) -> plt.Figure:
    """What a search tried: accuracy on held-out images against s/epoch, dots as large as the parameters.

    Args:
        rows: with `candidate`, `held_out_accuracy`, `seconds_an_epoch` and `parameters`, as in assets/search.csv.
        chosen: the candidate that was taken, which is drawn in another colour.
    """
    taken = next(row for row in rows if row["candidate"] == chosen)
    title = (
        f"{len(rows)} candidates; {chosen} was taken: {taken['held_out_accuracy']:.1f} % of held-out images right at "
        f"{taken['seconds_an_epoch']:.0f} s an epoch"
    )
    figure, axes = new_figure(1, 1, 11, 6.5, title, caption)
    axis = axes[0, 0]
    for index, row in enumerate(rows):
        colour = TRAIN_COLOUR if row["candidate"] == chosen else TEST_COLOUR
        place = row["seconds_an_epoch"], row["held_out_accuracy"]
        axis.scatter(*place, s=row["parameters"] / 1000, color=colour, alpha=0.7)
        beside = (7, 4 - 16 * (index % 2))  # above and below in turn, so that neighbours' names keep apart
        axis.annotate(row["candidate"], place, xytext=beside, textcoords="offset points", fontsize=9)
    axis.set(xlabel="s/epoch", ylabel="validation accuracy, %")
    axis.margins(x=0.15)
    axis.grid(alpha=0.3)
    return figure


def name_ticks(axis, names: list[str]) -> None:
    """Class names along both sides of a confusion matrix: as they are, never as formulas."""
    for side, said in ((axis.xaxis, "predicted"), (axis.yaxis, "true")):
        side.set_label_text(said, fontsize=14)
        side.set_ticks(np.arange(len(names)) + 0.5, names, fontsize=13, parse_math=False, fontfamily=_fonts_here()[0])
    plt.setp(axis.get_yticklabels(), rotation=0)
    plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")


def plot_worst_pairs(matrix: np.ndarray, names: list[str], title: str, caption: str) -> plt.Figure:
    """A confusion matrix of many classes, its percentages as colours, and beside it the pairs that are confused most.

    `matrix` (classes, classes) holds counts, with the true classes in its rows.
    """
    figure, axes = new_figure(1, 2, 14, 7.5, title, caption, gridspec_kw={"width_ratios": [1.2, 1]})
    whole, bars = axes[0]
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    drawn = whole.imshow(share, cmap="Blues", norm="symlog", vmin=0, vmax=100, interpolation="nearest")
    whole.set(xlabel="predicted, number of the class", ylabel="true, number of the class")
    figure.colorbar(drawn, ax=whole, label="percent of the true class", ticks=[0, 1, 10, 100], format="%d")
    off_diagonal = np.where(np.eye(len(names), dtype=bool), -1, share).ravel()
    worst = [np.unravel_index(place, matrix.shape) for place in np.argsort(-off_diagonal, kind="stable")[:MOST_CLASSES]]
    worst = [pair for pair in worst if matrix[pair]]
    bars.barh(range(len(worst)), [share[pair] for pair in worst], color=TEST_COLOUR)
    labels = [f"{names[true]} → {names[taken]}" for true, taken in worst]
    bars.yaxis.set_ticks(range(len(worst)), labels, parse_math=False, fontfamily=_fonts_here()[0])
    for place, pair in enumerate(worst):
        bars.text(share[pair], place, f" {matrix[pair]} of {matrix[pair[0]].sum()}", va="center", fontsize=9)
    bars.set(xlabel="percent of the true class", title="most frequent confusions")
    bars.margins(x=0.2)
    bars.invert_yaxis()
    return figure


def surest_mistakes(data, predicted: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Indices of the misclassified test images, the most confident mistake first."""
    wrong = np.flatnonzero(predicted != data.test_labels.numpy())
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]


def plot_attention(
    images: torch.Tensor, maps: np.ndarray, titles: list[str], caption: str, title: str = "Where the network looks"
) -> plt.Figure:
    """Images above, and below the same under what a class activation map found to count.

    Args:
        images: (N, 3, H, W) uint8.
        maps: (N, H, W), 0 where nothing depends on a pixel, 1 where most does.
        titles: one an image.
    """
    figure, axes = new_figure(2, len(images), 1.9 * len(images), 5.2, title, caption)
    for column, (image, heat, text) in enumerate(zip(images, maps, titles, strict=True)):
        show_image(axes[0, column], image, text)
        show_image(axes[1, column], image)
        axes[1, column].imshow(heat, cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    return figure


def beside(*figures: plt.Figure) -> bytes:
    """Figures side by side in one picture, as a PNG file."""
    pictures = []
    for figure in figures:
        figure.savefig(file := io.BytesIO(), format="png")
        pictures.append(Image.open(file).convert("RGB"))
    gap = 40  # pixels
    width = sum(picture.width + gap for picture in pictures) - gap
    height = max(picture.height for picture in pictures)
    together, left = Image.new("RGB", (width, height), "white"), 0
    for picture in pictures:
        together.paste(picture, (left, 0))
        left += picture.width + gap
    together.save(file := io.BytesIO(), format="png")
    return file.getvalue()


# ------------------------------------------------------------------------------------------------ architecture picture
