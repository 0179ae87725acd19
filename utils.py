"""What a student reads and may change: training, evaluation, the grid of mistakes, the confusion matrix, the curves.

In the order in which the data flows. Batches, recipes and layers are in s9/.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm

from s9 import lesson_figures
from s9.architecture import layer_summary
from s9.augmented_batches import Batches, channel_statistics
from s9.data import Data, DataError, check_data
from s9.guards import check_network, count_parameters, first_layer_not_finite, memory_errors_told
from s9.lesson_figures import TEST_COLOUR, TRAIN_COLOUR, names_to_draw, new_figure, show_image, surest_mistakes
from s9.loading import load_data, read_picture
from s9.machine import autocast, chosen_device, environment, kept_for_reuse, resolve_precision
from s9.optimizers import make_optimizer
from s9.processes import Team
from s9.randomness import epoch_seed, kept_random_states, random_states, seed_all, set_random_states
from s9.recipes import Recipe, check_recipe_fits
from s9.results import test_line
from s9.runs import Run, TrainingStopped
from s9.schedules import make_scheduler
from s9.weights import Preprocessing

__all__ = [
    "DataError", "Recipe", "Trainer", "TrainingStopped", "classify", "layer_summary", "load_data", "plot_accuracies",
    "plot_confusion_matrix", "plot_mistakes", "plot_performance", "predict", "train",
]  # fmt: skip

EVALUATION_BATCH = 1000  # images at a time; only memory and speed depend on it


# ------------------------------------------------------------------------------------------------------------ training


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    run: str | None = None,
    root: str | Path = "runs",
    device: torch.device | str | None = None,
    verbose: bool = True,
    compile_mode: str | None = None,
    on_step: Callable[[int, int], object] | None = None,
) -> list[dict]:
    """Train `model`, test it after each epoch, and return the history.

    Args:
        model: from normalised float images (N, 3, 32, 32) to logits or log-probabilities (N, classes). It is left on
            `device`, in eval mode, with the weights of the last epoch, and with `preprocessing`.
        run: save the run under `root`/`run`: its recipe, environment, history, and one checkpoint per epoch. A finished
            run is loaded instead of repeated, or continued to more epochs; an unfinished one resumes.
        verbose: print settings, progress and results.
        compile_mode: a mode of torch.compile, such as "default", or "reduce-overhead" for CUDA graphs.
        on_step: called after each step with the numbers of the epoch and of the step, from 0.

    Returns:
        One record per epoch: `epoch` (from 1), `train_loss` and `train_accuracy` (percent, over the epoch, in train
        mode), `last_batch_loss`, `test_loss`, `test_correct`, `test_accuracy` (percent), `learning_rate` (of the last
        step), `seconds`.

    The random states of the caller are left as they were. The same recipe, initial weights, data and machine give the
    same history in fp32 on a CPU. Started by torchrun, all processes train one model; each calls this alike.

    Raises:
        TrainingStopped: by Ctrl-C; the model is as after the last whole epoch.
        TypeError, ValueError: network, data, recipe and device do not fit each other, or are not to be had.
        RunError: the kept run has another recipe, network or data set, is in use, or could not be saved.
        FloatingPointError: the loss became NaN or infinite.
        MemoryError: a batch does not fit into memory.
    """
    device = chosen_device(device)
    check_data(data)
    check_recipe_fits(recipe, data.train_images)
    dtype, team = resolve_precision(recipe.precision, device), Team()
    check_network(model, data, recipe, team.size if device.type == "cpu" else 1)
    home = None if run is None else Run(Path(root), run, model, data, recipe)
    with kept_random_states(), contextlib.ExitStack() as held:
        seed_all(recipe.seed)
        checkpoint, history = None, []
        if home:
            team.by_main(lambda: held.enter_context(home.locked()))
            checkpoint = team.by_main(home.load)
        if checkpoint:
            began, history = getattr(torch, checkpoint["precision"]), checkpoint["history"]
            if began != dtype:
                team.by_main(print, f"{home.folder}: stays in {began}, in which it began, instead of {dtype}.")
            dtype = began
        trainer = Trainer(model, data, recipe, device, dtype, compile_mode, verbose and team.is_main, on_step)
        surroundings = environment(data, device, dtype)
        if checkpoint:
            home.restore(trainer.restore, checkpoint)
            team.by_main(print, f"{home.folder}: {len(history)} of {recipe.epochs} epochs are done, and were loaded.")
        elif home:
            team.by_main(home.save, trainer.state(), history, surroundings)
        trainer.print_settings()
        state, saved = trainer.state(), len(history)
        held.enter_context(kept_for_reuse(device))
        held.enter_context(memory_errors_told(recipe.batch_size))
        try:
            for epoch in range(len(history), recipe.epochs):
                record = trainer.epoch(epoch)
                state, history = trainer.state(), [*history, record]
                if home:
                    team.by_main(home.save, state, history, surroundings)
                    saved = len(history)
        except KeyboardInterrupt:
            trainer.restore(state)
            if home and team.is_main and saved < len(history):  # it was stopped while it saved
                home.save(state, history, surroundings)
            resumes = "; the same call resumes there" if home else ""
            raise TrainingStopped(
                f"Stopped after {len(history)} of {recipe.epochs} epochs{resumes}.", history
            ) from None
        finally:
            model.eval()
    return history


class Trainer:
    """One training in memory: the network, its batches, and what changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype,
        compile_mode: str | None = None,
        verbose: bool = False,
        on_step: Callable[[int, int], object] | None = None,
    ):
        self.model, self.data, self.recipe = model, data, recipe
        self.device, self.dtype, self.verbose, self.on_step = device, dtype, verbose, on_step
        self.team = Team()
        mean, std = channel_statistics(data.train_images)
        model.preprocessing = Preprocessing(tuple(data.classes), tuple(mean.tolist()), tuple(std.tolist()))
        model.to(device, memory_format=torch.channels_last)
        self.batches = Batches(
            data.train_images, data.train_labels, recipe.batch_size, mean, std, shuffle=True, crop=recipe.crop,
            flip=recipe.flip, cutout=recipe.cutout, seed=recipe.seed, device=device,
        )  # fmt: skip
        self.test_batches = test_batches(model, data, device)
        self.optimizer = make_optimizer(model, recipe)
        self.scheduler = make_scheduler(self.optimizer, recipe, len(self.batches))
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        # Other ways to call the model, with the same parameters: in several processes, and compiled.
        self.parallel = self.network = self.team.wrap(model, device)
        self.tested = model
        if compile_mode:
            self.network = torch.compile(self.parallel, mode=compile_mode)
            self.tested = torch.compile(model, mode=compile_mode)

    def epoch(self, number: int) -> dict:
        """Train and test once, and return the record of the epoch, which is counted from 0."""
        started = time.perf_counter()
        torch.manual_seed(epoch_seed(self.recipe.seed, number, "dropout", self.team.rank))
        self.batches.epoch = number
        if self.verbose:
            print(f"Epoch {number + 1}")
        record = {"epoch": number + 1} | self._train() | self._test()
        record |= {"seconds": round(time.perf_counter() - started, 2)}
        if self.verbose:
            print(test_line(record, len(self.data.test_labels)), end="\n\n")
            self._print_learning_rate()
        return record

    def _train(self) -> dict:
        self.parallel.train()
        loss_sum, correct = (torch.zeros((), device=self.device) for _ in range(2))
        seen, every = 0, 1 if self.device.type == "cpu" else 20  # reading a number off a GPU makes it wait
        progress = tqdm(self.batches, disable=not self.verbose, desc="Train", mininterval=1, file=sys.stdout)
        for step, (images, labels) in enumerate(progress):
            loss, right = self.loss(images, labels)
            is_read = step % every == 0 or step == len(self.batches) - 1
            if is_read:
                shown = self.team.mean(loss.detach()).item()
                if not math.isfinite(shown):
                    raise FloatingPointError(self._what_diverged(shown, images, step))
            learning_rate = self.descend(loss)
            loss_sum += loss.detach() * len(labels)
            correct += right
            seen += len(labels)
            if is_read:
                accuracy = 100 * correct.item() * self.team.size / seen
                said = f"Train: Loss={shown:.4f} Batch_id={step} Accuracy={accuracy:.2f}"
                progress.set_description(said, refresh=False)
            if self.on_step:
                self.on_step(self.batches.epoch - 1, step)
        self.team.average_statistics(self.model)
        return {
            "train_loss": self.team.mean(loss_sum).item() / seen,
            "train_accuracy": 100 * self.team.mean(correct).item() * self.team.size / seen,
            "last_batch_loss": shown,
            "learning_rate": learning_rate,
        }

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of a batch, or of this process's share of it, and how many of those images are classified
        correctly.

        For log-probabilities cross-entropy is the negative log-likelihood: log_softmax leaves them as they are.
        """
        share, weight = self.team.share(len(labels))
        # Compiled code and CUDA graphs are of one batch size: the shorter last batch of an epoch goes without.
        network = self.network if len(labels) == self.recipe.batch_size else self.parallel
        with autocast(self.device, self.dtype):
            logits = network(images[share])
            loss = F.cross_entropy(logits, labels[share], label_smoothing=self.recipe.label_smoothing)
        return loss * weight, (logits.argmax(1) == labels[share]).sum() * (weight > 0)

    def descend(self, loss: torch.Tensor) -> float:
        """One step against the gradient of `loss`; the learning rate that it had."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if self.scaler.get_scale() >= scale:  # it falls where a gradient overflowed fp16, and no step was taken
            self.scheduler.step()
        return learning_rate

    def _what_diverged(self, loss: float, images: torch.Tensor, step: int) -> str:
        share, _ = self.team.share(len(images))
        with autocast(self.device, self.dtype):
            layer = self.team.first_answer(first_layer_not_finite(self.model, images[share]))
        advice = ["a lower learning rate", "a longer warm-up"]
        if self.batches.epoch == 1 and step == 0:  # before the first step these change nothing
            advice = ["another formula there, since no step was taken before"]
        advice += ['precision="fp32"'] if self.dtype != torch.float32 else []
        return (
            f"The loss became {loss} in epoch {self.batches.epoch}, batch {step}; {layer or 'the loss itself'} was "
            f"first. Try {' or '.join(advice)}."
        )

    def _test(self) -> dict:
        """Loss and accuracy on all test images; each process computes them."""
        self.model.eval()
        logits, labels = compute_logits(self.tested, self.test_batches, self.dtype)
        correct = int((logits.argmax(1) == labels).sum())
        return {
            "test_loss": F.cross_entropy(logits, labels).item(),
            "test_correct": correct,
            "test_accuracy": 100 * correct / len(labels),
        }

    def state(self) -> dict:
        """A copy of all that the next epoch depends on."""
        parts = {name: copy.deepcopy(part.state_dict()) for name, part in self._parts().items()}
        return parts | {"random": random_states(), "precision": str(self.dtype).removeprefix("torch.")}

    def restore(self, state: dict) -> None:
        """Bring everything to what `state()` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        set_random_states(state["random"])

    def _parts(self) -> dict:
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "scaler")}

    def print_settings(self) -> None:
        """The head of the log."""
        if not self.verbose:
            return
        data, line = self.data, "-" * 64
        print(line)
        print(f"Network: {type(self.model).__name__}, {count_parameters(self.model):,} parameters")
        print(f"Data: {data.name} ({data.copy}), {len(data.train_labels):,} + {len(data.test_labels):,} images")
        print(f"Device: {self.device.type}, {str(self.dtype).removeprefix('torch.')}, torch {torch.__version__}")
        if self.team.size > 1:
            print(f"Processes: {self.team.size}")
        for field, value in asdict(self.recipe).items():
            print(f"{field.replace('_', ' ').capitalize()}: {value}")
        print(line)
        self._print_learning_rate()

    def _print_learning_rate(self) -> None:
        """The line that torch's schedules printed with verbose=True, which torch 2.7 removed."""
        print(f"Adjusting learning rate of group 0 to {self.optimizer.param_groups[0]['lr']:.4e}.", flush=True)


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_batches(model: nn.Module, data: Data, device: torch.device) -> Batches:
    """The test images in order, normalised as the network was trained, or else as `data` is."""
    own = getattr(model, "preprocessing", None)
    mean, std = map(torch.tensor, (own.mean, own.std)) if own else channel_statistics(data.train_images)
    return Batches(data.test_images, data.test_labels, EVALUATION_BATCH, mean, std, device=device)


@torch.no_grad()
def compute_logits(network: Callable, batches: Batches, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, classes) float32 and labels (N,), on the CPU."""
    with autocast(batches.device, dtype):
        # Copied, since the next replay of a CUDA graph writes over what the last one gave.
        pairs = [(network(images).to(torch.float32, copy=True), labels) for images, labels in batches]
    return tuple(torch.cat(part).cpu() for part in zip(*pairs, strict=True))


def predict(
    model: nn.Module,
    data: Data,
    device: torch.device | str | None = None,
    precision: str = "auto",
    flip: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Classify the test images of `data`, in eval mode; with `flip` by the mean logits of each image and its mirror
    image (flip averaging).

    Returns:
        Predicted classes, (M,) int64, and probabilities, (M, classes) float32.
    """
    device = chosen_device(device)
    model.eval().to(device, memory_format=torch.channels_last)
    batches = test_batches(model, data, device)
    dtype = resolve_precision(precision, device)
    logits, _ = compute_logits(model, batches, dtype)
    if flip:
        mirrored, _ = compute_logits(lambda images: model(images.flip(3)), batches, dtype)
        logits = (logits + mirrored) / 2
    probabilities = logits.softmax(1).numpy()
    return probabilities.argmax(1), probabilities


def classify(model: nn.Module, picture: str | Path | Image.Image) -> dict[str, float]:
    """Classify a picture of any size: centre crop, resized to 32x32 and normalised as for training.

    Args:
        model: a network with `preprocessing`, as `train`, `load_weights` and `S9Net.pretrained` leave it.

    Returns:
        From class to probability, most likely first.

    Raises:
        DataError: the file is not an image.
        ValueError: the network does not say what its classes are.
    """
    own = getattr(model, "preprocessing", None)
    if own is None:
        raise ValueError("classify: this network has no preprocessing: train it with `train`, or load its weights.")
    images = own.normalise(read_picture(picture)[None].to(next(model.parameters()).device))
    with torch.no_grad():
        (probabilities,) = model.eval()(images).softmax(1).tolist()
    return dict(sorted(zip(own.classes, probabilities, strict=True), key=lambda pair: -pair[1]))


# ------------------------------------------------------------------------------------------------------------- figures


def plot_performance(history: list[dict], caption: str) -> plt.Figure:
    """Loss and accuracy on training and test images, one panel each."""
    title = f"Test accuracy ends at {history[-1]['test_accuracy']:.1f} %"
    figure, axes = new_figure(2, 2, 10, 7, title, caption, sharex=True, sharey="row")
    epochs = [record["epoch"] for record in history]
    for row, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        for axis, split, colour in zip(row, ("train", "test"), (TRAIN_COLOUR, TEST_COLOUR), strict=True):
            axis.plot(epochs, [record[f"{split}_{quantity}"] for record in history], ".-", color=colour)
            axis.set_title(f"{'training' if split == 'train' else 'test'} {quantity}", fontsize=12)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("cross-entropy, nats" if quantity == "loss" else "accuracy, %")
    for axis in axes[-1]:
        axis.set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_accuracies(
    history: list[dict], caption: str, reference: list[dict] = (), whose: str = "the student's"
) -> plt.Figure:
    """Training and test accuracy per epoch in one panel, with those of another run if one is given as `reference`."""
    last = history[-1]
    title = f"Training ends at {last['train_accuracy']:.1f} %, test at {last['test_accuracy']:.1f} %"
    if reference:
        title += f"; {whose} at {reference[-1]['test_accuracy']:.1f} %"
    figure, axes = new_figure(1, 1, 9, 5.5, title, caption)
    axis = axes[0, 0]
    for split, colour, style in (("test", TEST_COLOUR, "o-"), ("train", TRAIN_COLOUR, "s-")):
        for records, prefix, alpha in ((reference, f"{whose} ", 0.45), (history, "", 1.0)):
            if records:
                x, y = zip(*((record["epoch"], record[f"{split}_accuracy"]) for record in records), strict=True)
                line = "--" if prefix else style
                label = f"{prefix}{'training' if split == 'train' else 'test'} accuracy"
                axis.plot(x, y, line, color=colour, alpha=alpha, markersize=4, label=label)
    axis.set(xlabel="epoch", ylabel="accuracy, %")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=12)
    return figure


def plot_mistakes(
    data, predicted: np.ndarray, probabilities: np.ndarray, caption: str, rows: int = 4, columns: int = 5
) -> plt.Figure:
    """The most confident mistakes on the test images, the most confident first."""
    labels, names = data.test_labels.numpy(), names_to_draw(data.classes)
    surest = surest_mistakes(data, predicted, probabilities)[: rows * columns]
    title = f"{int((predicted != labels).sum()):,} of {len(labels):,} are wrong; the most confident mistakes"
    figure, axes = new_figure(rows, columns, 2.1 * columns, 2.6 * rows + 0.8, title, caption)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, index in zip(axes.flat, surest, strict=False):
        guess = f"{names[predicted[index]]} {100 * probabilities[index].max():.0f} %"
        show_image(axis, data.test_images[index], f"{guess}\nis {names[labels[index]]}")
    return figure


def plot_confusion_matrix(matrix: np.ndarray, classes: tuple[str, ...], caption: str) -> plt.Figure:
    """Counts and row percentages; of more than 20 classes the worst pairs beside the matrix in colours.

    `matrix` (classes, classes) has the true classes in its rows, as scikit-learn's.
    """
    names, count = names_to_draw(classes), len(classes)
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    true, taken = np.unravel_index(np.where(np.eye(count, dtype=bool), -1, percent).argmax(), matrix.shape)
    title = f"{percent[true, taken]:.0f} % of class '{names[true]}' are called '{names[taken]}'"
    if count > lesson_figures.MOST_CLASSES:
        return lesson_figures.plot_worst_pairs(matrix, names, title, caption)
    cells = [[f"{n}\n{p:.0f}%" for n, p in zip(*pair, strict=True)] for pair in zip(matrix, percent, strict=True)]
    side = max(10, 0.62 * count)
    figure, axes = new_figure(1, 1, side, side - 1, title, caption)
    sns.heatmap(
        percent, annot=np.array(cells), fmt="", annot_kws={"size": 11 if count <= 12 else 8}, cmap="Blues", vmin=0,
        vmax=100, square=True, cbar_kws={"label": "percent of the true class", "shrink": 0.7}, ax=axes[0, 0],
    )  # fmt: skip
    lesson_figures.name_ticks(axes[0, 0], names)
    return figure
