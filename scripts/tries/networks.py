"""Networks, data sets and recipes that do not fit, runs, exercises: what is given to the kit in Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import utils
from s9.data import Data
from scripts.tries.trying import Try, area

QUICK = utils.Recipe(epochs=1, batch_size=20, precision="fp32")


def noise(classes: int = 2, train: int = 40, test: int = 20) -> Data:
    """Random images, so small a set that an epoch takes no time."""
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8) for count in (train, test)
    ]
    labels = [torch.arange(count) % classes for count in (train, test)]
    names = tuple(f"class {number}" for number in range(classes))
    return Data(images[0], labels[0], images[1], labels[1], names, "noise", "made for tries")


def network(*layers: nn.Module, outputs: int = 2) -> nn.Module:
    """A linear classifier with `layers` before its end."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), *layers, nn.Linear(8, outputs))


class Giving(nn.Module):
    """A network that does something to its logits, such as detach them."""

    def __init__(self, change):
        super().__init__()
        self.network, self.change = network(), change

    def forward(self, x):
        return self.change(self.network(x), self, x)


def raising(*_):
    """Instead of logits, an error."""
    raise KeyError("nowhere")


def _in_no_grad(logits, model, x):
    with torch.no_grad():
        return model.network(x)


def _in_one_size(logits, model, x):
    assert len(x) == 20, "batches of 20 only"
    return logits


@area("own networks")
def own_networks(folder: Path) -> Iterator[Try]:
    """`train` with what people hand over as a network."""
    data = noise()
    nan, frozen, lazy = network(), network(), nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    nn.init.constant_(nan[1].weight, float("nan"))
    frozen.requires_grad_(False)
    half_frozen = network()
    half_frozen[1].requires_grad_(False)
    for what, model, says in (
        ("a class instead of an instance", nn.Flatten, r"Flatten is a class; give an instance, Flatten\(\)"),
        ("None", None, "give an nn.Module, not NoneType"),
        ("a function", lambda x: x, "give an nn.Module, not function"),
        ("the path of a network", "models.py", "give an nn.Module, not str"),
        ("no parameters", nn.Flatten(), "no parameters to train"),
        ("all parameters frozen", frozen, "no parameters to train"),
        ("NaN among the weights", nan, "1.weight holds NaN"),
        ("a lazy layer", lazy, "has no shape yet; call the network once"),
        ("outputs for other classes", network(outputs=7), "7 outputs, and the data 2 classes"),
        ("a wrong number of inputs", nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), "does not take 2 images of 3×32×32"),
        ("grey images expected", nn.Conv2d(1, 2, 3), "does not take 2 images"),
        ("maps instead of logits", nn.Conv2d(3, 2, 3), "instead of logits"),
        ("double precision", network().double(), "does not take 2 images"),
        ("half precision", network().half(), "does not take 2 images"),
        ("on the meta device", network().to("meta"), "^Network: "),
        ("no return", Giving(lambda *_: None), "gives NoneType instead of logits"),
        ("an auxiliary output", Giving(lambda y, *_: (y, y)), "gives tuple instead of logits"),
        ("outputs in a dict", Giving(lambda y, *_: {"logits": y}), "gives dict instead of logits"),
        ("outputs in a list", Giving(lambda y, *_: [y, y]), "gives list instead of logits"),
        ("detach", Giving(lambda y, *_: y.detach()), "no gradient reaches its output"),
        ("no_grad", Giving(_in_no_grad), "no gradient reaches its output"),
        ("argmax", Giving(lambda y, *_: y.argmax(1)), "instead of logits"),
        ("numpy", Giving(lambda y, *_: torch.from_numpy(y.detach().numpy())), "no gradient reaches its output"),
        ("item", Giving(lambda y, *_: y.sum().item()), "gives float instead of logits"),
        ("one row of logits", Giving(lambda y, *_: y.sum(0)), "instead of logits"),
        ("whole numbers", Giving(lambda y, *_: y.long()), "no gradient reaches its output|whole numbers"),
        ("NaN out of nothing", Giving(lambda y, *_: y / 0 * 0), "became nan in epoch 1, batch 0"),
        ("an error of its own", Giving(raising), "does not take 2 images .*nowhere"),
        ("one size of batch only", Giving(_in_one_size), "does not take 2 images .*batches of 20 only"),
        ("a recurrent layer", nn.LSTM(32, 2), "^Network: "),
        ("log-probabilities", network(nn.ReLU(), nn.Linear(8, 8), nn.LogSoftmax(1)), None),
        ("half of it frozen", half_frozen, None),
        ("inside DataParallel", nn.DataParallel(network()), None),
        ("compiled", torch.compile(network(), backend="eager"), None),
        ("that keeps its maps", Giving(lambda y, model, x: setattr(model, "kept", y) or y), None),
        ("that prints", Giving(lambda y, *_: print(y.shape) or y), None),
    ):
        yield Try(what, lambda model=model: utils.train(model, data, QUICK, device="cpu", verbose=False), says)
    one_left = replace(QUICK, batch_size=13)  # 40 = 3 * 13 + 1
    normalised = network(nn.BatchNorm1d(8))
    yield Try(
        "a last batch of one image, with BatchNorm", lambda: utils.train(normalised, data, one_left, verbose=False),
        "batch_size=13 leaves a batch of a single image.*give 14",
    )  # fmt: skip
    yield Try("a last batch of one image, without", lambda: utils.train(network(), data, one_left, verbose=False))
    for device, says in (("cuda", "device"), ("tpu", "device"), ("cuda:99", "device"), ("mps", "device")):
        if device != "cuda" or not torch.cuda.is_available():
            yield Try(
                f"device={device!r}",
                lambda device=device: utils.train(network(), data, QUICK, device=device, verbose=False), says,
            )  # fmt: skip
    yield Try(
        "a mode of torch.compile that there is not",
        lambda: utils.train(network(), data, QUICK, compile_mode="fast", verbose=False), "Unrecognized mode=fast",
    )  # fmt: skip
    yield Try(
        "half precision on a CPU",
        lambda: utils.train(network(), data, replace(QUICK, precision="fp16"), device="cpu", verbose=False),
        "needs an NVIDIA GPU",
    )


@area("own data sets in Python")
def own_data(folder: Path) -> Iterator[Try]:
    """`train` with what people hand over as data."""
    data = noise()
    images, labels = data.train_images, data.train_labels
    from_numpy = torch.from_numpy(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)
    constant = images.clone()
    constant[:, 1] = 7
    large = torch.zeros(40, 3, 48, 40, dtype=torch.uint8)
    for what, given, says in (
        ("a path", "data/cifar10", "give what load_data returns, not str"),
        ("None", None, "give what load_data returns, not NoneType"),
        ("a tuple", (images, labels), "give what load_data returns, not tuple"),
        ("an array", images.numpy(), "give what load_data returns, not ndarray"),
        ("floating-point images", data._replace(train_images=images / 255), r"train_images .* of uint8"),
        ("arrays for tensors", data._replace(train_images=images.numpy()), "train_images"),
        ("labels as a list", data._replace(train_labels=labels.tolist()), "train_labels"),
        ("grey images", data._replace(train_images=images[:, :1]), r"give \(N, 3, H, W\)"),
        ("channels last", data._replace(train_images=images.permute(0, 2, 3, 1)), r"give \(N, 3, H, W\)"),
        ("test images of another size", data._replace(test_images=data.test_images[:, :, :16, :16]), "of one size"),
        ("labels as floats", data._replace(train_labels=labels.float()), "one int64 an image"),
        ("labels in one-hot form", data._replace(train_labels=torch.eye(2)[labels]), "one int64 an image"),
        ("labels from 1", data._replace(train_labels=labels + 1), "number the classes from 0"),
        ("negative labels", data._replace(test_labels=data.test_labels - 1), "number the classes from 0"),
        ("fewer labels than images", data._replace(train_labels=labels[:-1]), "one int64 an image"),
        ("no images", data._replace(train_images=images[:0], train_labels=labels[:0]), "give at least two"),
        ("one image", data._replace(train_images=images[:1], train_labels=labels[:1]), "give at least two"),
        ("one class", noise(1), "1 class"),
        ("a constant channel", data._replace(train_images=constant), None),
        ("black images", data._replace(train_images=torch.zeros_like(images)), None),
        ("permuted from numpy", data._replace(train_images=from_numpy), None),
        ("200 classes", noise(200, 400, 400), None),
        ("images of 48x40", data._replace(train_images=large[:40], test_images=large[:20]), None),
    ):  # fmt: skip
        classes = len(given.classes) if isinstance(given, Data) else 2
        model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, classes))
        home = {"run": what.replace(" ", "-"), "root": folder, "device": "cpu", "verbose": False}
        yield Try(what, lambda m=model, d=given, h=home: utils.train(m, d, QUICK, **h), says)


@area("recipes")
def recipes(folder: Path) -> Iterator[Try]:
    """Settings that cannot work, each named with its remedy."""
    for field, value in (
        ("epochs", 0), ("epochs", -1), ("epochs", 2.5), ("epochs", "5"), ("epochs", None), ("epochs", True),
        ("epochs", 10**12), ("batch_size", 0), ("batch_size", 8.0), ("learning_rate", 0), ("learning_rate", -0.1),
        ("learning_rate", float("nan")), ("learning_rate", float("inf")), ("learning_rate", "0.1"), ("momentum", 1),
        ("momentum", -0.1), ("weight_decay", -1), ("nesterov", True), ("optimizer", "adam"), ("schedule", "cosine"),
        ("precision", "bf8"), ("warmup", 1.0), ("crop", -1), ("crop", 2**40), ("cutout", "all"), ("flip", 1),
        ("label_smoothing", 1.0), ("seed", -1), ("seed", 99_999_999_999), ("step_epochs", 0), ("step_factor", 0.0),
    ):  # fmt: skip
        yield Try(f"{field}={value!r}", lambda f=field, v=value: utils.Recipe(**{f: v}), f"^Recipe: {field}=")
    train = lambda recipe: utils.train(network(), noise(), recipe, device="cpu", verbose=False)  # noqa: E731
    yield Try("a dict", lambda: train(asdict(QUICK)), "give a Recipe, not dict")
    yield Try("None", lambda: train(None), "give a Recipe, not NoneType")
    yield Try("the class", lambda: train(utils.Recipe), "give a Recipe, not type")
    yield Try(
        "more images a batch than there are", lambda: train(utils.Recipe(epochs=1)), "batch_size=512 is more than"
    )
    yield Try("a shift beyond the image", lambda: train(replace(QUICK, crop=32)), "crop=32 is too far")
    yield Try("one-cycle in one step", lambda: train(replace(QUICK, batch_size=40, schedule="one-cycle")), "no room")
    yield Try("a rate that diverges", lambda: train(replace(QUICK, learning_rate=1e30)), "became (nan|inf)|Try a lower")
    rates = np.logspace(-3, -1, 3)
    yield Try("numbers of numpy", lambda: train(replace(QUICK, learning_rate=rates[0], batch_size=np.int64(20))))
