"""The committed notebook, without executing it, which nbval does; and the program that executes notebooks."""

import ast
import copy
import re
from pathlib import Path

import nbformat
import pytest

from scripts import notebook

ROOT = Path(__file__).parent.parent
NOTEBOOK = nbformat.read(ROOT / "S9.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]


def test_it_is_valid_and_was_executed_from_top_to_bottom():
    nbformat.validate(NOTEBOOK)
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert not [output for cell in CODE for output in cell.outputs if output.output_type == "error"]


def test_outputs_are_of_the_full_run_on_cifar10():
    text = "".join(output.get("text", "") for cell in CODE for output in cell.outputs)
    assert "profile: full" in text
    assert "data: CIFAR-10" in text


def test_every_cell_is_short_and_follows_prose():
    for before, cell in zip(NOTEBOOK.cells, NOTEBOOK.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, cell.source
            assert max(map(len, cell.source.splitlines())) <= 105, cell.source
            assert cell.source.strip()
            if before.cell_type == "code":  # two in a row: the second draws what the first computed
                assert "plot_" in cell.source or "history_log" in cell.source, cell.source


def test_cells_whose_output_must_not_change_are_tagged_and_have_one():
    tagged = [cell for cell in CODE if "nbval-check-output" in cell.metadata.get("tags", [])]
    for expected in ("CIFAR10_CLASSES", "count_parameters", "layer_summary", "receptive_field("):
        assert any(expected in cell.source for cell in tagged), expected
    for cell in tagged:
        assert [output.output_type for output in cell.outputs] == ["stream"]


MODULES = [path for pattern in ("*.py", "s9/*.py", "netreview/*.py", "scripts/**/*.py") for path in ROOT.glob(pattern)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node.name != "main":
            assert ast.get_docstring(node), node.name
            length = node.end_lineno - node.lineno
            assert isinstance(node, ast.ClassDef) or length <= 85, f"{node.name} is {length} lines long"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


# ------------------------------------------------------------------------------------------------------- executing it


def small_notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("## 3. What?"), *cells]), path)
    return path


def test_a_notebook_is_executed_beside_itself_up_to_what_fails(tmp_path, capsys):
    bar = "import sys\nfrom tqdm import tqdm\nprint('before')\nfor _ in tqdm(range(3), file=sys.stdout): pass"
    source = small_notebook(tmp_path / "in.ipynb", bar, "1 / 0", "print('after')")
    before, target = source.read_bytes(), tmp_path / "runs" / "out.ipynb"
    with pytest.raises(notebook.NotebookError, match=r"^Cell 3, in '3\. What\?', failed \(ZeroDivisionError"):
        notebook.execute(source, target)
    assert "3. What?" in capsys.readouterr().err
    assert source.read_bytes() == before
    _, finished, failed, never = nbformat.read(target, as_version=4).cells
    (output,) = finished.outputs
    assert re.fullmatch(r"before\n100%\|█+\| 3/3 .*\n", output.text)  # the bar as it ended, and nothing of before
    assert failed.outputs[-1].ename == "ZeroDivisionError"
    assert never.execution_count is None


def test_only_a_full_run_on_cifar10_is_published():
    notebook.check_published(NOTEBOOK)
    other = copy.deepcopy(NOTEBOOK)
    for cell in other.cells:
        for output in cell.get("outputs", []):
            output["text"] = output.get("text", "").replace("data: CIFAR-10", "data: digits")
    with pytest.raises(notebook.NotebookError, match="this printed no 'data: CIFAR-10'"):
        notebook.check_published(other)
