"""netreview as a package of its own: what it imports, what its wheel holds, and its command line."""

import ast
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from netreview.__main__ import main

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
        ("network:Nothing", "AttributeError"),
        ("nowhere:Net", "No module named 'nowhere'"),
        ("network", "names no callable"),
        ("network.py", "names no callable"),
        ("missing.py:Net", "There is no file missing.py"),
        ("broken.py:Net", "SyntaxError"),
        ("network:WIDTH", "TypeError"),
        ("network:data", "gives no network, but a tuple"),
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
