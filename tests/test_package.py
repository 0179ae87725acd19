"""netreview as a package of its own: what it imports, what its wheel holds, and its command line."""

import ast
import json
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from netreview.__main__ import main
from netreview.targets import Unusable, made

ROOT = Path(__file__).parent.parent
NETWORK = """
import torch
from torch import nn
from utils import WIDTH


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Linear(WIDTH, 4)

    def forward(self, x):
        x = self.conv(x)
        self.act(x)
        return self.head(x.mean((2, 3)))


class Sound(Dropped):
    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)))


def data():
    return torch.randn(16, 3, 8, 8), torch.arange(16) % 4
"""


@pytest.fixture
def project(tmp_path):
    """A student's folder, whose modules have the names that modules of this kit have too."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("models", "dataset", "files", "train", "brief", "randomness"):
        (folder / f"{name}.py").write_text("raise ImportError('not meant')\n")
    (folder / "utils.py").write_text("WIDTH = 4\n")
    (folder / "network.py").write_text(NETWORK)
    return folder


def test_imports_torch_and_numpy_only():
    for path in (ROOT / "netreview").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [node.module]
            for name in (name.partition(".")[0] for name in names):
                assert name in sys.stdlib_module_names | {"torch", "numpy", "netreview"}, f"{path.name} imports {name}"


def test_installs_by_itself_and_reviews_in_a_folder_with_the_same_names(tmp_path, project):
    pytest.importorskip("setuptools")
    run = {"check": True, "capture_output": True, "text": True, "timeout": 300}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels = tmp_path / "wheels"
    sources = tmp_path / "sources"  # a copy, so that no build folder is left behind
    (sources / "netreview").mkdir(parents=True)
    for path in [ROOT / "pyproject.toml", *(ROOT / "netreview").glob("*.py")]:
        (sources / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, sources], **run)
    (wheel,) = wheels.glob("netreview-*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"netreview"}

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], **run)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--target", packages, wheel], **run)
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = tmp_path / "venv" / "bin" / "python"
    for name, code in (("Dropped", 1), ("Sound", 0)):
        command = [python, "-m", "netreview", f"network:{name}", "--data", "network:data"]
        result = subprocess.run(command, **run | {"check": False}, cwd=project)
        assert result.returncode == code, result.stdout + result.stderr
        assert ("discarded-output  at act" in result.stdout) == (name == "Dropped")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("network:Nothing", "network has no Nothing; it defines"),
        ("nowhere:Net", "No module named 'nowhere'"),
        ("network", "names no callable"),
        ("network.py", "names no callable"),
        ("missing.py:Net", "There is no file missing.py"),
        ("broken.py:Net", "broken.py is no valid Python: line 1"),
        ("network:WIDTH", "returns no network, but a int"),
        ("network:data", "returns no network, but a tuple"),
        ("models:Net", "not meant"),
    ],
)
def test_what_cannot_be_reviewed_is_said_in_a_sentence(target, sentence, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    for name in ("network", "utils", "models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (project / "broken.py").write_text("def Net(:\n")
    with pytest.raises(SystemExit) as stopped:
        main([target])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    for name in ("network", "utils", "models"):
        sys.modules.pop(name, None)


def test_a_file_is_reviewed_on_noise_where_no_data_are_named(project, tmp_path):
    command = [sys.executable, "-m", "netreview", str(project / "network.py") + ":Sound", "--size", "3", "8", "8"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "64 images of noise" in result.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells(*sources):
    made = [{"cell_type": "code", "source": source, "outputs": [], "metadata": {}} for source in sources]
    made.insert(1, {"cell_type": "markdown", "source": "# Net", "metadata": {}})
    return json.dumps({"cells": made, "nbformat": 4, "nbformat_minor": 5, "metadata": {}})


HEAD = """
class Net(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, 10)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))
"""
IMPORTS = "import torch\nfrom torch import nn\n"


def test_of_a_notebook_only_imports_definitions_and_assignments_are_run(folder):
    training = "for epoch in range(10**9):\n    open('trained', 'w')"
    shell = "!pip install torchsummary\n%matplotlib inline\n" + IMPORTS + "WIDTH = 4"
    broken = "print 'Python 2'"
    text = cells(shell, broken, HEAD, "model = Net().to('cuda')\n" + training, "raise SystemExit")
    (folder / "S9.ipynb").write_text(text)
    assert made("S9.ipynb:Net").head.in_features == 4
    assert made("S9.ipynb:Net", "width=6").head.in_features == 6
    assert not (folder / "trained").exists()


def test_a_file_is_run_as_far_as_its_network_takes(folder):
    (folder / "net.py").write_text(IMPORTS + "WIDTH = 4\n" + HEAD + "raise RuntimeError('trains at import')\n")
    (folder / "computed.py").write_text(IMPORTS + "WIDTH = sum([2, 3])\n" + HEAD)
    assert made("net.py:Net").head.in_features == 4
    assert made("computed.py:Net").head.in_features == 5


NAMES = ["utils", "models", "dataset", "train", "data", "netreview", "torch", "numpy", "traces", "findings", "copy"]


@pytest.mark.parametrize("name", NAMES)
def test_files_of_any_name_are_reviewed(name, folder):
    """Also where a module of that name was imported before."""
    (folder / "other.py").write_text("WIDTH = 4\n")
    (folder / f"{name}.py").write_text(IMPORTS + "from other import WIDTH\n" + HEAD)
    before = dict(sys.modules)
    assert made(f"{name}.py:Net").head.in_features == 4
    assert all(sys.modules[key] is module for key, module in before.items())
    assert "other" not in sys.modules


def test_neighbours_packages_and_folders_above_are_found(folder):
    deep = folder / "src" / "models"
    deep.mkdir(parents=True)
    (folder / "config.py").write_text("WIDTH = 4\n")
    (deep / "__init__.py").write_text("")
    (deep / "parts.py").write_text("from config import WIDTH\n")
    (deep / "net.py").write_text(IMPORTS + "from .parts import WIDTH\n" + HEAD)
    assert made("src/models/net.py:Net").head.in_features == 4
    loose = folder / "loose"
    loose.mkdir()
    (loose / "parts.py").write_text("WIDTH = 5\n")
    (loose / "net.py").write_text(IMPORTS + "from .parts import WIDTH\n" + HEAD)  # no package, and says it is one
    assert made("loose/net.py:Net").head.in_features == 5


def test_a_package_that_is_not_installed_is_stood_in_for(folder):
    lacking = "from not_there.pytorch import ToTensor\nimport not_there as nt\nbest = nt.Compose\n"
    (folder / "net.py").write_text(IMPORTS + lacking + "class Data(nt.Dataset): pass\nWIDTH = 4\n" + HEAD)
    assert made("net.py:Net").head.in_features == 4
    assert "not_there" not in sys.modules
    (folder / "base.py").write_text("import not_there\nclass Net(not_there.Module): pass\n")
    assert not isinstance(made("base.py:Net"), torch.nn.Module)


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        ("class Net:\n    def __init__(self, width, depth=2): pass", "", 'give them, as --args "width=..."'),
        ("class Net:\n    def __init__(self): pass", "1, 2", "takes other arguments"),
        ("def Net(*a): pass", "open('x')", "give values as Python writes them"),
        ("def Net(): return 1 / 0", "", "cannot be made: ZeroDivisionError"),
        ("def Net(): raise SystemExit(3)", "", "cannot be made: SystemExit"),
        ("def Net(): assert False, 'no CUDA'", "", "no CUDA"),
        ("class Other: pass", "", "has no Net; it defines Other"),
        ("import gone_away\ndef Net(): return gone_away.thing.value + 1", "", "gone_away cannot be imported"),
    ],
)
def test_what_cannot_be_made_is_a_sentence(text, arguments, sentence, folder, capsys):
    (folder / "net.py").write_text("print('noise')\n" + text + "\n")
    with pytest.raises(Unusable, match=re.escape(sentence)) as raised:
        made("net.py:Net", arguments)
    assert len(str(raised.value).splitlines()) == 1
    assert capsys.readouterr().out == ""


def test_page_holds_all_that_is_found(folder, capsys):
    (folder / "net.py").write_text(NETWORK.replace("from utils import WIDTH", "WIDTH = 4"))
    assert main(["net.py:Dropped", "--html", "report.html", "--size", "3", "8", "8"]) == 1
    assert "discarded-output  at act" in capsys.readouterr().out
    text = (folder / "report.html").read_text()
    assert "discarded-output" in text
    assert "net.py:Dropped" in text
    assert not any(word in text for word in ("src=", "href=", "@import"))  # it needs nothing else
