"""Two processes on this machine train one model, over gloo, as torchrun starts them; this file is what they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from s9.data import subset
from s9.loading import load_data
from s9.processes import Team, joined, synchronised
from s9.randomness import epoch_seed
from s9.recipes import Recipe
from s9.results import read_history
from utils import train

ROOT = Path(__file__).parent.parent

RECIPE = Recipe(epochs=2, batch_size=50, learning_rate=0.01, momentum=0.9, precision="fp32", label_smoothing=0.1)


class Odd(nn.Module):
    """Gives NaN in the second of two processes while it trains."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3072, 10)

    def forward(self, x):
        is_second = self.training and dist.is_initialized() and dist.get_rank() == 1
        return self.linear(x * float("nan")) if is_second and len(x) > 2 else self.linear(x)


NETWORKS = {
    "odd one": lambda: nn.Sequential(nn.Flatten(), Odd()),
    "plain": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    "norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(512, 10)
    ),
}


def each_process(name: str, folder: str, run: str, lost_rank: int) -> None:
    """What each process does; `lost_rank` dies in the second epoch."""
    torch.set_num_threads(1)
    with joined() as team:

        def die(epoch: int, step: int) -> None:
            if epoch == 1 and team.rank == lost_rank:
                os._exit(9)

        torch.manual_seed(0)
        model = NETWORKS[name]()
        data = subset(load_data("digits"), 501)
        history = train(model, data, RECIPE, run=run, root=folder, device="cpu", on_step=die)
        torch.save(model.state_dict(), f"{folder}/weights-{team.rank}-of-{team.size}.pt")
        Path(f"{folder}/history-{team.rank}-of-{team.size}.json").write_text(json.dumps(history))


def torchrun(processes: int, *arguments) -> subprocess.CompletedProcess:
    """Run a script in several processes that find each other over the loopback address."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=240
    )


def processes_train(processes: int, folder: Path, name: str, run: str = "run") -> list[dict]:
    result = torchrun(processes, __file__, name, folder, run, -1)
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


@pytest.mark.parametrize("count", [1, 2, 3, 50, 51])
def test_shares_add_up_to_the_batch_and_its_mean(count):
    """Three processes; where there are fewer images, the others' loss counts nothing."""
    losses, seen, total = torch.rand(count), [], 0.0
    for rank in range(3):
        team = Team()
        team.rank, team.size = rank, 3
        share, weight = team.share(count)
        assert len(losses[share]) >= 1  # each has to take the step
        total += weight * losses[share].mean() / 3
        seen += losses[share].tolist() if weight else []
    assert sorted(seen) == sorted(losses.tolist())
    torch.testing.assert_close(total, losses.mean())


def test_each_process_drops_something_else():
    masks = []
    for rank in range(4):
        torch.manual_seed(epoch_seed(5, 0, "dropout", rank))
        masks.append(tuple(nn.Dropout(0.5)(torch.ones(64)).tolist()))
    assert len(set(masks)) == 4


def test_synchronised_norms_share_their_tensors_and_leave_the_callers_model():
    model = NETWORKS["norm"]()
    before = str(model)
    twin = synchronised(model)
    assert str(model) == before
    assert isinstance(twin[1], nn.SyncBatchNorm)
    pairs = zip([*model.parameters(), *model.buffers()], [*twin.parameters(), *twin.buffers()], strict=True)
    assert all(a is b for a, b in pairs)


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
    result = torchrun(2, __file__, "plain", tmp_path, "run", 1)
    assert result.returncode != 0
    assert len(read_history(tmp_path / "run" / "history.jsonl")) == 1
    gone_on, _ = one_process_trains(tmp_path, "plain")
    alone, _ = one_process_trains(tmp_path, "plain", run="alone")
    assert gone_on[-1]["test_loss"] == pytest.approx(alone[-1]["test_loss"], rel=1e-4)


def test_a_loss_that_is_not_finite_on_one_of_them_stops_both_with_the_same_sentence(tmp_path):
    result = torchrun(2, __file__, "odd one", tmp_path, "run", -1)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if "FloatingPointError: The loss became nan" in line]
    assert len(said) == 2
    assert "layer 1.linear (Linear)" in said[0]
    assert said[0].partition("FloatingPointError")[2] == said[1].partition("FloatingPointError")[2]


def test_train_script_under_torchrun(tmp_path):
    arguments = ["train.py", "student", "--set", "epochs=1", "batch_size=64", "--data", "digits", "--root", tmp_path]
    result = torchrun(2, *arguments)
    assert result.returncode == 0, result.stderr
    assert "Processes: 2" in result.stdout
    assert len(read_history(tmp_path / "student" / "history.jsonl")) == 1
    refused = torchrun(2, *arguments, "--set", "momentum=0.5")
    assert refused.returncode != 0
    assert "holds a run with another recipe" in refused.stderr


if __name__ == "__main__":
    each_process(*sys.argv[1:4], int(sys.argv[4]))
