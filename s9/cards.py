"""What a finished run leaves for use: its weights, and a card that says what they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from torch import nn

from s9.data import Data
from s9.files import write_whole
from s9.guards import count_parameters
from s9.recipes import Recipe
from s9.weights import save_weights

MODEL, CARD = "model.pt", "model.json"


def write_card(
    folder: Path, model: nn.Module, data: Data, recipe: Recipe, history: list[dict], environment: dict
) -> None:
    """Write `folder`/model.pt and `folder`/model.json for a network that `train` trained; both are small."""
    card = {
        "network": type(model).__name__,
        "options": getattr(model, "options", None),  # the arguments that make the network again
        "parameters": count_parameters(model),
        "classes": list(model.preprocessing.classes),
        "image_size": list(data.train_images.shape[1:]),
        "mean": list(model.preprocessing.mean),
        "std": list(model.preprocessing.std),
        "test_accuracy": history[-1]["test_accuracy"],
        "train_accuracy": history[-1]["train_accuracy"],
        "epochs": len(history),
        "training_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        **environment,
        "recipe": asdict(recipe),
    }
    save_weights(model, folder / MODEL)
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / CARD, lambda path: path.write_text(text, encoding="utf-8"))


def read_card(folder: str | Path) -> dict:
    """The card of a finished run.

    Raises:
        FileNotFoundError: there is none; the message says why.
        ValueError: it is damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / CARD).is_file():
        unfinished = (folder / "checkpoint.pt").exists()
        why = "this run is not finished: the call that began it resumes it" if unfinished else "name a run's folder"
        raise FileNotFoundError(f"{folder} holds no {CARD}; {why}.")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        card["network"], card["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CARD} is damaged ({error}): train this run again.") from error
    return card
