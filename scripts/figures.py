"""The pictures of README and docs, drawn from the records and weights in assets/: `python -m scripts.figures`.

Each fits a phone: at most 6.4 inches wide, no text under 12 points, its message as the title. Pictures that show test
images need CIFAR-10, and the diagrams of layers need graphviz.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from scipy.ndimage import gaussian_filter

from models import S9Net, StudentNet
from netreview import affine_equivalent
from s9 import architecture
from s9.lesson_figures import surest_mistakes
from s9.loading import CIFAR10_CLASSES, load_data
from s9.results import ASSETS, LADDER, ROOT, rounded
from s9.weights import load_weights
from scripts.endings import exit_code
from scripts.readme import signed
from scripts.tables import CONFUSION, LESSON, SHORTCUT, accuracies, benchmarks, history
from utils import predict

WIDTH, SMALLEST, DPI = 6.4, 12, 200  # inches, points, dots per inch
BLUE, ORANGE, GREY = (sns.color_palette("colorblind")[index] for index in (0, 3, 7))
TARGET = 85  # percent, of the assignment


def new_figure(rows: int, columns: int, height: float, title: str) -> tuple[plt.Figure, np.ndarray]:
    """A grid of axes under a title, as wide as a phone's screen is sharp."""
    with plt.rc_context({"font.size": SMALLEST, "axes.titlesize": SMALLEST, "xtick.labelsize": SMALLEST}):
        figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False)
        figure.suptitle(title, fontsize=16, fontweight="bold", x=0.01, ha="left")
    plt.close(figure)
    return figure, axes


def ladder() -> plt.Figure:
    """Every recorded step as a bar with its gain, beside the linear classifier and the assignment's target."""
    reached = accuracies()
    steps = [("as published" if run == "student" else change, reached[run], run) for run, change in LADDER.items()]
    relu_gain, others = steps[1][1] - steps[0][1], steps[-1][1] - steps[1][1]
    title = f"Using the ReLU's output gains {relu_gain:.0f} points,\nthe other steps {others:.0f} more"
    figure, axes = new_figure(1, 1, 1.9 + 0.4 * len(steps), title)
    axis, before = axes[0, 0], None
    for place, (change, accuracy, run) in enumerate(steps):
        colour = GREY if place == 0 else ORANGE if run.startswith(("s9net", "ladder-5", "ladder-6")) else BLUE
        axis.barh(place, accuracy, color=colour, height=0.8)
        axis.text(1, place, change, va="center", fontsize=SMALLEST, color="black" if place == 0 else "white")
        gain = "" if before is None else f"  {signed(accuracy - before)}"
        style = {"va": "center", "fontsize": SMALLEST, "fontweight": "bold"}
        axis.text(accuracy + 1, place, f"{rounded(accuracy)}{gain}", **style, bbox={"pad": 0.5, "color": "white"})
        before = accuracy
    lines = ((LESSON["linear_accuracy"], "linear classifier {}", "--"), (TARGET, "target {}", ":"))
    for value, label, style in lines:
        axis.axvline(value, color="black", linestyle=style, linewidth=1, zorder=0)
        axis.text(
            value, -0.6, label.format(rounded(value, 0 if value == TARGET else 1)), ha="center", fontsize=SMALLEST
        )
    axis.set(xlim=(0, 116), ylim=(len(steps) - 0.5, -1), yticks=[], xticks=range(0, 101, 20))
    axis.set_xlabel("CIFAR-10 test accuracy, %", fontsize=SMALLEST)
    axis.spines[["top", "right", "left"]].set_visible(False)
    return figure


def fault() -> plt.Figure:
    """The student's block: the ReLU is computed beside the path from image to answer."""
    figure, axes = new_figure(1, 1, 2.7, "The block computes a ReLU\nand never uses it")
    axis = axes[0, 0]
    boxes = [("depthwise\n3x3", 0.7, 1.6), ("pointwise\n1x1", 2.3, 1.6), ("BatchNorm", 4.1, 1.6), ("dropout", 5.7, 1.6)]
    for name, x, y in boxes:
        style = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "black"}
        axis.text(x, y, name, ha="center", va="center", fontsize=13, bbox=style)
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.5, "color": "black"}
    for start, end in ((-0.2, 0.08), (1.3, 1.7), (2.92, 3.38), (4.8, 5.2), (6.2, 6.6)):
        axis.annotate("", (end, 1.6), (start, 1.6), arrowprops=arrow)
    style = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": ORANGE, "linestyle": "--", "linewidth": 2}
    axis.text(2.3, 0.25, "ReLU", ha="center", va="center", fontsize=13, color=ORANGE, bbox=style)
    axis.annotate("", (2.3, 0.58), (2.3, 1.2), arrowprops=arrow | {"color": ORANGE, "linestyle": "--"})
    axis.annotate("", (3.4, 0.25), (2.75, 0.25), arrowprops=arrow | {"color": ORANGE, "linestyle": "--"})
    axis.text(3.5, 0.25, "✗  never used", va="center", fontsize=13, color=ORANGE)
    axis.set(xlim=(-0.2, 6.6), ylim=(-0.15, 2.2))
    axis.set_axis_off()
    return figure


def templates() -> plt.Figure:
    """The student's trained network as ten pictures, smoothed by two pixels, and ten numbers; one also as it is."""
    model = load_weights(StudentNet(), ASSETS / "weights" / "student.pt")
    matrix, bias = affine_equivalent(model, (3, 32, 32))
    weights = matrix.T.view(-1, 3, 32, 32).numpy()
    smooth = gaussian_filter(weights, (0, 0, 2, 2))
    largest = np.abs(smooth).max()
    figure, axes = new_figure(3, 4, 6.6, "The whole network: ten colour templates\nand ten biases")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, name, picture, own in zip(axes.flat, CIFAR10_CLASSES, smooth, bias.tolist(), strict=False):
        axis.imshow((0.5 + picture / (2 * largest)).transpose(1, 2, 0))
        axis.set_title(f"{name}\nbias {own:+.2f}".replace("-", "−"), fontsize=SMALLEST)
    raw = weights[0] / np.abs(weights[0]).max()
    axes[2, 2].imshow((0.5 + raw / 2).transpose(1, 2, 0))
    axes[2, 2].set_title("airplane,\nnot smoothed", fontsize=SMALLEST)
    axes[2, 3].text(0, 0.5, "grey:\nweight 0", va="center", fontsize=SMALLEST)
    return figure


def s9net() -> plt.Figure:
    """S9Net from image to logits, and one of its blocks."""
    figure, axes = new_figure(1, 1, 3.9, "S9Net: ten residual blocks,\neight of them at 16x16")
    axis = axes[0, 0]

    def box(x: float, y: float, text: str, colour="white") -> None:
        style = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "black"}
        axis.text(x, y, text, ha="center", va="center", fontsize=SMALLEST, bbox=style)

    arrow = {"arrowstyle": "-|>", "linewidth": 1.5, "color": "black"}
    light = (*BLUE, 0.25)
    stages = [
        (0.75, "stem 3x3\n32 channels", "white"),
        (2.25, "1 block\n32x32", light),
        (3.7, "8 blocks\n16x16\n64 channels", light),
        (5.2, "1 block\n8x8\n96 channels", light),
        (6.6, "average\nlinear", "white"),
    ]
    for x, text, colour in stages:
        box(x, 3.1, text, colour)
    for start, end in ((1.45, 1.75), (2.75, 3.0), (4.4, 4.5), (5.9, 6.05)):
        axis.annotate("", (end, 3.1), (start, 3.1), arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
    axis.text(0.1, 1.85, "One block (at 16x16, every second one is dilated):", fontsize=SMALLEST)
    for x, text in (
        (1.3, "depthwise\n3x3"),
        (2.9, "pointwise\nto 2 x"),
        (4.55, "BatchNorm\nReLU"),
        (6.2, "pointwise\nBatchNorm"),
    ):
        box(x, 0.9, text, light)
    for start, end in ((0.0, 0.62), (1.98, 2.25), (3.55, 3.8), (5.28, 5.5), (6.9, 7.25)):
        axis.annotate("", (end, 0.9), (start, 0.9), arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
    axis.plot([0.3, 0.3, 7.05, 7.05], [0.9, -0.15, -0.15, 0.5], color="black", linewidth=1.5)
    axis.annotate("", (7.05, 0.86), (7.05, 0.4), arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
    axis.text(3.7, -0.15, "+ its own input", ha="center", va="center", fontsize=SMALLEST, bbox={"color": "white"})
    axis.set(xlim=(0, 7.3), ylim=(-0.4, 3.8))
    axis.set_axis_off()
    return figure


def shortcut() -> plt.Figure:
    """How many images of other classes S9Net calls ships, by what was done to them."""
    rows = SHORTCUT["s9net"]
    called = {row["images"]: row["called_ship"] for row in rows}
    before, jpeg = rows[0], next(row for row in rows if row["images"].startswith("JPEG"))
    title = (
        f"Saved as JPEG, {jpeg['called_ship']} of {jpeg['count']:,} images without\n"
        f"a ship are called ships, not {before['called_ship']}"
    )
    figure, axes = new_figure(1, 1, 2.9, title)
    axis = axes[0, 0]
    for place, count in enumerate(called.values()):
        name = list(called)[place]
        axis.barh(place, count, color=ORANGE if name.startswith("JPEG") else BLUE)
        axis.text(count, place, f" {count}", va="center", fontsize=SMALLEST, fontweight="bold")
    axis.set_yticks(range(len(called)), called, fontsize=SMALLEST)
    axis.set(ylim=(len(called) - 0.5, -0.5), xlim=(0, 1.15 * max(called.values())))
    axis.set_xlabel("called a ship (same squared error)", fontsize=SMALLEST)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def curves(panels: list[tuple[str, str, dict[str, tuple[list, object, str]]]], title: str, height: float) -> plt.Figure:
    """Panels below each other, each of a label for y, limits and lines by name: values, colour and style; named at
    their ends.
    """
    figure, axes = new_figure(len(panels), 1, height, title)
    for axis, (label, limits, lines) in zip(axes.flat, panels, strict=True):
        ends = spread_out({name: values[-1] for name, (values, _, _) in lines.items()}, 0.09 * (limits[1] - limits[0]))
        for name, (values, colour, style) in lines.items():
            axis.plot(range(1, len(values) + 1), values, style, color=colour, linewidth=2)
            axis.text(len(values) + 0.5, ends[name], name, color=colour, va="center", fontsize=SMALLEST)
        epochs = max(len(values) for values, _, _ in lines.values())
        axis.set(ylim=limits, xlim=(1, 1.5 * epochs), xticks=[1, *range(5, epochs + 1, 5)])
        axis.set_ylabel(label, fontsize=SMALLEST)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("epoch", fontsize=SMALLEST, loc="left")
    return figure


def spread_out(values: dict[str, float], gap: float) -> dict[str, float]:
    """The same values, moved apart so that neighbours are at least `gap` apart."""
    ordered = sorted(values, key=values.get)
    places = [values[name] for name in ordered]
    for _ in range(100):
        for index in range(len(places) - 1):
            lacking = gap - (places[index + 1] - places[index])
            if lacking > 0:
                places[index] -= lacking / 2
                places[index + 1] += lacking / 2
    return dict(zip(ordered, places, strict=True))


def student_performance() -> plt.Figure:
    """Loss and accuracy of the student's network, rebuilt."""
    records = history("student")

    def lines(quantity: str, digits: int) -> dict:
        found = {}
        for split, name, colour in (("test", "test", BLUE), ("train", "training", ORANGE)):
            values = [record[f"{split}_{quantity}"] for record in records]
            found[f"{name} {rounded(values[-1], digits)}"] = (values, colour, "-")
        return found

    panels = [("cross-entropy", (1.7, 2.05), lines("loss", 2)), ("accuracy, %", (20, 45), lines("accuracy", 1))]
    return curves(panels, f"Rebuilt, the network ends at {rounded(records[-1]['test_accuracy'])} %", 5.4)


def student_compared() -> plt.Figure:
    """The student's own curves between ours without and with augmentation."""
    with (ASSETS / "student-log.csv").open() as file:
        own = list(csv.DictReader(file))
    lines = {}
    for name, colour, test, training in (
        ("no augmentation", BLUE, *columns("student")),
        ("student's", "black", [int(r["test_correct"]) / 100 for r in own], [float(r["train_accuracy"]) for r in own]),
        ("augmented", ORANGE, *columns("student-augmented")),
    ):
        lines[f"{name} {rounded(test[-1])}"] = (test, colour, "-")
        lines[f"{name} {rounded(training[-1])} "] = (training, colour, "--")
    title = "The student's run lies between ours\nwithout and with augmentation"
    return curves([("accuracy, %: test —, training - -", (15, 45), lines)], title, 4.6)


def s9net_accuracy() -> plt.Figure:
    """S9Net's curves over those of the student's network."""
    lines = {}
    for name, colour, run in (("S9Net", BLUE, "s9net"), ("student's", GREY, "student")):
        test, training = columns(run)
        lines[f"{name}, test {rounded(test[-1])}"] = (test, colour, "-")
        lines[f"{name}, training {rounded(training[-1])}"] = (training, colour, "--")
    return curves([("accuracy, %", (15, 100), lines)], f"S9Net ends at {rounded(columns('s9net')[0][-1])} %", 4.2)


def columns(run: str) -> tuple[list[float], list[float]]:
    """Test and training accuracy of a recorded run, epoch by epoch."""
    records = history(run)
    return [record["test_accuracy"] for record in records], [record["train_accuracy"] for record in records]


def confusion(network: str) -> plt.Figure:
    """A recorded confusion matrix in percent: mistakes from 3 % coloured, up to the largest, right answers grey."""
    classes, matrix = CONFUSION["classes"], np.array(CONFUSION[network])
    percent = 100 * matrix / matrix.sum(1, keepdims=True)
    mistakes = np.where(np.eye(len(classes), dtype=bool), 0, percent)
    true, called = np.unravel_index(mistakes.argmax(), mistakes.shape)
    title = f"{classes[true]}: {rounded(percent[true, called], 0)} % are called {classes[called]}"
    figure, axes = new_figure(1, 1, 6.2, title)
    axis = axes[0, 0]
    axis.imshow(np.where(mistakes >= 3, mistakes, 0), cmap="Blues", vmin=0, vmax=mistakes.max())
    for row, column in np.ndindex(percent.shape):
        value = percent[row, column]
        if row == column:
            axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, color="lightgrey"))
        if row == column or value >= 3:
            dark = row != column and value > 0.6 * mistakes.max()
            style = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
            axis.text(column, row, rounded(value, 0), fontsize=SMALLEST, **style)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel("predicted, % of the true class", fontsize=SMALLEST)
    axis.set_ylabel("true", fontsize=SMALLEST)
    return figure


def mistakes(network: str) -> plt.Figure:
    """The six most confident mistakes of the recorded weights. Needs CIFAR-10."""
    data = load_data()
    model = {"student": StudentNet, "s9net": S9Net}[network]()
    predicted, probabilities = predict(load_weights(model, ASSETS / "weights" / f"{network}.pt"), data)
    wrong = (predicted != data.test_labels.numpy()).sum()
    title = f"{wrong:,} of {len(predicted):,} wrong; the six\nmost confident mistakes"
    figure, axes = new_figure(2, 3, 5.8, title)
    for axis, index in zip(axes.flat, surest_mistakes(data, predicted, probabilities), strict=False):
        axis.imshow(data.test_images[index].permute(1, 2, 0))
        said, true = data.classes[predicted[index]], data.classes[data.test_labels[index]]
        axis.set_title(
            f"said {said} ({rounded(100 * probabilities[index].max(), 0)} %)\ntrue: {true}", fontsize=SMALLEST
        )
        axis.set(xticks=[], yticks=[])
    return figure


def cost() -> plt.Figure:
    """Seconds per epoch against the number of images, and peak memory against the batch size, from the benchmarks."""
    figure, axes = new_figure(2, 1, 5.6, "Time is proportional to the images,\nmemory nearly to the batch size")
    panels = (("cost-images", "s/epoch", "training images", 0), ("cost-batch", "MB", "batch size", 1))
    for axis, (bench, unit, label, place) in zip(axes.flat, panels, strict=True):
        rows = [row for row in benchmarks(bench) if row["unit"] == unit]
        points = sorted((int(re.findall(r"\d+", row["case"])[place]), row["value"]) for row in rows)
        axis.plot(*zip(*points, strict=True), "o-", color=BLUE)
        axis.set(xlim=(0, None), ylim=(0, None), xticks=[x for x, _ in points[-3:]])
        axis.set_xlabel(label, fontsize=SMALLEST)
        axis.set_ylabel("s/epoch" if unit == "s/epoch" else "peak memory, MB", fontsize=SMALLEST)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES: dict[str, Callable[[], plt.Figure]] = {
    "ladder": ladder,
    "fault": fault,
    "templates": templates,
    "s9net": s9net,
    "shortcut": shortcut,
    "student-performance": student_performance,
    "student-compared": student_compared,
    "student-confusion": lambda: confusion("student"),
    "s9net-accuracy": s9net_accuracy,
    "s9net-confusion": lambda: confusion("s9net"),
    "cost": cost,
}
OF_TEST_IMAGES = {"student-mistakes": lambda: mistakes("student"), "s9net-mistakes": lambda: mistakes("s9net")}
DIAGRAMS = {"student-layers": StudentNet, "s9net-layers": S9Net}


def draw(given: argparse.Namespace) -> None:
    """Write the pictures that are named, or all, to docs/figures."""
    folder = ROOT / "docs" / "figures"
    folder.mkdir(exist_ok=True)
    for name, make in (FIGURES | OF_TEST_IMAGES).items():
        if name in given.names or not given.names:
            make().savefig(folder / f"{name}.png", dpi=DPI)
    for name, network in DIAGRAMS.items():
        if name in given.names or not given.names:
            architecture.export_onnx(network(), ROOT / "runs" / f"{name}.onnx")
            (folder / f"{name}.svg").write_text(
                architecture.draw_onnx(ROOT / "runs" / f"{name}.onnx"), encoding="utf-8"
            )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.figures", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join([*FIGURES, *OF_TEST_IMAGES, *DIAGRAMS])} (default: all)"
    )
    return exit_code(draw, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
