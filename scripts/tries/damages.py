"""Files that changed since they were written, runs that are killed, and runs that somebody calls for something else."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import utils
from s9.files import save_tensors
from s9.runs import read_checkpoint
from s9.weights import load_weights, save_weights
from scripts import survival
from scripts.tries.networks import QUICK, network, noise
from scripts.tries.programs import image_folders
from scripts.tries.trying import Try, area, must

RECIPE = replace(QUICK, epochs=2)


def trained(root: Path, model: nn.Module | None = None, data=None, recipe: utils.Recipe = RECIPE) -> list[dict]:
    """The history of a run in `root`/run."""
    return utils.train(model or network(), data or noise(), recipe, run="run", root=root, device="cpu", verbose=False)


class Block(nn.Module):
    """Two layers with something between them that no list of layers shows."""

    def __init__(self, between: Callable):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3072, 8), nn.Linear(8, 2)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.first(x.flatten(1))))


@area("the same run, something changed")
def changed_runs(folder: Path) -> Iterator[Try]:
    """A kept run is not returned for something else."""
    data = noise()

    def both(model: Callable[[], nn.Module] = network, then=None, other_data=None, **changes) -> Callable[[], object]:
        def do():
            root = folder / str(random.random())
            trained(root, model(), data)
            return trained(root, (then or model)(), other_data or data, replace(RECIPE, **changes))

        return do

    yield Try("nothing", both())
    yield Try("the weights that it began with", both(then=lambda: network().requires_grad_()))
    for what, do in (
        ("a layer", both(then=lambda: network(nn.ReLU()))),
        ("the ReLU is mended", both(lambda: Block(lambda x: x), lambda: Block(torch.relu))),
        ("a constant in forward", both(lambda: Block(lambda x: x), lambda: Block(lambda x: 2 * x))),
        ("training images", both(other_data=data._replace(train_images=255 - data.train_images))),
        ("one pixel", both(other_data=data._replace(train_images=_one_more(data.train_images)))),
        ("training labels", both(other_data=data._replace(train_labels=1 - data.train_labels))),
        ("test images", both(other_data=data._replace(test_images=255 - data.test_images))),
        ("test labels", both(other_data=data._replace(test_labels=1 - data.test_labels))),
        ("names of classes", both(other_data=data._replace(classes=("a", "b")))),
        ("the name of the data", both(other_data=data._replace(name="others"))),
        ("fewer epochs", both(epochs=1)),
    ):
        yield Try(what, do, "holds a run with another .* give this run another name, or delete that folder")
    for field, value in (
        ("batch_size", 10),
        ("learning_rate", 0.5),
        ("seed", 1),
        ("crop", 2),
        ("label_smoothing", 0.1),
    ):
        yield Try(f"{field}", both(**{field: value}), f"{field}: .* there, {value} asked for")


def _one_more(images: torch.Tensor) -> torch.Tensor:
    images = images.clone()
    images[3, 1, 7, 7] ^= 1
    return images


@area("crafted checkpoints")
def crafted(folder: Path) -> Iterator[Try]:
    """What is no checkpoint of this run is set aside or refused, and nothing in it is executed."""

    def prepared(name: str) -> Path:
        trained(folder / name)
        (folder / name / "run" / "checkpoint.previous.pt").unlink()
        return folder / name / "run" / "checkpoint.pt"

    bomb = survival.Bomb(folder / "exploded")
    for what, content in (
        ("an empty file", b""), ("a page", b"<html>not found</html>"), ("a pickle that runs code", pickle.dumps(bomb)),
        ("a zip file", b"PK\x03\x04"), ("a list", [1, 2]), ("nothing", None), ("an empty dict", {}),
        ("another kind of history", {"history": "long"}), ("another kind of identity", {"identity": 3}),
        ("an identity without a recipe", {"identity": {"network": "x"}}), ("another precision", {"precision": "x"}),
        ("records that are none", {"history": [1, 2]}), ("epochs out of order", {"history": [{"epoch": 7}]}),
    ):  # fmt: skip

        def do(what=what, content=content) -> None:
            path = prepared(what)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                whole = read_checkpoint(path)
                save_tensors(whole | content if isinstance(content, dict) and content else content, path)
            must(len(trained(path.parent.parent)) == 2 and (path.parent / "damaged-1.pt").exists())
            must(not (folder / "exploded").exists())

        yield Try(f"{what} is set aside", do)
    for part in ("model", "optimizer", "random"):

        def emptied(part=part) -> None:
            path = prepared(part)
            save_tensors(read_checkpoint(path) | {part: {}}, path)
            trained(path.parent.parent)

        yield Try(f"{part} without content", emptied, "parts do not fit this network and recipe")


def _flip(path: Path, whole: bytes, moment: random.Random) -> None:
    place = moment.randrange(len(whole))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << moment.randrange(8)]) + whole[place + 1 :])


@area("bit flips in the cache")
def flips_in_the_cache(folder: Path) -> Iterator[Try]:
    """Each is noticed: the images are decoded again."""
    pictures, moments = image_folders(folder / "pictures", 2), random.Random(0)
    expected = utils.load_data(pictures, root=folder)
    (cache,) = (folder / "cache").glob("*.pt")
    whole = cache.read_bytes()
    for number in range(60):

        def do() -> None:
            _flip(cache, whole, moments)
            with contextlib.redirect_stdout(io.StringIO()) as said:
                data = utils.load_data(pictures, root=folder)
            must("cache" in said.getvalue() and cache.read_bytes() == whole)
            must(all(torch.equal(ours, theirs) for ours, theirs in zip(data[:4], expected[:4], strict=True)))

        yield Try(f"bit {number}", do)


@area("bit flips in weights")
def flips_in_weights(folder: Path) -> Iterator[Try]:
    """Each is noticed, and the file named."""
    model, path, moments = network(), folder / "weights.pt", random.Random(1)
    utils.train(model, noise(), QUICK, device="cpu", verbose=False)
    save_weights(model, path)
    whole = path.read_bytes()
    for number in range(60):

        def do() -> None:
            _flip(path, whole, moments)
            load_weights(network(), path)

        yield Try(f"bit {number}", do, "weights.pt holds no valid weights")


@area("bit flips in checkpoints")
def flips_in_checkpoints(folder: Path) -> Iterator[Try]:
    """The damaged one is set aside, and the one before it used."""
    moments, expected = random.Random(2), trained(folder)
    path = folder / "run" / "checkpoint.pt"
    whole, before = path.read_bytes(), path.with_name("checkpoint.previous.pt").read_bytes()
    for number in range(40):

        def do() -> None:
            path.with_name("checkpoint.previous.pt").write_bytes(before)
            _flip(path, whole, moments)
            same = [record | {"seconds": 0} for record in trained(folder)]
            must(same == [record | {"seconds": 0} for record in expected])

        yield Try(f"bit {number}", do)


@area("kills", costly=True)
def kills(folder: Path) -> Iterator[Try]:
    """Runs killed at random moments end bit for bit as one that nothing happened to."""
    assert survival.run(folder / "whole") == 0
    row = survival.kills(20, folder, survival.content(folder / "whole"))
    for number in range(row["times"]):
        yield Try(f"kill {number}", lambda number=number: must(number >= row["lost"]))


@area("damaged runs", costly=True)
def damaged(folder: Path) -> Iterator[Try]:
    """Kills in the worst moments of saving, and damaged checkpoints."""
    assert survival.run(folder / "whole") == 0
    expected = survival.content(folder / "whole")
    for row in (*survival.sabotages(1, folder, expected), *survival.damages(1, folder, expected)):
        yield Try(row["tried"], lambda lost=row["lost"]: must(not lost))
