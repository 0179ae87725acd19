"""Executes S9.ipynb and shows in the terminal how far it is: `python -m scripts.notebook`.

The result is runs/S9.ipynb, and the published notebook stays as it is. `--publish` executes the full profile, writes
the figures of the README too, and replaces S9.ipynb if that was a run on CIFAR-10.
"""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

from s9.files import write_whole
from s9.results import ROOT
from scripts.endings import exit_code

PUBLISHED = ROOT / "S9.ipynb"


class NotebookError(ValueError):
    """The notebook did not run through, or is none to publish."""


class ShownClient(NotebookClient):
    """Executes a notebook under a bar that says which section it is in, and what the cell printed last."""

    def __init__(self, notebook: nbformat.NotebookNode, folder: Path):
        super().__init__(
            notebook, timeout=None, record_timing=False, store_widget_state=False,
            extra_arguments=["--log-level=ERROR"], resources={"metadata": {"path": str(folder)}},
        )  # fmt: skip
        self.on_notebook_start, self.on_cell_start, self.on_cell_executed = self._listen, self._start, self._executed
        self.section, self.begun, self.shown, self.stopped = "", 0, time.monotonic(), False
        every = 0.1 if sys.stderr.isatty() else 10  # seconds
        count = sum(cell.cell_type == "code" for cell in notebook.cells)
        self.bar = tqdm(total=count, unit="cell", mininterval=every, dynamic_ncols=True)

    def _listen(self, **_) -> None:
        """Let Ctrl-C end the kernel at once: its training is saved up to the last complete epoch."""

        def stop() -> None:
            self.stopped = True
            self.ending = asyncio.ensure_future(self.km.shutdown_kernel(now=True))

        with contextlib.suppress(NotImplementedError):  # Windows
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stop)

    def _start(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.begun = cell_index
        for heading in re.findall(r"^#+ (.+)", cell.source if cell.cell_type == "markdown" else "", re.MULTILINE):
            self.section = heading
        self.bar.set_description_str(self.section, refresh=False)

    def _executed(self, **_) -> None:
        self.bar.set_postfix_str("", refresh=False)
        self.bar.update()

    def process_message(self, msg, cell, cell_index):
        """What comes from the kernel; what it prints is shown beside the bar."""
        if msg["msg_type"] == "stream":
            lines = [line for line in re.split(r"[\r\n]+", msg["content"]["text"]) if line.strip()]
            self.bar.set_postfix_str(lines[-1].strip()[:60] if lines else "", refresh=False)
            if time.monotonic() - self.shown >= self.bar.mininterval:
                self.shown = time.monotonic()
                self.bar.refresh()
        return super().process_message(msg, cell, cell_index)


def as_seen(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs as they stand when a cell has ended: what is printed in a row is one, and a bar is what it was last."""
    seen = []
    for output in outputs:
        if output.output_type == "stream" and seen and seen[-1].get("name") == output.name:
            seen[-1].text += output.text
        else:
            seen.append(output)
    for output in seen:
        if output.output_type == "stream":
            lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n")]
            output.text = "\n".join(lines)
    return seen


def execute(source: Path, target: Path) -> nbformat.NotebookNode:
    """Execute `source` in the kit's folder and write it, with what it got to, to `target`.

    Raises:
        NotebookError: a cell failed; the message says which, and what it raised.
        KeyboardInterrupt: by Ctrl-C.
    """
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = ShownClient(notebook, ROOT)
    try:
        client.execute(stdout=subprocess.DEVNULL)  # nothing of use, and bars are not as wide as a terminal
    except CellExecutionError as error:
        raise NotebookError(_failed(client, target, f"{error.ename}: {error.evalue}")) from error
    except (DeadKernelError, asyncio.CancelledError) as error:
        if client.stopped or isinstance(error, asyncio.CancelledError):  # while the kernel starts
            raise KeyboardInterrupt(_failed(client, target, "it was stopped")) from None
        raise NotebookError(_failed(client, target, "its process ended; was it short of memory?")) from error
    finally:
        client.bar.close()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = as_seen(cell.outputs)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, lambda path: nbformat.write(notebook, path))
    return notebook


def _failed(client: ShownClient, target: Path, why: str) -> str:
    return f"Cell {client.begun + 1}, in {client.section!r}, failed ({why}). {target} has all up to there."


def check_published(notebook: nbformat.NotebookNode) -> None:
    """Refuse to publish another run than a full one on CIFAR-10.

    Raises:
        NotebookError: it is another one.
    """
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    for wanted in ("profile: full", "data: CIFAR-10"):
        if wanted not in printed:
            raise NotebookError(f"Only a full run on CIFAR-10 is published, and this printed no {wanted!r}.")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.notebook", description=__doc__)
    parser.add_argument("--publish", action="store_true", help="a full run, which then replaces S9.ipynb")
    publish = parser.parse_args().publish

    def work() -> None:
        target = ROOT / "runs" / PUBLISHED.name
        if publish:
            os.environ |= {"S9_PROFILE": "full", "S9_PUBLISH": "1"}
        notebook = execute(PUBLISHED, target)
        print(f"{target} is the notebook with its outputs.")
        if publish:
            check_published(notebook)
            write_whole(PUBLISHED, lambda path: nbformat.write(notebook, path))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
