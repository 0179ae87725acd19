"""Training and evaluation: a recipe and a network in, a history out."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from s9.batches import IGNORED, Batches, channel_statistics
from s9.data import Data, check_data
from s9.loading import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, read_picture
from s9.memory import kept_for_reuse
from s9.optimizers import make_optimizer
from s9.processes import World, average_statistics, by_main, current_world, data_parallel, total
from s9.randomness import epoch_seed, kept_random_states, seed_all
from s9.recipes import Recipe, check_recipe_fits, default_device, resolve_precision
from s9.runs import Run, restore
from s9.schedules import make_scheduler
from tracing import tensors_in

EVALUATION_BATCH = 1000  # images at a time; only memory and speed depend on it


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    run: str | None = None,
    root: str | Path = "runs",
    device: torch.device | str | None = None,
    verbose: bool = True,
    compile_mode: str | None = None,
) -> list[dict]:
    """Train `model`, test it after each epoch, and return the history.

    Args:
        model: from normalised float images (N, 3, 32, 32) to logits or log-probabilities (N, classes). It is left on
            `device`, in eval mode, with the weights of the last epoch.
        run: keep the run under `root`/`run`: its recipe, environment, history and a checkpoint an epoch. A finished
            run is loaded instead of repeated, an unfinished one goes on at its last whole epoch.
        verbose: print settings, progress and results.
        compile_mode: a mode of torch.compile, such as "default", or "reduce-overhead" for CUDA graphs.

    Returns:
        A record an epoch: `epoch` (from 1), `train_loss` and `train_accuracy` (percent, over the epoch, in train mode),
        `last_batch_loss`, `test_loss`, `test_correct`, `test_accuracy` (percent), `learning_rate` (of the last step),
        `seconds`. Stopped by Ctrl-C, it returns the epochs that are whole, and the next call goes on.

    The random states of the caller are left as they were. The same recipe, initial weights, data and machine give the
    same history in fp32 on a CPU. Started by torchrun, all processes train one model; each calls this alike.

    Raises:
        ValueError: network, data, recipe and device do not fit each other.
        RunError: the kept run has another recipe, network or data set, is in use, or could not be saved.
        FloatingPointError: the loss became NaN or infinite.
        MemoryError: a batch does not fit into memory.
    """
    device = torch.device(device) if device else default_device()
    check_data(data)
    check_recipe_fits(recipe, data.train_images)
    check_network(model, data)
    training = _Training(model, data, recipe, device, verbose, compile_mode)
    world = training.world
    home = Run(Path(root) / run, model, data, recipe, device) if run else None
    with kept_random_states(), contextlib.ExitStack() as held:
        seed_all(recipe.seed)
        if home:
            by_main(world, lambda: held.enter_context(home.locked()))
        checkpoint = by_main(world, home.load) if home else None
        history = restore(checkpoint, training.state) if checkpoint else []
        training.print_settings(done=len(history))
        if device.type == "cpu":
            held.enter_context(kept_for_reuse())
        try:
            for epoch in range(len(history), recipe.epochs):
                history.append(training.epoch(epoch))
                if home:
                    by_main(world, lambda: home.save(training.state, history))
        except KeyboardInterrupt:
            if home:
                checkpoint = home.load()
                history = restore(checkpoint, training.state) if checkpoint else []
            print(
                f"Stopped after {len(history)} whole epochs." + (" The same call goes on from there." if home else "")
            )
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                size = recipe.batch_size
                raise MemoryError(
                    f"Recipe: batch_size={size} needs too much memory; try {max(1, size // 2)}."
                ) from error
            raise
    model.eval()
    return history


class _Training:
    """What one run needs in memory: the parts that `state` names, and the batches."""

    def __init__(self, model, data: Data, recipe: Recipe, device, verbose: bool, compile_mode: str | None):
        self.world = current_world()
        self.model, self.data, self.recipe, self.device = model, data, recipe, device
        self.verbose = verbose and self.world.is_main
        self.dtype = resolve_precision(recipe.precision, device)
        model.to(device, memory_format=torch.channels_last)
        mean, std = channel_statistics(data.train_images)
        self.batches = Batches(
            data.train_images, data.train_labels, recipe.batch_size, mean, std, shuffle=True, crop=recipe.crop,
            flip=recipe.flip, cutout=recipe.cutout, seed=recipe.seed, device=device, world=self.world,
        )  # fmt: skip
        self.test_batches = _test_batches(data, mean, std, device, self.world)
        self.optimizer = make_optimizer(model, recipe)
        self.scheduler = make_scheduler(self.optimizer, recipe, len(self.batches))
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.state = {
            "model": model, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler
        }  # fmt: skip
        self.network = data_parallel(model, self.world, device)  # the same parameters
        if compile_mode:
            self.network = torch.compile(self.network, mode=compile_mode)

    def epoch(self, number: int) -> dict:
        """Train and test once, and return the record."""
        started = time.perf_counter()
        # Each process drops something else.
        torch.manual_seed(epoch_seed(self.recipe.seed, number, "dropout", self.world.rank))
        self.batches.epoch = number
        if self.verbose:
            print(f"Epoch {number + 1}")
        record = {"epoch": number + 1} | self._train() | self._test()
        record |= {"seconds": round(time.perf_counter() - started, 2)}
        if self.verbose:
            print(_test_line(record, len(self.data.test_labels)), end="\n\n")
            _print_learning_rate(self.optimizer)
        return record

    def _train(self) -> dict:
        self.network.train()
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        seen = 0
        every = 1 if self.device.type == "cpu" else 20  # reading a number off a GPU makes it wait
        progress = tqdm(self.batches, disable=not self.verbose, desc="Train", mininterval=1)
        for step, (images, labels) in enumerate(progress):
            size = self.batches.size_of(step)
            loss, logits = self._loss(images, labels, size)
            read = step % every == 0 or step == len(self.batches) - 1
            if read and not math.isfinite(loss.item()):
                raise FloatingPointError(self._what_diverged(loss, images, step))
            learning_rate = self._descend(loss)
            loss_sum += loss.detach() * size
            correct += (logits.argmax(1) == labels).sum()
            seen += size
            if read:
                accuracy = 100 * correct.item() * self.world.size / seen
                progress.set_description(f"Train: Loss={loss.item():.4f} Batch_id={step} Accuracy={accuracy:.2f}")
        average_statistics(self.model, self.world)
        return {
            "train_loss": total(loss_sum, self.world).item() / self.world.size / seen,
            "train_accuracy": 100 * total(correct, self.world).item() / seen,
            "last_batch_loss": total(loss.detach(), self.world).item() / self.world.size,
            "learning_rate": learning_rate,
        }

    def _loss(self, images, labels, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of a batch of `size`, or this process's share of it, and the logits."""
        smoothing = self.recipe.label_smoothing
        with _autocast(self.device, self.dtype):
            logits = self.network(images)
            # For log-probabilities this is their negative log-likelihood: log_softmax leaves them as they are.
            if self.world.size == 1:
                return F.cross_entropy(logits, labels, label_smoothing=smoothing), logits
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing, ignore_index=IGNORED, reduction="sum")
            # The processes may have different numbers of images, and the mean over processes is taken of this.
            return loss * self.world.size / size, logits

    def _descend(self, loss: torch.Tensor) -> float:
        """One step against the gradient of `loss`; the learning rate that it had."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        return learning_rate

    def _what_diverged(self, loss: torch.Tensor, images: torch.Tensor, step: int) -> str:
        with _autocast(self.device, self.dtype):
            layer = first_layer_not_finite(self.model, images)
        return (
            f"The loss became {loss.item()} in epoch {self.batches.epoch}, batch {step}; {layer or 'the loss itself'} "
            'was first. Try a lower learning rate, a longer warm-up, or precision="fp32".'
        )

    def _test(self) -> dict:
        self.model.eval()
        logits, labels = _logits(self.model, self.test_batches, self.dtype)
        sums = torch.tensor([F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()])
        loss_sum, correct = total(sums.double().to(self.device), self.world).tolist()
        count = len(self.data.test_labels)
        return {
            "test_loss": loss_sum / count,
            "test_correct": round(correct),
            "test_accuracy": 100 * round(correct) / count,
        }

    def print_settings(self, done: int) -> None:
        """The head of the log; `done` epochs were done before."""
        if not self.verbose:
            return
        data, line = self.data, "-" * 64
        print(line)
        print(f"Network: {type(self.model).__name__}, {count_parameters(self.model):,} parameters")
        print(f"Data: {data.name} ({data.copy}), {len(data.train_labels):,} + {len(data.test_labels):,} images")
        print(f"Device: {self.device.type}, {str(self.dtype).removeprefix('torch.')}, torch {torch.__version__}")
        if self.world.size > 1:
            print(f"Processes: {self.world.size}")
        for field, value in asdict(self.recipe).items():
            print(f"{field.replace('_', ' ').capitalize()}: {value}")
        print(line)
        if done:
            print(f"{done} of {self.recipe.epochs} epochs were done before.")
        _print_learning_rate(self.optimizer)


def check_network(model: nn.Module, data: Data) -> None:
    """Try the network on two images of `data`.

    Raises:
        ValueError: it cannot be trained on them; the message says why.
    """
    parameters = dict(model.named_parameters())
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError("Network: it has no parameters to train.")
    for name, parameter in parameters.items():
        if not parameter.isfinite().all():
            raise ValueError(f"Network: {name} holds NaN or infinite numbers; build the network anew.")
    images = torch.zeros(2, *data.train_images.shape[1:], device=next(iter(parameters.values())).device)
    try:
        with torch.no_grad(), kept_random_states():
            logits = copy.deepcopy(model).eval()(images)
    except (RuntimeError, ValueError, IndexError) as error:
        shape = "×".join(map(str, images.shape[1:]))
        raise ValueError(
            f"Network: it does not take images of {shape} ({str(error).partition(chr(10))[0]})."
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2:
        raise ValueError(f"Network: for 2 images it gives {shape} instead of logits (2, classes).")
    if logits.shape[1] != len(data.classes):
        raise ValueError(
            f"Network: it has {logits.shape[1]} outputs, and the data {len(data.classes)} classes; build it with "
            f"{len(data.classes)} outputs."
        )


def first_layer_not_finite(model: nn.Module, images: torch.Tensor) -> str | None:
    """The first layer, in the order of the calls, whose output for `images` is not finite, or None."""
    model, found = copy.deepcopy(model), []

    def watch(name: str, layer: nn.Module) -> None:
        def look(_, inputs, output):
            if not found and not all(tensor.isfinite().all() for tensor in tensors_in(output)):
                whole = all(parameter.isfinite().all() for parameter in layer.parameters())
                found.append(f"layer {name} ({type(layer).__name__}){'' if whole else ', with its weights,'}")

        layer.register_forward_hook(look)

    for name, layer in model.named_modules():
        if not list(layer.children()):
            watch(name, layer)
    with torch.no_grad():
        model(images)
    return found[0] if found else None


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.amp.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _print_learning_rate(optimizer: torch.optim.Optimizer) -> None:
    """The line that torch's schedules printed with verbose=True, when they still had it."""
    print(f"Adjusting learning rate of group 0 to {optimizer.param_groups[0]['lr']:.4e}.", flush=True)


def _test_line(record: dict, total: int) -> str:
    score = f"{record['test_correct']}/{total} ({record['test_accuracy']:.2f}%)"
    return f"Test set: Average loss: {record['test_loss']:.4f}, Accuracy: {score}"


# ---------------------------------------------------------------------------------------------------------- evaluation


def _test_batches(data: Data, mean, std, device: torch.device, world: World) -> Batches:
    return Batches(data.test_images, data.test_labels, EVALUATION_BATCH, mean, std, device=device, world=world)


@torch.no_grad()
def _logits(model: Callable, batches: Batches, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, classes) float32 and labels (N,), on the CPU."""
    with _autocast(batches.device, dtype):
        pairs = [(model(images).float(), labels) for images, labels in batches]
    logits, labels = (torch.cat(part).cpu() for part in zip(*pairs, strict=True))
    return logits[labels != IGNORED], labels[labels != IGNORED]


def predict(
    model: nn.Module,
    data: Data,
    device: torch.device | str | None = None,
    precision: str = "auto",
    flip: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Classify the test images of `data`, in eval mode; with `flip` by the mean logits of each and its mirror image.

    Returns:
        Predicted classes, (M,) int64, and probabilities, (M, classes) float32.
    """
    device = torch.device(device) if device else default_device()
    model.eval().to(device, memory_format=torch.channels_last)
    batches = _test_batches(data, *channel_statistics(data.train_images), device, World())
    dtype = resolve_precision(precision, device)
    logits, _ = _logits(model, batches, dtype)
    if flip:
        mirrored, _ = _logits(lambda images: model(images.flip(3)), batches, dtype)
        logits = (logits + mirrored) / 2
    probabilities = logits.softmax(1).numpy()
    return probabilities.argmax(1), probabilities


def classify(model: nn.Module, picture: str | Path | Image.Image, classes: tuple[str, ...] = CIFAR10_CLASSES) -> dict:
    """Classify a picture of any size: the square in its middle, as 32x32 pixels, normalised as CIFAR-10 is.

    Returns:
        From class to probability, the likeliest first.

    Raises:
        DataError: the file is no picture.
    """
    images = read_picture(picture)[None].float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (CIFAR10_MEAN, CIFAR10_STD))
    device = next(model.parameters()).device
    with torch.no_grad():
        (probabilities,) = model.eval()(((images - mean) / std).to(device)).softmax(1).tolist()
    return dict(sorted(zip(classes, probabilities, strict=True), key=lambda pair: -pair[1]))


def history_log(history: list[dict], total: int) -> str:
    """A history as the lines that training printed; `total` is the number of test images."""
    lines = []
    for record in history:
        lines += [
            f"Epoch {record['epoch']}",
            f"Train: Loss={record['last_batch_loss']:.4f} Accuracy={record['train_accuracy']:.2f} "
            f"[{record['seconds']:.0f} s, learning rate {record['learning_rate']:.4e}]",
            _test_line(record, total),
            "",
        ]
    return "\n".join(lines)
