"""What README, docs and notebook say of baselines, usual checks and mistakes: `python -m scripts.lesson_records`.

Writes assets/lesson.json (two simple classifiers on the images that the networks are trained with, the checks that
the student's fault passes, how close its matrix comes, how many images of each class were JPEGs) and
assets/confusion.json (the confusion matrices of the recorded weights). About five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from models import S9Net, StudentNet
from netreview import affine_equivalent
from s9.data import Data, subset, without_jpeg
from s9.files import write_whole
from s9.loading import load_data
from s9.machine import default_device, environment, resolve_precision
from s9.recipes import STUDENT_RECIPE
from s9.results import ASSETS
from s9.weights import load_weights
from scripts.endings import exit_code
from utils import predict, train


def mean_colour_accuracy(data: Data) -> float:
    """Test accuracy, in percent, of logistic regression on three numbers per image: its mean red, green and blue."""
    colours = [images.float().mean((2, 3)).numpy() for images in (data.train_images, data.test_images)]
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    classifier.fit(colours[0], data.train_labels)
    return round(100 * classifier.score(colours[1], data.test_labels), 2)


def linear_accuracy(data: Data) -> float:
    """Test accuracy, in percent, of one linear layer on the pixels, trained with the student's settings."""
    torch.manual_seed(STUDENT_RECIPE.seed)
    size = data.train_images[0].numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, len(data.classes)))
    return train(model, data, STUDENT_RECIPE, verbose=False)[-1]["test_accuracy"]


def usual_checks(data: Data, count: int = 128, epochs: int = 300) -> dict[str, float]:
    """The student's network: its loss before training, and its accuracy on `count` images after `epochs` on them."""
    torch.manual_seed(STUDENT_RECIPE.seed)
    few = subset(data, count)
    few = few._replace(test_images=few.train_images, test_labels=few.train_labels)
    recipe = replace(
        STUDENT_RECIPE, epochs=epochs, batch_size=count, learning_rate=0.1, momentum=0.9, step_epochs=epochs
    )
    model = StudentNet(dropout=0.0)
    mean = few.train_images.float().mean((0, 2, 3), keepdim=True)
    images = (few.train_images - mean) / few.train_images.float().std((0, 2, 3), keepdim=True)
    with torch.no_grad():
        loss = F.nll_loss(model(images), few.train_labels).item()
    history = train(model, few, recipe, verbose=False)
    reached = next((record["epoch"] for record in history if record["test_accuracy"] == 100), None)
    return {
        "first_loss": round(loss, 3),
        "chance_loss": round(math.log(len(data.classes)), 3),
        "overfitted_images": count,
        "overfitted_accuracy": history[-1]["test_accuracy"],
        "steps_to_overfit": reached,
    }


def jpeg_counts(data: Data) -> dict[str, dict[str, int]]:
    """For training and test images: how many of each class were JPEGs."""
    return {
        split: dict(zip(data.classes, labels[jpeg].bincount(minlength=len(data.classes)).tolist(), strict=True))
        for split, labels, jpeg in (
            ("train", data.train_labels, data.train_jpeg),
            ("test", data.test_labels, data.test_jpeg),
        )
        if jpeg is not None
    }


def affine_error(data: Data) -> float:
    """The largest difference between the trained student network's log-probabilities and its matrix's, float64."""
    model = load_weights(StudentNet(), ASSETS / "weights" / "student.pt")
    images = model.preprocessing.normalise(data.test_images[:1000]).double()
    matrix, bias = affine_equivalent(model, (3, 32, 32))
    with torch.no_grad():
        return (model.double()(images) - (images.flatten(1) @ matrix + bias).log_softmax(1)).abs().max().item()


def confusion_matrices(data: Data) -> dict[str, list]:
    """Of the networks whose weights are in assets/weights: counts of the test images, true classes in the rows."""
    found: dict[str, list] = {"classes": list(data.classes)}
    for name, network in (("student", StudentNet()), ("s9net", S9Net())):
        predicted, _ = predict(load_weights(network, ASSETS / "weights" / f"{name}.pt"), data)
        found[name] = confusion_matrix(data.test_labels, predicted).tolist()
    return found


def record(given: argparse.Namespace) -> None:
    """Measure all of it on CIFAR-10 and write both files."""
    data = load_data()
    if data.name != "CIFAR-10":
        raise ValueError(f"This is measured on CIFAR-10, and this is {data.name}.")
    lossless = without_jpeg(data) if given.without_jpeg else data
    device = default_device()
    found = {
        "mean_colour_accuracy": mean_colour_accuracy(lossless),
        "linear_accuracy": linear_accuracy(lossless),
        **usual_checks(lossless),
        "affine_error": affine_error(data),
        "jpeg_images": jpeg_counts(data),
        **environment(lossless, device, resolve_precision("auto", device)),
        "command": "python -m scripts.lesson_records" + " --without-jpeg" * given.without_jpeg,
    }
    print(json.dumps(found, indent=2))
    write_whole(ASSETS / "lesson.json", lambda path: path.write_text(json.dumps(found, indent=2) + "\n"))
    write_whole(ASSETS / "confusion.json", lambda path: path.write_text(json.dumps(confusion_matrices(data)) + "\n"))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.lesson_records", description=__doc__)
    parser.add_argument("--without-jpeg", action="store_true", help="leave out the images that were JPEGs")
    return exit_code(record, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
