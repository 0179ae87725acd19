"""Training and evaluation: a recipe and a network in, a history out."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from batches import Batches, channel_statistics, epoch_seed
from checkpoints import Run
from dataset import Data
from recipe import Recipe, default_device, resolve_precision


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.amp.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay}]
    groups += [{"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


def _make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int):
    """A schedule that is stepped after each batch, whichever it is."""
    if recipe.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=recipe.learning_rate,
            total_steps=recipe.epochs * steps_per_epoch,
            pct_start=recipe.warmup,
            cycle_momentum=False,
        )
    factor = recipe.step_factor if recipe.schedule == "step" else 1.0
    return torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_epochs * steps_per_epoch, factor)


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    run: str | None = None,
    root: str | Path = "runs",
    device: torch.device | str | None = None,
    verbose: bool = True,
) -> list[dict]:
    """Train `model`, test it after each epoch, and return the history.

    Args:
        model: from normalised float images (N, 3, 32, 32) to logits or log-probabilities (N, classes). It is left on
            `device`, in eval mode, with the weights of the last epoch.
        run: keep the run under `root`/`run`: its recipe, environment, history and a checkpoint an epoch. A finished
            run is loaded instead of repeated, an unfinished one goes on at its last whole epoch.
        verbose: print settings, progress and results.

    Returns:
        A record an epoch: `epoch` (from 1), `train_loss` and `train_accuracy` (percent, over the epoch, in train mode),
        `last_batch_loss`, `test_loss`, `test_correct`, `test_accuracy` (percent), `learning_rate` (of the last step),
        `seconds`.

    The random state of the caller is left as it was. The same recipe, initial weights, data and machine give the same
    history in fp32 on a CPU.

    Raises:
        ValueError: the kept run has another recipe, network or data set.
        FloatingPointError: the loss became NaN or infinite.
    """
    device = torch.device(device) if device else default_device()
    dtype = resolve_precision(recipe.precision, device)
    model.to(device, memory_format=torch.channels_last)
    mean, std = channel_statistics(data.train_images)
    batches = Batches(
        data.train_images, data.train_labels, recipe.batch_size, mean, std, shuffle=True, crop=recipe.crop,
        flip=recipe.flip, cutout=recipe.cutout, seed=recipe.seed, device=device,
    )  # fmt: skip
    test_batches = Batches(data.test_images, data.test_labels, EVALUATION_BATCH, mean, std, device=device)
    optimizer = _make_optimizer(model, recipe)
    scheduler = _make_scheduler(optimizer, recipe, len(batches))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    home = Run(Path(root) / run, model, data, recipe, device) if run else None
    history = home.resume(state) if home else []
    if verbose:
        _print_settings(model, data, recipe, device, dtype, done=len(history))
        _print_learning_rate(optimizer)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for epoch in range(len(history), recipe.epochs):
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(recipe.seed, epoch))  # dropout
            batches.epoch = epoch
            if verbose:
                print(f"Epoch {epoch + 1}")
            record = {"epoch": epoch + 1}
            record |= _train_epoch(model, batches, recipe, optimizer, scheduler, scaler, dtype, verbose)
            record |= _test_epoch(model, test_batches, dtype)
            record |= {"seconds": round(time.perf_counter() - started, 2)}
            history.append(record)
            if home:
                home.save(state, history)
            if verbose:
                print(_test_line(record, len(data.test_labels)), end="\n\n")
                _print_learning_rate(optimizer)
    model.eval()
    return history


def _train_epoch(model, batches, recipe, optimizer, scheduler, scaler, dtype, verbose) -> dict:
    model.train()
    loss_sum = torch.zeros((), device=batches.device)
    correct = torch.zeros((), dtype=torch.int64, device=batches.device)
    seen = 0
    every = 1 if batches.device.type == "cpu" else 20  # reading a number off a GPU makes it wait
    progress = tqdm(batches, disable=not verbose, desc="Train", mininterval=1)
    for step, (images, labels) in enumerate(progress):
        with _autocast(batches.device, dtype):
            logits = model(images)
            # For log-probabilities this is their negative log-likelihood: log_softmax leaves them as they are.
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        learning_rate = optimizer.param_groups[0]["lr"]
        scheduler.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        seen += len(labels)
        if step % every == 0 or step == len(batches) - 1:
            last_loss = loss.item()
            if not math.isfinite(last_loss):
                raise FloatingPointError(
                    f"The loss became {last_loss} in epoch {batches.epoch}, batch {step}: try a lower learning rate, "
                    'a longer warm-up, or precision="fp32".'
                )
            progress.set_description(f"Train: Loss={last_loss:.4f} Batch_id={step} Accuracy={100 * correct / seen:.2f}")
    return {
        "train_loss": loss_sum.item() / seen,
        "train_accuracy": 100 * correct.item() / seen,
        "last_batch_loss": last_loss,
        "learning_rate": learning_rate,
    }


def _test_epoch(model, batches, dtype) -> dict:
    logits = _logits(model, batches, dtype)
    labels = batches.labels.cpu()
    correct = (logits.argmax(1) == labels).sum().item()
    return {
        "test_loss": F.cross_entropy(logits, labels).item(),
        "test_correct": correct,
        "test_accuracy": 100 * correct / len(labels),
    }


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _print_settings(model, data, recipe, device, dtype, done) -> None:
    line = "-" * 64
    print(line)
    print(f"Network: {type(model).__name__}, {count_parameters(model):,} parameters")
    print(f"Data: {data.name} ({data.copy}), {len(data.train_labels):,} + {len(data.test_labels):,} images")
    print(f"Device: {device.type}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}")
    for field, value in asdict(recipe).items():
        print(f"{field.replace('_', ' ').capitalize()}: {value}")
    print(line)
    if done:
        print(f"{done} of {recipe.epochs} epochs were done before.")


def _print_learning_rate(optimizer: torch.optim.Optimizer) -> None:
    """The line that torch's schedules printed with verbose=True, when they still had it."""
    print(f"Adjusting learning rate of group 0 to {optimizer.param_groups[0]['lr']:.4e}.", flush=True)


def _test_line(record: dict, total: int) -> str:
    score = f"{record['test_correct']}/{total} ({record['test_accuracy']:.2f}%)"
    return f"Test set: Average loss: {record['test_loss']:.4f}, Accuracy: {score}"


EVALUATION_BATCH = 1000  # images at a time; only memory and speed depend on it


@torch.no_grad()
def _logits(model: nn.Module, batches: Batches, dtype: torch.dtype) -> torch.Tensor:
    """(N, classes) float32 on the CPU, in eval mode."""
    model.eval()
    with _autocast(batches.device, dtype):
        return torch.cat([model(images).float() for images, _ in batches]).cpu()


def predict(
    model: nn.Module, data: Data, device: torch.device | str | None = None, precision: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Classify the test images of `data`, in eval mode.

    Returns:
        Predicted classes, (M,) int64, and probabilities, (M, classes) float32.
    """
    device = torch.device(device) if device else default_device()
    model.to(device, memory_format=torch.channels_last)
    mean, std = channel_statistics(data.train_images)
    batches = Batches(data.test_images, data.test_labels, EVALUATION_BATCH, mean, std, device=device)
    probabilities = _logits(model, batches, resolve_precision(precision, device)).softmax(1).numpy()
    return probabilities.argmax(1), probabilities


def read_history(path: str | Path) -> list[dict]:
    """The history of a recorded run, a record an epoch, from a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


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
