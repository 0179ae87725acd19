"""Installs missing or outdated packages that the notebook needs, such as in Colab."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
RUNS_NOTEBOOKS = {"jupyter", "nbval"}  # which a running notebook has no need of


def lacking(requirements: str) -> list[str]:
    """The lines of a requirements file whose package is missing here or older than asked for."""
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    return [str(needed) for needed in wanted if needed.name not in RUNS_NOTEBOOKS and not _is_here(needed)]


def _is_here(needed: Requirement) -> bool:
    try:
        return needed.specifier.contains(version(needed.name), prereleases=True)
    except PackageNotFoundError:
        return False


def install_what_is_lacking() -> None:
    """Install those of requirements.txt that are lacking; where there are none, do nothing.

    Raises:
        subprocess.CalledProcessError: pip could not; what it said stands above.
    """
    if missing := lacking(REQUIREMENTS.read_text()):
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)
