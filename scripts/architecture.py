"""Draws docs/architecture.svg from the imports of the kit's modules: `python -m scripts.architecture`."""

import ast
from pathlib import Path

import pygraphviz

from s9.results import ROOT

ROOMS = {"top level": "*.py", "s9": "s9/*.py", "netreview": "netreview/*.py", "scripts": "scripts/**/*.py"}
COLOURS = {"top level": "#fde9c9", "s9": "#d7e8f7", "netreview": "#dcefdc", "scripts": "#eeeeee"}


def module_name(path: Path) -> str:
    """The name by which a file below ROOT is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, tuple[str, Path]]:
    """From the name of each module of the kit to its room and its file."""
    return {module_name(path): (room, path) for room, pattern in ROOMS.items() for path in sorted(ROOT.glob(pattern))}


def imports(path: Path, known: set[str]) -> set[str]:
    """The modules of `known` that a file imports, wherever in it."""
    found = set()
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    packages = {name for name in known if any(other.startswith(f"{name}.") for other in found & known)}
    return (found & known) - packages - {module_name(path)}


def arrows() -> dict[str, set[str]]:
    """From each module to those that it imports."""
    found = modules()
    return {name: imports(path, set(found)) for name, (_, path) in found.items()}


def between_rooms() -> set[tuple[str, str]]:
    """The rooms of which the first imports the second."""
    found = modules()
    pairs = {(found[name][0], found[other][0]) for name, others in arrows().items() for other in others}
    return {(here, there) for here, there in pairs if here != there}


def draw(path: Path) -> None:
    """Draw each room as a box of its modules; an arrow that follows from others is left out."""
    found = modules()
    graph = pygraphviz.AGraph(directed=True, rankdir="TB", fontname="Helvetica", ranksep="0.5", nodesep="0.15")
    graph.node_attr.update(shape="box", style="filled,rounded", fontname="Helvetica", fontsize="14", fillcolor="white")
    graph.edge_attr.update(color="#777777", arrowsize="0.6")
    drawn = {name for name in found if found[name][1].name != "__init__.py"}
    for name in sorted(drawn):
        graph.add_node(name, label=name.rpartition(".")[2])
    for room, colour in COLOURS.items():
        members = [name for name in drawn if found[name][0] == room]
        graph.add_subgraph(
            members, name=f"cluster_{room}", label=room, style="filled", fillcolor=colour, color=colour, fontsize="18"
        )  # fmt: skip
    for name, others in arrows().items():
        graph.add_edges_from((name, other) for other in others if {name, other} <= drawn)
    graph.tred().draw(str(path), prog="dot", format="svg")


if __name__ == "__main__":
    draw(ROOT / "docs" / "architecture.svg")
