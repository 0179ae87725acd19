"""Where the time of a training step goes: a table of the operations that take most, by torch's profiler.

`python -m scripts.benchmarks.profile_step NAME [--plain]`, for a NAME of scripts/train.py.
"""

import argparse
import contextlib
import itertools
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

import utils
from s9.data import subset
from s9.machine import default_device, kept_for_reuse, resolve_precision
from s9.optimizers import make_optimizer
from s9.schedules import make_scheduler
from scripts.benchmarks import measuring, plain
from scripts.experiments import EXPERIMENTS

NAMES = {  # operators of torch's, in a reader's words
    "aten::convolution_backward": "convolutions, backward",
    "aten::mkldnn_convolution": "convolutions, forward",
    "aten::native_batch_norm": "BatchNorm, forward",
    "aten::native_batch_norm_backward": "BatchNorm, backward",
    "aten::clamp_min": "ReLU, forward",
    "aten::threshold_backward": "ReLU, backward",
    "aten::bernoulli_": "dropout's random draw",
    "aten::copy_": "copies and changes of type",
    "aten::add": "sums of residual branches",
    "aten::mul": "products",
    "aten::index_select": "batches: the look-up",
}


def main() -> None:
    """Profile some steps and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--plain", action="store_true", help="the plain way: fp32, NCHW, torch's own layers")
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    experiment = EXPERIMENTS[given.name]
    data = subset(utils.load_data(), (2 * given.steps + 2) * experiment.recipe.batch_size)
    model = experiment.build()
    device = default_device()
    run = utils.Trainer(model, data, experiment.recipe, device, resolve_precision("auto", device))
    if given.plain:
        run.network = run.parallel = plain.network(model).to(memory_format=torch.contiguous_format)
        run.optimizer = make_optimizer(run.network, experiment.recipe)
        run.scheduler = make_scheduler(run.optimizer, experiment.recipe, len(run.batches))
        run.dtype = torch.float32
    run.network.train()
    batches = itertools.chain.from_iterable(itertools.repeat(run.batches))

    def step() -> None:
        images, labels = next(batches)
        if given.plain:
            images = images.contiguous()
        loss, _ = run.loss(images, labels)
        run.descend(loss)

    with contextlib.nullcontext() if given.plain else kept_for_reuse(device):
        for _ in range(2):
            step()
        took = measuring.seconds(lambda: [step() for _ in range(given.steps)])
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            profiled = 1e6 * measuring.seconds(lambda: [step() for _ in range(given.steps)])
    shares = Counter()
    for event in profiler.key_averages():
        shares[NAMES.get(event.key, "all else")] += event.self_cpu_time_total
    shares["outside of torch, such as numpy's draws"] = max(0, profiled - sum(shares.values()))
    total = sum(shares.values())
    way, size = ", the plain way" if given.plain else "", experiment.recipe.batch_size
    print(f"{given.name}{way}: {took / given.steps:.2f} s a step of {size}")
    print("| operation | share |\n| --- | --- |")
    for name, time in shares.most_common():
        if time > 0.005 * total:
            print(f"| {name} | {100 * time / total:.0f} % |")


if __name__ == "__main__":
    main()
