"""Two processes on this machine train one model, over gloo, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from s9.batches import IGNORED, Batches, channel_statistics
from s9.data import subset
from s9.loading import load_data
from s9.processes import World
from s9.recipes import Recipe
from s9.results import read_history
from utils import train

ROOT = Path(__file__).parent.parent

SCRIPT = """
import json, sys
sys.path.insert(0, {root!r})
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import dataset, parallel, training
from test_parallel import NETWORKS, RECIPE
name, folder, run = sys.argv[1:]
with parallel.joined() as world:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    data = dataset.subset(dataset.load_data("digits"), 501)
    history = training.train(model, data, RECIPE, run=run, root=folder, device="cpu")
    torch.save(model.state_dict(), f"{{folder}}/weights-{{world.rank}}-of-{{world.size}}.pt")
    open(f"{{folder}}/history-{{world.rank}}-of-{{world.size}}.json", "w").write(json.dumps(history))
"""

RECIPE = Recipe(epochs=2, batch_size=50, learning_rate=0.01, momentum=0.9, precision="fp32", label_smoothing=0.1)
NETWORKS = {
    "plain": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    "norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(512, 10)
    ),
}


def torchrun(processes: int, *arguments) -> subprocess.CompletedProcess:
    """Run a script in several processes that find each other over the loopback address."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=240
    )


def processes_train(processes: int, folder: Path, name: str, run: str = "run") -> list[dict]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    result = torchrun(processes, script, name, folder, run)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Epoch 2\n") == 1  # only the main process prints
    return [json.loads((folder / f"history-{rank}-of-{processes}.json").read_text()) for rank in range(processes)]


def one_process_trains(folder: Path, name: str, run: str = "run") -> tuple[list[dict], dict]:
    """History and weights of the same in this process, with one thread as in the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = NETWORKS[name]()
    data = subset(load_data("digits"), 501)
    history = train(model, data, RECIPE, run=run, root=folder, device="cpu", verbose=False)
    torch.set_num_threads(threads)
    return history, model.state_dict()


def weights(folder: Path, rank: int, processes: int) -> dict:
    return torch.load(folder / f"weights-{rank}-of-{processes}.pt", weights_only=True)


def test_shards_are_the_batches_of_one_process(digits):
    data = subset(digits, 101)
    mean, std = channel_statistics(data.train_images)

    def batches(**world):
        made = Batches(data.train_images, data.train_labels, 50, mean, std, shuffle=True, crop=2, flip=True, **world)
        return list(made)

    whole, shards = batches(), [batches(world=World(rank, 3)) for rank in range(3)]
    for step, (images, labels) in enumerate(whole):
        for rank in range(3):
            mine, mine_labels = shards[rank][step]
            if rank < len(images):
                assert torch.equal(mine, images[rank::3])
                assert torch.equal(mine_labels, labels[rank::3])
            else:  # the last batch has one image for three processes
                assert mine_labels.tolist() == [IGNORED]


def test_two_processes_learn_what_one_does(tmp_path):
    first, second = processes_train(2, tmp_path, "plain")
    alone, expected = one_process_trains(tmp_path, "plain", run="alone")
    for a, b in zip(first, second, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    for a, b in zip(first, alone, strict=True):
        for key in ("train_loss", "test_loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-4)
        assert a["train_accuracy"] == pytest.approx(b["train_accuracy"], abs=0.5)
        assert a["learning_rate"] == b["learning_rate"]
    ranks = [weights(tmp_path, rank, 2) for rank in range(2)]
    for name, value in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-3, atol=1e-4)


def test_batchnorm_statistics_and_weights_are_the_same_on_both(tmp_path):
    processes_train(2, tmp_path, "norm")
    first, second = (weights(tmp_path, rank, 2) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["1.running_mean"], torch.zeros(8))


def test_a_lost_process_leaves_a_run_that_another_number_of_processes_goes_on_with(tmp_path):
    lost = tmp_path / "lost.py"
    lost.write_text(
        SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")).replace(
            "with parallel",
            "import os, training\n"
            "epoch = training._Training.epoch\n"
            "def lose(self, number):\n"
            "    if number == 1 and self.world.rank == 1: os._exit(9)\n"
            "    return epoch(self, number)\n"
            "training._Training.epoch = lose\n"
            "with parallel",
        )
    )
    result = torchrun(2, lost, "plain", tmp_path, "run")
    assert result.returncode != 0
    assert len(read_history(tmp_path / "run" / "history.jsonl")) == 1
    gone_on, _ = one_process_trains(tmp_path, "plain")
    alone, _ = one_process_trains(tmp_path, "plain", run="alone")
    assert gone_on[-1]["test_loss"] == pytest.approx(alone[-1]["test_loss"], rel=1e-4)


def test_train_script_under_torchrun(tmp_path):
    arguments = ["train.py", "student", "--set", "epochs=1", "batch_size=64", "--data", "digits", "--root", tmp_path]
    result = torchrun(2, *arguments)
    assert result.returncode == 0, result.stderr
    assert "Processes: 2" in result.stdout
    assert len(read_history(tmp_path / "student" / "history.jsonl")) == 1
    refused = torchrun(2, *arguments, "--set", "epochs=2")
    assert refused.returncode != 0
    assert "holds a run with another recipe" in refused.stderr
