"""Where the time of a training step goes: `python benchmarks/profile_step.py NAME [--plain]` for a NAME of train.py.

Writes a table of the operations that take most, by torch's profiler.
"""

import argparse
from collections import Counter

import measuring
import plain
import torch
from torch.profiler import ProfilerActivity, profile

import training
import utils
from train import EXPERIMENTS

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
    data = utils.subset(utils.load_data(), (given.steps + 2) * experiment.recipe.batch_size)
    model = experiment.build()
    run = training._Training(model, data, experiment.recipe, utils.default_device(), False, None)
    if given.plain:
        run.network = plain.network(model).to(memory_format=torch.contiguous_format)
        run.optimizer = training.make_optimizer(run.network, experiment.recipe)
        run.dtype = torch.float32
    run.network.train()
    batches = iter(run.batches)

    def step() -> None:
        images, labels = next(batches)
        if given.plain:
            images = images.contiguous()
        loss, _ = run._loss(images, labels, len(labels))
        run._descend(loss)

    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        took = measuring.seconds(lambda: [step() for _ in range(given.steps)]) / given.steps
    shares = Counter()
    for event in profiler.key_averages():
        shares[NAMES.get(event.key, "all else")] += event.self_cpu_time_total
    total = sum(shares.values())
    print(
        f"{given.name}{', the plain way' if given.plain else ''}: {took:.2f} s a step of {experiment.recipe.batch_size}"
    )
    print("| operation | share |\n| --- | --- |")
    for name, time in shares.most_common():
        if time > 0.005 * total:
            print(f"| {name} | {100 * time / total:.0f} % |")


if __name__ == "__main__":
    main()
