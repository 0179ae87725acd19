"""Saving and resuming training runs."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from s9.cards import write_card
from s9.data import Data
from s9.files import DamagedError, locked, read_tensors, save_tensors, write_whole
from s9.guards import detached_copy
from s9.randomness import kept_random_states, seed_all
from s9.recipes import Recipe


class RunError(ValueError):
    """A saved run cannot be resumed or saved; the message says why, and what to do."""


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C, or the notebook's stop button, ended a training; `history` has the epochs that were finished."""

    def __init__(self, message: str, history: list[dict]):
        super().__init__(message, history)
        self.history = history

    def __str__(self) -> str:
        return self.args[0]


def check_run_name(name: str) -> None:
    """Refuse a name of a run that would not be one folder inside its root.

    Raises:
        RunError: the name is empty, too long, or leads elsewhere.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 100 or name in (".", "..") or set(name) & set("/\\\0"):
        raise RunError(f"run={name!r} is no name for a run: give up to 100 characters without slashes.")


class Run:
    """One run in a folder: recipe.json, environment.json, history.jsonl, and the last two checkpoints."""

    def __init__(self, root: Path, name: str, model: nn.Module, data: Data, recipe: Recipe):
        check_run_name(name)
        self.folder = root / name
        self.model, self.data, self.recipe = model, data, recipe
        self.checkpoint, self.previous = self.folder / "checkpoint.pt", self.folder / "checkpoint.previous.pt"
        self.identity = {  # must match to resume
            "network": str(model),
            "outputs": sample_outputs(model, data.train_images.shape[1:]),
            "data": f"{data.name}, {data.copy}, {len(data.train_labels)} + {len(data.test_labels)} images",
            "content": _checksums(data),
            "recipe": asdict(recipe),
        }

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process.

        Raises:
            RunError: another process is training it, or the folder cannot be written to.
        """
        with contextlib.ExitStack() as held:
            with self._usable():
                try:
                    held.enter_context(locked(self.folder))
                except TimeoutError as error:
                    raise RunError(f"{error} Wait until that has ended, or give this run another name.") from None
            yield

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"{self.folder} cannot be used for a run ({error.strerror or error}).") from error

    def load(self) -> dict | None:
        """The latest valid checkpoint of this run, or None before there is one.

        A corrupt one is renamed with a warning, and the previous one is used.

        Raises:
            RunError: the run in this folder has another recipe, network or data set, or cannot be read.
        """
        with self._usable():
            checkpoint = self._last_whole()
        if checkpoint is None:
            return None
        kept = checkpoint["identity"]
        kept["recipe"] = asdict(Recipe()) | kept["recipe"]  # fields added later have their defaults
        longer = self._is_longer_than(kept["recipe"])
        if longer:
            kept["recipe"]["epochs"] = self.identity["recipe"]["epochs"]
        for name, value in self.identity.items():
            if not _agree(kept[name], value):
                raise RunError(
                    f"{self.folder} holds a run with another {name} ({_difference(kept[name], value)}): "
                    "give this run another name, or delete that folder."
                )
        with self._usable():  # in case the process was killed before it could
            self._write("history.jsonl", _as_lines(checkpoint["history"]))
            if longer:
                self._write_recipe()
        return checkpoint

    def _is_longer_than(self, kept: dict) -> bool:
        """Whether a recipe asks for more epochs than were kept, under a schedule that no number of epochs changes."""
        return self.identity["recipe"]["epochs"] > kept["epochs"] and kept["schedule"] == "step"

    def restore(self, restore: Callable[[dict], object], checkpoint: dict) -> None:
        """Call `restore(checkpoint)`.

        Raises:
            RunError: its parts do not fit those that are to be restored.
        """
        try:
            restore(checkpoint)
        except Exception as error:  # torch and Python raise any kind, by what is wrong
            raise RunError(
                f"{self.folder} holds a checkpoint whose parts do not fit this network and recipe: give this run "
                "another name, or delete that folder."
            ) from error

    def save(self, state: dict, history: list[dict], environment: dict) -> None:
        """Save a checkpoint, keeping the previous one, and then the history; after the last epoch, weights and a card.

        Raises:
            RunError: it could not be written; earlier files are intact.
        """
        try:
            if not history:
                self._write_recipe()
                self._write("environment.json", json.dumps(environment, indent=2) + "\n")
            save_tensors(state | {"identity": self.identity, "history": history}, self.checkpoint, self.previous)
            self._write("history.jsonl", _as_lines(history))
            if len(history) == self.recipe.epochs:
                write_card(self.folder, self.model, self.data, self.recipe, history, environment)
        except OSError as error:
            raise RunError(
                f"{self.folder}: epoch {len(history)} could not be saved ({error.strerror}). Earlier checkpoints are "
                "intact; free some space and run again to resume."
            ) from error

    def _write_recipe(self) -> None:
        self._write("recipe.json", json.dumps(self.identity["recipe"], indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        write_whole(self.folder / name, lambda path: path.write_text(text, encoding="utf-8"))

    def _last_whole(self) -> dict | None:
        for path in (self.checkpoint, self.previous):
            if path.exists():
                try:
                    return read_checkpoint(path)
                except DamagedError as error:
                    number = len(list(self.folder.glob("damaged-*.pt"))) + 1
                    aside = path.replace(self.folder / f"damaged-{number}.pt")
                    print(f"{error}; it was set aside as {aside.name}; the previous one is used.")
        return None


def read_checkpoint(path: Path) -> dict:
    """A checkpoint, of tensors and plain Python only: nothing in the file is executed.

    Raises:
        DamagedError: the file is truncated, corrupt, or not a checkpoint.
    """
    checkpoint = read_tensors(path)
    parts = {"identity": dict, "history": list, "model": dict, "random": dict, "precision": str}
    identity = {"network": str, "outputs": list, "data": str, "content": str, "recipe": dict}
    if not _has(checkpoint, parts) or checkpoint["precision"] not in ("float32", "bfloat16", "float16"):
        raise DamagedError(f"{path} is not a checkpoint")
    if not _has(checkpoint["identity"], identity):
        raise DamagedError(f"{path} is not a checkpoint of this version")
    epochs, outputs = checkpoint["history"], checkpoint["identity"]["outputs"]
    counted = all(_has(record, {"epoch": int}) and record["epoch"] == n for n, record in enumerate(epochs, start=1))
    if not counted or not all(isinstance(output, float) for output in outputs):
        raise DamagedError(f"{path} is not a checkpoint")
    return checkpoint


def _has(content, kinds: dict[str, type]) -> bool:
    """Whether `content` is a dict that has all of these, of these kinds."""
    return isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in kinds.items())


@torch.no_grad()
def sample_outputs(model: nn.Module, image_shape: tuple[int, ...]) -> list[float]:
    """What a network computes, whatever its weights: some outputs on fixed images with fixed weights.

    Two networks of the same layers that use them in another way differ here. Taken in train and in eval mode, on the
    CPU, of a copy.
    """
    model = detached_copy(model).to("cpu", memory_format=torch.channels_last)  # which dropout's masks depend on
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():  # of both signs, or no ReLU would do anything; He et al.'s size keeps them finite
        fan_in = value[:1].numel() if value.ndim > 1 else 1
        value.copy_(torch.randn(value.shape, generator=generator) * (2 / max(1, fan_in)) ** 0.5)
    images = torch.randn(4, *image_shape, generator=generator).to(memory_format=torch.channels_last)

    def outputs(training: bool) -> torch.Tensor:
        seed_all(0)
        return model.train(training)(images).double().flatten()

    def settle() -> None:
        """Fix what training moves, such as running statistics; constants stay, since they belong to the network."""
        for name in moved:
            buffers[name].copy_(0.5 + torch.rand(buffers[name].shape, generator=generator))  # variances are among them

    with kept_random_states():
        buffers = {name: value for name, value in model.named_buffers() if value.is_floating_point()}
        before = {name: value.clone() for name, value in buffers.items()}
        outputs(training=True)
        moved = [name for name, value in buffers.items() if not torch.equal(value, before[name])]
        settle()
        trained = outputs(training=True)
        settle()
        return torch.cat([trained, outputs(training=False)]).tolist()


def _checksums(data: Data) -> str:
    """One of all images, labels and class names."""
    checksum = zlib.crc32("\n".join(data.classes).encode())
    for tensor in data[:4]:
        checksum = zlib.crc32(tensor.contiguous().numpy(), checksum)
    return f"checksum {checksum:08x}"


def _agree(kept, asked) -> bool:
    """Whether two parts of an identity are the same; outputs up to what another processor rounds otherwise."""
    if not isinstance(kept, list):
        return kept == asked
    a, b = torch.tensor(kept, dtype=torch.double), torch.tensor(asked, dtype=torch.double)
    return a.shape == b.shape and bool(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()), equal_nan=True)
    )


def _difference(kept, asked) -> str:
    """What differs between two recipes (by field), outputs or texts, in a few words."""
    if isinstance(kept, list):
        return "the same layers compute something else"
    if isinstance(kept, dict):
        fields = [field for field in kept | asked if kept.get(field) != asked.get(field)]
        return ", ".join(f"{field}: {kept.get(field)!r} there, {asked.get(field)!r} asked for" for field in fields)
    for there, here in zip(kept.splitlines(), asked.splitlines(), strict=False):
        if there != here:
            return f"{there.strip()!r} there, {here.strip()!r} asked for"
    return "one is longer than the other"


def _as_lines(history: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in history)
