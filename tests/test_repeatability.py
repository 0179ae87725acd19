"""The same recipe and seed give the same history from the notebook, under nbval and from train.py, in fp32 on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat

from s9.results import read_history
from scripts import train

ROOT = Path(__file__).parent.parent
WRITE = "import json, pathlib\npathlib.Path(os.environ['HISTORY']).write_text(json.dumps(history))"


def shortened_notebook(path: Path) -> None:
    """S9.ipynb up to its training, without its figures, and a cell that writes the history to a file."""
    notebook = nbformat.read(ROOT / "S9.ipynb", as_version=4)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and not any(word in cell.source for word in ("plot_", "draw_onnx")):
            cell.outputs, cell.metadata = [], {}
            cells.append(cell)
        if "= trained(model" in cell.source:
            break
    else:
        raise AssertionError("S9.ipynb trains no model")
    notebook.cells = [*cells, nbformat.v4.new_code_cell(WRITE, execution_count=99)]
    nbformat.write(notebook, path)


def run(command: list, history: Path) -> list[dict]:
    environment = os.environ | {"S9_PROFILE": "smoke", "HISTORY": str(history), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-m", *map(str, command)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(history.read_text())


def test_notebook_nbval_and_script_give_the_same_history(tmp_path):
    shortened_notebook(tmp_path / "short.ipynb")
    convert = ["nbconvert", "--to", "notebook", "--execute", "--output", tmp_path / "out", tmp_path / "short.ipynb"]
    nbval = ["pytest", "-q", "-x", "--nbval-lax", "--nbval-current-env", tmp_path / "short.ipynb"]
    histories = {
        "notebook": run(convert, tmp_path / "notebook.json"),
        "nbval": run(nbval, tmp_path / "nbval.json"),
    }
    settings = ["epochs=2", "batch_size=32", "precision=fp32"]
    assert train.main(["student", "--data", "digits", "--root", str(tmp_path), "--set", *settings]) == 0
    histories["script"] = read_history(tmp_path / "student" / "history.jsonl")
    for history in histories.values():
        for record in history:
            del record["seconds"]
    assert len(histories["script"]) == 2
    assert histories["notebook"] == histories["script"]
    assert histories["nbval"] == histories["script"]
