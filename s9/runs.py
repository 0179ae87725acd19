"""The home of a training run on disk: what it is, how far it got, and how it goes on."""

from __future__ import annotations

import contextlib
import io
import json
import platform
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from s9.data import Data
from s9.files import locked, write_whole
from s9.randomness import random_states, set_random_states
from s9.recipes import Recipe


class RunError(ValueError):
    """A kept run cannot be gone on with; the message says why, and what to do."""


class Run:
    """One run in a folder: recipe.json, environment.json, history.jsonl, and the last two checkpoints."""

    def __init__(self, folder: Path, model: nn.Module, data: Data, recipe: Recipe, device: torch.device):
        self.folder = folder
        self.checkpoint, self.previous = folder / "checkpoint.pt", folder / "checkpoint.previous.pt"
        self.identity = {  # what must be the same for a run to go on
            "network": str(model),
            "data": f"{data.name}, {data.copy}, {len(data.train_labels)} + {len(data.test_labels)} images",
            "pixels": f"checksum {zlib.crc32(data.train_images.numpy()):08x}",
            "recipe": asdict(recipe),
        }
        self.environment = environment(data, device)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            RunError: another process is training it.
        """
        try:
            with locked(self.folder):
                yield
        except TimeoutError as error:
            raise RunError(f"{error} Wait until that has ended, or give this run another name.") from None

    def load(self) -> dict | None:
        """The last whole checkpoint of this run, or None before its first epoch.

        A damaged one is set aside, with a line that says so, and the one before it used.

        Raises:
            RunError: the run in this folder is of another recipe, network or data set.
        """
        checkpoint = self._last_whole()
        if checkpoint is None:
            for name, content in (("recipe", self.identity["recipe"]), ("environment", self.environment)):
                text = json.dumps(content, indent=2) + "\n"
                write_whole(self.folder / f"{name}.json", lambda path, text=text: path.write_text(text))
            return None
        kept = checkpoint["identity"]
        kept["recipe"] = asdict(Recipe()) | kept["recipe"]  # fields that came later have their defaults
        for name, value in self.identity.items():
            if kept.get(name, value) != value:
                raise RunError(
                    f"{self.folder} holds a run with another {name} ({_difference(kept[name], value)}): "
                    "give this run another name, or delete that folder."
                )
        self._write_history(checkpoint["history"])  # which the process may have had no time to
        return checkpoint

    def save(self, state: dict, history: list[dict]) -> None:
        """Write the checkpoint beside the last one, which is kept, and then the history.

        Raises:
            RunError: it could not be written; what was there before is whole.
        """
        checkpoint = {name: part.state_dict() for name, part in state.items()}
        checkpoint |= {"identity": self.identity, "history": history, "random": random_states()}
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            write_whole(self.checkpoint, lambda path: path.write_bytes(content.getbuffer()), self.previous)
            self._write_history(history)
        except OSError as error:
            raise RunError(
                f"{self.folder}: epoch {len(history)} could not be saved ({error.strerror}). What was saved before is "
                "whole; free some space and start again, and the run goes on from there."
            ) from error

    def _write_history(self, history: list[dict]) -> None:
        text = "".join(json.dumps(record) + "\n" for record in history)
        write_whole(self.folder / "history.jsonl", lambda path: path.write_text(text))

    def _last_whole(self) -> dict | None:
        for path in (self.checkpoint, self.previous):
            if path.exists():
                try:
                    return read_checkpoint(path)
                except DamagedError as error:
                    number = len(list(self.folder.glob("damaged-*.pt"))) + 1
                    aside = path.replace(self.folder / f"damaged-{number}.pt")
                    print(f"{path} is damaged ({error}) and was set aside as {aside.name}; going on from before it.")
        return None


class DamagedError(ValueError):
    """A file is no whole checkpoint."""


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint, of tensors and plain Python only: nothing in the file is executed.

    Raises:
        DamagedError: the file is cut, changed, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if changed := archive.testzip():  # torch.load does not look at the checksums
                raise DamagedError(f"the checksum of {changed} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:
        raise DamagedError(str(error).partition("\n")[0].strip()) from error
    if not isinstance(checkpoint, dict) or not {"model", "identity", "history"} <= checkpoint.keys():
        raise DamagedError("it holds something else")
    return checkpoint


def restore(checkpoint: dict, state: dict) -> list[dict]:
    """Bring the parts of `state`, and all random states, to `checkpoint`, and return its history."""
    for name, part in state.items():
        part.load_state_dict(checkpoint[name])
    if "random" in checkpoint:
        set_random_states(checkpoint["random"])
    return list(checkpoint["history"])


def _difference(kept, asked) -> str:
    """What differs between two recipes (by field) or two texts, in a few words."""
    if isinstance(kept, dict):
        fields = [field for field in kept | asked if kept.get(field) != asked.get(field)]
        return ", ".join(f"{field}: {kept.get(field)!r} there, {asked.get(field)!r} asked for" for field in fields)
    for there, here in zip(kept.splitlines(), asked.splitlines(), strict=False):
        if there != here:
            return f"{there.strip()!r} there, {here.strip()!r} asked for"
    return "one is longer than the other"


def environment(data: Data, device: torch.device) -> dict:
    """What a measured number depends on besides recipe and network."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor_name()}, {torch.get_num_threads()} CPU cores"
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "data": f"{data.name}, {data.copy}",
    }


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
