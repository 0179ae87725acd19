"""Figures: what `utils` offers as plot_... and as the picture of an architecture.

Each plot returns a matplotlib Figure for the caller to show or save. Its first title line says what to see, the second,
`caption`, what it was measured on: network, data set, accuracy.
"""

import ast
import contextlib
import copy
import io
import math
import textwrap
import warnings
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from PIL import Image
from torch import nn

TRAIN_COLOUR, TEST_COLOUR, REFERENCE_COLOUR = (sns.color_palette("colorblind")[index] for index in (1, 0, 7))


def _figure(rows: int, columns: int, width: float, height: float, title: str, caption: str, **options):
    """A grid of axes under two title lines; sizes in inches."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    figure.suptitle(f"{title}\n{caption}", fontsize=15)
    plt.close(figure)  # the caller shows it: a notebook would otherwise show it twice
    return figure, axes


def _show_image(axis, image: torch.Tensor, title: str = "") -> None:
    """Draw a uint8 image (3, H, W) without ticks."""
    axis.imshow(image.permute(1, 2, 0).numpy())
    axis.set_title(title, fontsize=13)
    axis.set(xticks=[], yticks=[])


def plot_samples(data, caption: str, seed: int = 0) -> plt.Figure:
    """Five random training images of each class, two classes a row."""
    generator = torch.Generator().manual_seed(seed)
    rows, size = math.ceil(len(data.classes) / 2), data.train_images.shape[-1]
    title = f"{len(data.classes)} classes, {size}x{size} pixels: hard to tell, even for you"
    figure, axes = _figure(rows, 10, 11, 1.3 * rows + 0.8, title, caption)
    for label, name in enumerate(data.classes):
        row = axes[label // 2, 5 * (label % 2) :][:5]
        members = (data.train_labels == label).nonzero().flatten()
        chosen = members[torch.randperm(len(members), generator=generator)[:5]]
        for axis, index in zip(row, chosen, strict=False):
            _show_image(axis, data.train_images[index])
        row[0].set_title(name, fontsize=14, loc="left")
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def plot_augmentations(versions: torch.Tensor, caption: str) -> plt.Figure:
    """An image beside its augmentations: (1 + count, 3, H, W) uint8, as `utils.augmented_versions` gives them."""
    title = "One photo, many lessons: each epoch sees another version"
    figure, axes = _figure(1, len(versions), 1.25 * len(versions), 2.1, title, caption)
    for axis, version in zip(axes.flat, versions, strict=True):
        _show_image(axis, version, "original" if axis is axes.flat[0] else "")
    return figure


def plot_performance(history: list[dict], caption: str) -> plt.Figure:
    """Loss and accuracy on the training and on the test images, a panel each."""
    title = f"Test accuracy ends at {history[-1]['test_accuracy']:.1f} %"
    figure, axes = _figure(2, 2, 10, 7, title, caption, sharex=True, sharey="row")
    epochs = [record["epoch"] for record in history]
    for row, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        for axis, split, colour in zip(row, ("train", "test"), (TRAIN_COLOUR, TEST_COLOUR), strict=True):
            axis.plot(epochs, [record[f"{split}_{quantity}"] for record in history], ".-", color=colour)
            axis.set_title(f"{'training' if split == 'train' else 'test'} {quantity}", fontsize=12)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("cross-entropy, nats" if quantity == "loss" else "percent right")
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_accuracies(
    history: list[dict], caption: str, reference: list[dict] = (), whose: str = "the student's"
) -> plt.Figure:
    """Training and test accuracy an epoch in one panel, over another run's, if one is given as `reference`."""
    last = history[-1]
    title = f"Training ends at {last['train_accuracy']:.1f} %, test at {last['test_accuracy']:.1f} %"
    if reference:
        title += f"; {whose} at {reference[-1]['test_accuracy']:.1f} %"
    figure, axes = _figure(1, 1, 9, 5.5, title, caption)
    axis = axes[0, 0]
    for split, colour, style in (("test", TEST_COLOUR, "o-"), ("train", TRAIN_COLOUR, "s-")):
        for records, prefix, alpha in ((reference, f"{whose} ", 0.45), (history, "", 1.0)):
            if records:
                x, y = zip(*((record["epoch"], record[f"{split}_accuracy"]) for record in records), strict=True)
                line = "--" if prefix else style
                label = f"{prefix}{'training' if split == 'train' else 'test'} accuracy"
                axis.plot(x, y, line, color=colour, alpha=alpha, markersize=4, label=label)
    axis.set(xlabel="epoch", ylabel="percent right")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=12)
    return figure


def surest_mistakes(data, predicted: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Indices of the test images that are taken for something else, the most confident mistake first."""
    wrong = np.flatnonzero(predicted != data.test_labels.numpy())
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]


def plot_mistakes(
    data, predicted: np.ndarray, probabilities: np.ndarray, caption: str, rows: int = 4, columns: int = 5
) -> plt.Figure:
    """The test images that are most confidently taken for something else, the surest first."""
    labels = data.test_labels.numpy()
    wrong = int((predicted != labels).sum())
    surest = surest_mistakes(data, predicted, probabilities)[: rows * columns]
    title = f"{wrong:,} of {len(labels):,} are wrong; these it is surest of"
    figure, axes = _figure(rows, columns, 2.1 * columns, 2.6 * rows + 0.8, title, caption)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, index in zip(axes.flat, surest, strict=False):
        guess = f"{data.classes[predicted[index]]} {100 * probabilities[index].max():.0f} %"
        _show_image(axis, data.test_images[index], f"{guess}\nis {data.classes[labels[index]]}")
    return figure


def plot_confusion_matrix(matrix: np.ndarray, classes: tuple[str, ...], caption: str) -> plt.Figure:
    """Counts and row percentages; `matrix` (classes, classes) has the true classes in its rows, as scikit-learn's."""
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    off_diagonal = np.where(np.eye(len(classes), dtype=bool), -1, percent)
    true, taken = np.unravel_index(off_diagonal.argmax(), matrix.shape)
    title = f"{percent[true, taken]:.0f} % of class '{classes[true]}' are taken for '{classes[taken]}'"
    cells = np.array(
        [[f"{n}\n{p:.0f}%" for n, p in zip(*pair, strict=True)] for pair in zip(matrix, percent, strict=True)]
    )
    figure, axes = _figure(1, 1, 10, 9, title, caption)
    sns.heatmap(
        percent, annot=cells, fmt="", annot_kws={"size": 11}, cmap="Blues", vmin=0, vmax=100, square=True,
        xticklabels=classes, yticklabels=classes, cbar_kws={"label": "percent of the true class", "shrink": 0.7},
        ax=axes[0, 0],
    )  # fmt: skip
    axes[0, 0].set_xlabel("predicted", fontsize=14)
    axes[0, 0].set_ylabel("true", fontsize=14)
    axes[0, 0].tick_params(labelsize=13, rotation=0)
    axes[0, 0].tick_params(axis="x", rotation=40)
    return figure


def plot_receptive_field(rows: list[tuple[str, int]], image: torch.Tensor, caption: str) -> plt.Figure:
    """Squares, as large as each (layer, receptive field) of `rows`, about the middle of a uint8 image (3, H, W)."""
    size = image.shape[-1]
    largest = max(field for _, field in rows)
    title = f"The output sees {rows[-1][1]} pixels a side of an image that has {size}"
    figure, axes = _figure(1, 1, 7.5, 6.5, title, caption)
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

    Grey is a weight of 0; each picture is scaled by its own largest weight.
    """
    columns = math.ceil(len(classes) / 2)
    title = f"All that the network knows: {len(classes)} blurred pictures"
    figure, axes = _figure(2, columns, 2.1 * columns, 5.2, title, caption)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, name, weights in zip(axes.flat, classes, matrix.T, strict=False):
        picture = 127.5 * (1 + weights / np.abs(weights).max())
        _show_image(axis, torch.from_numpy(picture.round().astype(np.uint8)).view(3, size, size), name)
    return figure


def plot_logits_against(network: np.ndarray, matrix: np.ndarray, caption: str) -> plt.Figure:
    """The logits of a network against those of the matrix that replaces it, both (N, classes)."""
    largest = np.abs(network - matrix).max()
    title = f"One matrix gives the same {network.size:,} logits, within {largest:.0e}"
    figure, axes = _figure(1, 1, 6.5, 6, title, caption)
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
    figure, axes = _figure(1, 1, 8, 4.5, title, caption)
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
    figure, axes = _figure(1, 2, 13, height, title, caption, gridspec_kw={"width_ratios": [1.25, 1]})
    bars, curves = axes[0]
    colours = sns.color_palette("viridis_r", len(rungs) + 1)[1:]
    labels = [textwrap.fill(change, 30) for change in rungs]
    bars.barh(range(len(rungs)), last, color=colours)
    for place, (accuracy, gain) in enumerate(zip(last, [None, *gains], strict=True)):
        text = f"{accuracy:.1f} %" + ("" if gain is None else f"  ({gain:+.1f})")
        bars.text(accuracy + 1, place, text, va="center", fontsize=12)
    bars.set_yticks(range(len(rungs)), labels)
    bars.set(xlim=(0, 1.4 * max(last)), xlabel="percent of test images right, last epoch (gain over the bar above)")
    bars.set_xticks(range(0, 101, 20))
    bars.invert_yaxis()
    for history, colour, label in zip(rungs.values(), colours, labels, strict=True):
        epochs = [record["epoch"] for record in history]
        curves.plot(epochs, [record["test_accuracy"] for record in history], ".-", color=colour, label=label)
    curves.set(xlabel="epoch", ylabel="percent of test images right")
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.grid(alpha=0.3)
    return figure


def plot_search(rows: list[dict], caption: str, chosen: str) -> plt.Figure:
    """What a search tried: accuracy on held-out images against seconds an epoch, dots as large as the parameters.

    Args:
        rows: with `candidate`, `held_out_accuracy`, `seconds_an_epoch` and `parameters`, as in assets/search.csv.
        chosen: the candidate that was taken, which is drawn in another colour.
    """
    taken = next(row for row in rows if row["candidate"] == chosen)
    title = (
        f"{len(rows)} candidates; {chosen} was taken: {taken['held_out_accuracy']:.1f} % of held-out images right at "
        f"{taken['seconds_an_epoch']:.0f} s an epoch"
    )
    figure, axes = _figure(1, 1, 11, 6.5, title, caption)
    axis = axes[0, 0]
    for index, row in enumerate(rows):
        colour = TRAIN_COLOUR if row["candidate"] == chosen else TEST_COLOUR
        place = row["seconds_an_epoch"], row["held_out_accuracy"]
        axis.scatter(*place, s=row["parameters"] / 1000, color=colour, alpha=0.7)
        beside = (7, 4 - 16 * (index % 2))  # above and below in turn, so that neighbours' names keep apart
        axis.annotate(row["candidate"], place, xytext=beside, textcoords="offset points", fontsize=9)
    axis.set(xlabel="seconds an epoch", ylabel="percent of held-out images right")
    axis.margins(x=0.15)
    axis.grid(alpha=0.3)
    return figure


def plot_attention(
    images: torch.Tensor, maps: np.ndarray, titles: list[str], caption: str, title: str = "Where the network looks"
) -> plt.Figure:
    """Images above, and below the same under what a class activation map found to count.

    Args:
        images: (N, 3, H, W) uint8.
        maps: (N, H, W), 0 where nothing depends on a pixel, 1 where most does.
        titles: one an image.
    """
    figure, axes = _figure(2, len(images), 1.9 * len(images), 5.2, title, caption)
    for column, (image, heat, text) in enumerate(zip(images, maps, titles, strict=True)):
        _show_image(axes[0, column], image, text)
        _show_image(axes[1, column], image)
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

OPERATION_COLOURS = {  # by ONNX operator; others are white
    "Conv": "#cfe3f5",
    "Gemm": "#cfe3f5",
    "BatchNormalization": "#eeeeee",
    "Relu": "#ffe0b3",
    "AveragePool": "#d9ead3",
    "GlobalAveragePool": "#d9ead3",
    "ReduceMean": "#d9ead3",
    "LogSoftmax": "#f4cccc",
}


def export_onnx(model: nn.Module, path: str | Path, input_size: tuple[int, int, int] = (3, 32, 32)) -> None:
    """Write `model`, in eval mode, as ONNX with its own layers, for batches of any size of images (C, H, W).

    Raises:
        RuntimeError: onnxruntime's logits differ from torch's by more than 1e-4 of the largest.
    """
    import onnxruntime
    from onnxscript import optimizer

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).cpu().eval()
    images = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        program = torch.onnx.export(
            model, (images,), input_names=["images"], output_names=["logits"], dynamic_shapes=shapes, dynamo=True,
            optimize=False, verbose=False,
        )  # fmt: skip
        # Not the exporter's own optimisation, which would melt BatchNorm into the convolution before it.
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
        program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = model(images)
    difference = (torch.from_numpy(logits) - expected).abs().max() / expected.abs().max()
    if not difference <= 1e-4:
        raise RuntimeError(f"{path} is not the same network: its logits differ by {difference:.1e}.")


def draw_onnx(path: str | Path) -> str:
    """The network in an ONNX file as SVG text: a box an operation, a frame a block, the map sizes between them."""
    import onnx
    import pygraphviz

    graph = onnx.load(str(path)).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: _onnx_shape(value) for value in values}
    drawing = pygraphviz.AGraph(directed=True, ranksep="0.22", nodesep="0.3", compound=True)
    drawing.node_attr.update(
        shape="box", style="filled,rounded", fillcolor="white", fontname="Helvetica", fontsize="13"
    )
    drawing.node_attr.update(height="0.3", margin="0.15,0.06")
    drawing.edge_attr.update(fontname="Helvetica", fontsize="11", fontcolor="#555555", arrowsize="0.6")
    blocks = {node.name: block for node in graph.node if (block := _onnx_block(node))}
    frames = {block: f"cluster_{index}" for index, block in enumerate(dict.fromkeys(blocks.values()))}
    producers = {}  # of each value, the box that it comes out of

    def connect(value: str, box: str) -> None:
        # An arrow between frames ends at their rims, so that it does not cross their titles.
        tail, head = (frames.get(blocks.get(name), "") for name in (producers[value], box))
        ends = {"ltail": tail, "lhead": head} if tail != head else {}
        drawing.add_edge(producers[value], box, label=f"  {shapes.get(value, '')}", **ends)

    for value in graph.input:
        drawing.add_node(value.name)
        producers[value.name] = value.name
    for node in graph.node:
        # What is computed from shapes and constants alone is bookkeeping, and not drawn.
        if node.op_type == "Shape" or not any(value in producers for value in node.input):
            continue
        colour = OPERATION_COLOURS.get(node.op_type, "white")
        drawing.add_node(node.name, label=_onnx_label(node, weights), fillcolor=colour)
        for value in node.input:
            if value in producers:
                connect(value, node.name)
        producers |= dict.fromkeys(node.output, node.name)
    for value in graph.output:
        drawing.add_node(f"{value.name} ", label=value.name)
        connect(value.name, f"{value.name} ")
    for (name, kind), frame in frames.items():
        drawing.add_subgraph(
            [node for node, block in blocks.items() if block == (name, kind)], name=frame, label=f"{kind}  {name}",
            style="rounded", color="#999999", fontname="Helvetica", fontsize="11", fontcolor="#555555",
        )  # fmt: skip
    return drawing.draw(format="svg", prog="dot").decode()


def _onnx_shape(value) -> str:
    """The sizes of a value without its batch, as text."""
    return "×".join(str(axis.dim_value) for axis in value.type.tensor_type.shape.dim[1:])


def _onnx_block(node) -> tuple[str, str] | None:
    """Path and class of the block of models.py that a node belongs to."""
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    names, kinds = (
        ast.literal_eval(metadata.get(f"pkg.torch.onnx.{key}", "[]")) for key in ("name_scopes", "class_hierarchy")
    )
    for name, kind in list(zip(names, kinds, strict=True))[1:]:  # without the network itself
        module, _, block = kind.rpartition(".")
        if name and module and module.partition(".")[0] not in ("torch", "aten"):
            return name, block
    return None


def _onnx_label(node, weights: dict[str, tuple]) -> str:
    """What a box says: the operation, for a convolution its kernel, channels, stride, dilation, and its parameters."""
    attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    own = [weights[name] for name in node.input if name in weights]
    count = sum(math.prod(weights[name]) for name in node.input if name.endswith((".weight", ".bias")))
    text = node.op_type
    if node.op_type == "Conv":
        out_channels, per_group, *kernel = own[0]
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        kind = "depthwise" if groups > 1 else "pointwise" if kernel == [1, 1] else "conv"
        size = "×".join(map(str, kernel))
        text = f"{kind} {size}, {per_group * groups} → {out_channels}"
        for name, value in (("stride", attributes.get("strides")), ("dilation", attributes.get("dilations"))):
            text += f", {name} {value[0]}" if value and value[0] > 1 else ""
    elif node.op_type == "BatchNormalization":
        text = "BatchNorm"
    return text + (f"   ({count:,})" if count else "")
