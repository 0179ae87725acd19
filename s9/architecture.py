"""A network from outside: torchsummary's table, its export to ONNX, and the diagram drawn from that."""

import ast
import contextlib
import copy
import io
import math
import warnings
from pathlib import Path

import torch
import torchsummary
from torch import nn

from netreview.randomness import kept_random_states

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


def layer_summary(model: nn.Module, input_size: tuple[int, int, int]) -> str:
    """torchsummary's table of the layers and its totals, for images of `input_size` (C, H, W).

    torchsummary itself runs the model in train mode, which changes BatchNorm's statistics and the random states; here
    a copy is run, and the random states are restored.
    """
    text = io.StringIO()
    with kept_random_states(), contextlib.redirect_stdout(text):
        torchsummary.summary(copy.deepcopy(model).cpu(), input_size, device="cpu")
    table, _, _ = text.getvalue().partition("Input size (MB)")  # drop the memory estimate
    return table.strip("\n")


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
        # Not the exporter's own optimisation, which would fold BatchNorm into the convolution before it.
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
    """The network in an ONNX file as SVG text: a box per operation, a frame per block, feature-map sizes between
    them."""
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
        # What is computed from shapes and constants alone is not drawn.
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
