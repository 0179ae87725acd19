"""The home of a training run on disk: what it is, how far it got, and how it goes on."""

import contextlib
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from dataset import Data
from files import write_whole
from recipe import Recipe


class Run:
    """The home of one training run: recipe.json, environment.json, history.jsonl and checkpoint.pt in a folder."""

    def __init__(self, folder: Path, model: nn.Module, data: Data, recipe: Recipe, device: torch.device):
        self.folder = folder
        self.identity = {  # what must be the same for a run to go on
            "network": str(model),
            "data": f"{data.name}, {data.copy}, {len(data.train_labels)} + {len(data.test_labels)} images",
            "recipe": asdict(recipe),
        }
        self.environment = environment(data, device)

    def resume(self, state: dict) -> list[dict]:
        """Bring `state` to the last whole epoch of this run, if there is one, and return its history.

        Raises:
            ValueError: the run in this folder is of another recipe, network or data set.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self._load()
        if checkpoint is None:
            for name, content in (("recipe", self.identity["recipe"]), ("environment", self.environment)):
                text = json.dumps(content, indent=2) + "\n"
                write_whole(self.folder / f"{name}.json", lambda path, text=text: path.write_text(text))
            return []
        kept = checkpoint["identity"]
        kept["recipe"] = asdict(Recipe(**kept["recipe"]))  # fields that came later have their defaults
        for name, value in self.identity.items():
            if kept[name] != value:
                raise ValueError(
                    f"{self.folder} holds a run with another {name} ({_difference(kept[name], value)}): "
                    "give this run another name, or delete that folder."
                )
        for name, part in state.items():
            part.load_state_dict(checkpoint[name])
        return checkpoint["history"]

    def save(self, state: dict, history: list[dict]) -> None:
        """Write the checkpoint beside the last one, which is kept until the new one is whole, then the history."""
        checkpoint = {name: part.state_dict() for name, part in state.items()}
        checkpoint |= {"identity": self.identity, "history": history}
        write_whole(self.folder / "checkpoint.pt", lambda path: torch.save(checkpoint, path))
        text = "".join(json.dumps(record) + "\n" for record in history)
        write_whole(self.folder / "history.jsonl", lambda path: path.write_text(text))

    def _load(self) -> dict | None:
        path = self.folder / "checkpoint.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def _difference(kept, asked) -> str:
    """What differs between two recipes (by field) or two texts, in a few words."""
    if isinstance(kept, dict):
        fields = [field for field in asked if kept.get(field) != asked[field]]
        return ", ".join(f"{field}: {kept.get(field)!r} there, {asked[field]!r} asked for" for field in fields)
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
