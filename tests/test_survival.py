"""Runs that are killed, damaged, stopped, short of space or memory, or started twice."""

import math
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import utils
from s9 import loading as dataset
from s9.data import subset
from s9.files import save_tensors
from s9.guards import check_network
from s9.runs import RunError, read_checkpoint
from scripts import survival
from scripts.survival import PROCESSES, Drawing, content, run, same, start


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that are killed: sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a run that nothing happens to ends with."""
    root = tmp_path_factory.mktemp("whole")
    assert run(root) == 0
    return content(root)


def test_an_uninterrupted_run_repeats_itself_and_another_one_differs(expected, tmp_path, digits):
    assert run(tmp_path) == 0
    assert same(content(tmp_path), expected)
    torch.manual_seed(0)
    other = utils.train(Drawing(), digits, replace(survival.RECIPE, seed=1), device="cpu", verbose=False)
    assert [record["test_loss"] for record in other] != [record["test_loss"] for record in expected["history"]]


def test_runs_killed_at_20_random_moments_end_bit_for_bit_the_same(expected, tmp_path):
    row = survival.kills(20, tmp_path, expected)
    assert (row["times"], row["lost"]) == (20, 0)


def test_runs_killed_while_they_save_end_bit_for_bit_the_same(expected, tmp_path):
    rows = survival.sabotages(1, tmp_path, expected)
    assert [(row["times"], row["lost"]) for row in rows] == [(1, 0)] * 3


def test_damaged_checkpoints_are_set_aside_and_the_one_before_is_used(expected, tmp_path):
    rows = survival.damages(1, tmp_path, expected)
    assert [(row["times"], row["lost"]) for row in rows] == [(1, 0)] * 5


def quiet(model, data, recipe, root, **options):
    return utils.train(model, data, recipe, run="run", root=root, device="cpu", verbose=False, **options)


def test_a_damaged_checkpoint_is_named(tmp_path, digits, capsys):
    recipe = replace(survival.RECIPE, epochs=2)
    quiet(Drawing(), digits, recipe, tmp_path)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / "run" / name).write_bytes(b"garbage")
    history = quiet(Drawing(), digits, recipe, tmp_path)  # nothing whole is left, so that it starts anew
    assert len(history) == 2
    said = capsys.readouterr().out
    assert "checkpoint.pt is damaged: its checksum is wrong; it was set aside as damaged-1.pt" in said
    assert "damaged-2.pt" in said


def test_a_run_of_a_later_version_is_refused_by_field(tmp_path, digits):
    recipe = replace(survival.RECIPE, epochs=1)
    quiet(Drawing(), digits, recipe, tmp_path)
    path = tmp_path / "run" / "checkpoint.pt"
    checkpoint = read_checkpoint(path)
    checkpoint["identity"]["recipe"]["mixup"] = 0.2
    save_tensors(checkpoint, path)
    with pytest.raises(RunError, match=r"another recipe \(mixup: 0\.2 there, None asked for\)"):
        quiet(Drawing(), digits, recipe, tmp_path)


def stop_in(epoch: int):
    """A callback that stands for the stop button, in the sixth step of an epoch."""

    def stop(*numbers) -> None:
        if numbers == (epoch, 5):
            raise KeyboardInterrupt

    return stop


def test_the_stop_button_ends_a_run_cleanly_and_the_next_call_resumes(tmp_path, digits, expected):
    torch.manual_seed(0)
    model = Drawing()
    with pytest.raises(utils.TrainingStopped, match="Stopped after 3 of 6 epochs; the same call resumes there") as stop:
        quiet(model, digits, survival.RECIPE, tmp_path, on_step=stop_in(3))
    assert [record["epoch"] for record in stop.value.history] == [1, 2, 3]
    utils.plot_performance(stop.value.history, "stopped")
    checkpoint = content(tmp_path)
    assert same(checkpoint["model"], dict(model.state_dict()))  # the model is that of the last whole epoch
    assert not model.training
    assert len(quiet(Drawing(), digits, survival.RECIPE, tmp_path)) == 6
    assert same(content(tmp_path), expected)


def test_stopped_while_it_saves_a_run_has_the_epochs_that_it_tells(tmp_path, digits, expected, monkeypatch):
    rename, checkpoints = os.replace, []

    def interrupted(source, target) -> None:
        if Path(target).name == "checkpoint.pt":
            checkpoints.append(target)
            if len(checkpoints) == 3:  # of the second epoch
                raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    torch.manual_seed(0)
    with pytest.raises(utils.TrainingStopped, match="after 2 of 6 epochs"):
        quiet(Drawing(), digits, survival.RECIPE, tmp_path)
    assert len(content(tmp_path)["history"]) == 2
    assert len(quiet(Drawing(), digits, survival.RECIPE, tmp_path)) == 6
    assert same(content(tmp_path), expected)


@pytest.mark.parametrize("error", [FileNotFoundError("sketch.png"), TimeoutError("a host")])
def test_errors_of_the_callers_own_stay_what_they_are(error, tmp_path, digits):
    def fail(*_) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        quiet(Drawing(), digits, survival.RECIPE, tmp_path, on_step=fail)
    assert raised.value is error


def test_control_c_in_a_terminal_leaves_a_whole_checkpoint(tmp_path, expected):
    folder = tmp_path / "slow"
    process = start(survival.train_slowly, str(folder))
    while process.is_alive() and not (folder / "run" / "history.jsonl").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 1  # as Python ends with KeyboardInterrupt in a process of its own
    assert len(content(folder)["history"]) < 6
    assert run(folder) == 0
    assert same(content(folder), expected)


def test_a_loss_that_is_not_finite_names_the_layer_and_keeps_the_last_checkpoint(tmp_path, digits, monkeypatch):
    class Overflowing(Drawing):
        def forward(self, x):
            if self.training and self.armed:
                with torch.no_grad():
                    self.layers[5].weight.fill_(float("inf"))
            return super().forward(x)

    model = Overflowing()
    model.armed = False

    def arm(epoch: int, step: int) -> None:
        model.armed = epoch == 1 and step + 1 == math.ceil(len(digits.train_labels) / survival.RECIPE.batch_size)

    with pytest.raises(FloatingPointError) as error:
        quiet(model, digits, survival.RECIPE, tmp_path, on_step=arm)
    assert "epoch 3, batch 0" in str(error.value)
    assert "layer layers.5 (Linear), with its weights," in str(error.value)
    assert "lower learning rate" in str(error.value)
    kept = content(tmp_path)
    assert len(kept["history"]) == 2
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_out_of_memory_offers_half_the_batch(digits):
    class Greedy(Drawing):
        def forward(self, x):
            if self.training and len(x) > 2:
                torch.empty(2**50)  # bytes that no machine has
            return super().forward(x)

    with pytest.raises(MemoryError, match="batch_size=64 needs too much memory; try 32"):
        utils.train(Greedy(), digits, survival.RECIPE, device="cpu", verbose=False)


def _train_with_files_of_at_most(size: int, root: str, pipe) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        survival.train(root)
    except RunError as error:
        pipe.send(str(error))


def test_a_full_disk_loses_nothing_that_was_there(tmp_path, expected):
    assert run(tmp_path, sabotage="killed before the history's rename") == -signal.SIGKILL
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix == ".pt"}
    ours, theirs = PROCESSES.Pipe()
    process = start(_train_with_files_of_at_most, 20_000, str(tmp_path), theirs)
    assert ours.poll(30)
    assert "epoch 3 could not be saved (File too large)" in ours.recv()
    process.join()
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix == ".pt"} == before
    assert not list((tmp_path / "run").glob(".s9-unfinished-*"))
    assert run(tmp_path) == 0
    assert same(content(tmp_path), expected)


def _hold(folder, pipe) -> None:
    from s9.files import locked

    with locked(folder):
        pipe.send("held")
        pipe.recv()


def test_a_second_process_on_the_same_run_says_so_and_stops(tmp_path, digits):
    ours, theirs = PROCESSES.Pipe()
    process = start(_hold, tmp_path / "run", theirs)
    assert ours.recv() == "held"
    with pytest.raises(RunError, match=r"run is in use by another process\. Wait until that has ended, or give"):
        quiet(Drawing(), digits, survival.RECIPE, tmp_path)
    process.kill()  # the lock does not outlive it
    process.join()
    assert len(quiet(Drawing(), digits, replace(survival.RECIPE, epochs=1), tmp_path)) == 1


def _load(source: str, root: str, after_bytes: int) -> None:
    """Read a data set, and be killed while its cache is written."""
    write_bytes = Path.write_bytes

    def half(path: Path, content) -> None:
        write_bytes(path, content[:after_bytes])
        survival.die()

    Path.write_bytes = half
    utils.load_data(source, root)


def _download(urls: tuple, md5: str, root: str) -> None:
    os.environ.pop("S9_DATA_DIR", None)
    dataset.CIFAR10_MIRRORS, dataset.CIFAR10_MD5 = urls, md5
    utils.load_data(root=root)


def test_killed_while_downloading(mirror, tmp_path, random_data, monkeypatch):
    monkeypatch.delenv("S9_DATA_DIR", raising=False)
    root = tmp_path / "root"
    process = start(_download, mirror("slow"), dataset.CIFAR10_MD5, str(root))
    while process.is_alive() and not list(root.glob(".s9-unfinished-*/*")):  # until some of it is on the disk
        time.sleep(0.01)
    process.kill()
    process.join()
    assert list(root.glob(".s9-unfinished-*"))
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror("good"))
    assert torch.equal(utils.load_data(root=root).train_images, random_data.train_images)
    assert sorted(path.name for path in root.iterdir()) == [".s9-lock", "cache", "cifar-10-python.tar.gz"]


def test_killed_while_the_data_are_cached(image_folders, tmp_path, random_data):
    process = start(_load, str(image_folders), str(tmp_path / "root"), 1000)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    data = utils.load_data(image_folders, tmp_path / "root")
    assert len(data.train_images) == 40
    again = utils.load_data(image_folders, tmp_path / "root")
    assert torch.equal(data.train_images, again.train_images)


# ---------------------------------------------------------------------- networks, recipes and data that do not fit


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Flatten(), "no parameters to train"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 7)), "7 outputs, and the data 10 classes; build it with 10"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)),
            r"does not take 2 images of 3×32×32 in eval mode \(mat1",
        ),
        (nn.Conv2d(1, 10, 3), r"does not take 2 images of 3×32×32"),
        (nn.Conv2d(3, 10, 3), r"gives \(2, 10, 30, 30\) instead of logits"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(6144, 10)), r"gives \(10,\) instead of logits"),
        (nn.LSTM(32, 10), "does not take 2 images|instead of logits"),
    ],
)
def test_networks_that_do_not_fit_are_refused(network, message, digits, tmp_path):
    with pytest.raises(ValueError, match=f"^Network: .*{message}"):
        quiet(network, digits, survival.RECIPE, tmp_path)
    assert not (tmp_path / "run").exists()


class TwoHeads(Drawing):
    """Gives a second output while it trains."""

    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


class Detached(Drawing):
    def forward(self, x):
        return super().forward(x).detach()


class Crashing(Drawing):
    def forward(self, x):
        raise KeyError("nowhere")


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (Drawing, TypeError, r"Drawing is a class; give an instance, Drawing\(\)"),
        (None, TypeError, "give an nn.Module, not NoneType"),
        (TwoHeads(), ValueError, "gives tuple instead of logits .* in train mode"),
        (Detached(), ValueError, "no gradient reaches its output"),
        (Crashing(), ValueError, "does not take 2 images .* in eval mode .*nowhere"),
    ],
)
def test_what_is_no_network_to_train_is_said_in_a_sentence(network, error, message, digits, tmp_path):
    with pytest.raises(error, match=f"^Network: .*{message}"):
        quiet(network, digits, survival.RECIPE, tmp_path)
    assert not (tmp_path / "run").exists()


def test_arguments_of_another_kind_are_refused(digits, tmp_path):
    with pytest.raises(TypeError, match="Data: give what load_data returns, not str"):
        quiet(Drawing(), "data/cifar10", survival.RECIPE, tmp_path)
    with pytest.raises(TypeError, match="Recipe: give a Recipe, not dict"):
        quiet(Drawing(), digits, {"epochs": 3}, tmp_path)


def test_a_last_batch_of_one_image_is_refused_before_training_where_batchnorm_cannot_take_it(digits, tmp_path):
    def network(*layers) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), *layers, nn.Linear(16, 10))

    data = subset(digits, 129)
    recipe = utils.Recipe(epochs=1, batch_size=64, precision="fp32")
    with pytest.raises(ValueError, match=r"batch_size=64 leaves a batch of a single image.*give 65"):
        quiet(network(nn.BatchNorm1d(16)), data, recipe, tmp_path)
    assert len(quiet(network(nn.BatchNorm1d(16)), data, replace(recipe, batch_size=65), tmp_path)) == 1
    assert len(quiet(network(nn.ReLU()), data, recipe, tmp_path / "other")) == 1


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/tmp/x", "../../x", "x" * 300, "a\\b"])
def test_names_of_runs_stay_inside_their_root(name, digits, tmp_path):
    with pytest.raises(RunError, match="is no name for a run"):
        utils.train(Drawing(), digits, survival.RECIPE, run=name, root=tmp_path / "runs", verbose=False)
    assert not list(tmp_path.iterdir())


def test_files_of_the_users_own_in_a_runs_folder_stay(digits, tmp_path):
    (tmp_path / "run" / "backup.tmp").mkdir(parents=True)
    (tmp_path / "run" / "thesis.tmp").write_text("important")
    quiet(Drawing(), digits, replace(survival.RECIPE, epochs=1), tmp_path)
    assert (tmp_path / "run" / "thesis.tmp").read_text() == "important"
    assert (tmp_path / "run" / "backup.tmp").is_dir()


def test_a_last_batch_of_one_image_for_each_of_several_processes(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    data, recipe = subset(digits, 131), utils.Recipe(batch_size=64)
    check_network(network, data, recipe)
    with pytest.raises(ValueError, match=r"batch_size=64 leaves a batch of a single image.*give 66"):
        check_network(network, data, recipe, processes=2)
    with pytest.raises(ValueError, match="train in fewer processes"):
        check_network(network, data, recipe, processes=100)


def test_a_run_that_cannot_be_written_says_so(digits, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunError, match="run cannot be used for a run"):
        quiet(Drawing(), digits, survival.RECIPE, tmp_path)


@pytest.mark.parametrize(
    "content",
    [{}, [], {"identity": {}}, {"identity": 3, "history": [], "model": {}, "random": {}, "precision": "float32"},
     {"identity": {"recipe": 3}, "history": [], "model": {}, "random": {}, "precision": "float32"}],
)  # fmt: skip
def test_crafted_checkpoints_are_set_aside(content, digits, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    save_tensors(content, tmp_path / "run" / "checkpoint.pt")
    assert len(quiet(Drawing(), digits, replace(survival.RECIPE, epochs=1), tmp_path)) == 1
    said = capsys.readouterr().out
    assert "is not a checkpoint" in said
    assert "weights_only" not in said


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "nn"}, {"history": ["a"]}, {"history": [{"epoch": 2}]}, {"identity": {"outputs": ["a"]}},
        {"identity": {"outputs": [{}]}},
    ],
    ids=str,
)  # fmt: skip
def test_checkpoints_with_odd_parts_are_set_aside(changes, digits, tmp_path, capsys):
    recipe = replace(survival.RECIPE, epochs=1)
    quiet(Drawing(), digits, recipe, tmp_path)
    path = tmp_path / "run" / "checkpoint.pt"
    checkpoint = read_checkpoint(path)
    changes = changes | {"identity": checkpoint["identity"] | changes.get("identity", {})}
    save_tensors(checkpoint | changes, path)
    assert len(quiet(Drawing(), digits, recipe, tmp_path)) == 1
    assert "checkpoint.pt is not a checkpoint; it was set aside" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["model", "optimizer", "scheduler", "scaler", "random"])
@pytest.mark.parametrize("value", [{}, {"state": 3}])
def test_checkpoints_whose_parts_do_not_fit_are_refused(part, value, digits, tmp_path):
    recipe = replace(survival.RECIPE, epochs=1)
    quiet(Drawing(), digits, recipe, tmp_path)
    path = tmp_path / "run" / "checkpoint.pt"
    save_tensors(read_checkpoint(path) | {part: value}, path)
    if part in ("scheduler", "scaler"):  # torch takes any state of a schedule, and none of a scaler that is off
        quiet(Drawing(), digits, recipe, tmp_path)
        return
    with pytest.raises(RunError, match="run holds a checkpoint whose parts do not fit this network and recipe"):
        quiet(Drawing(), digits, recipe, tmp_path)


def test_a_network_whose_shapes_are_not_known_yet_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match=r"1\.weight has no shape yet; call the network once"):
        quiet(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), digits, survival.RECIPE, tmp_path)


def test_every_flipped_bit_in_a_checkpoint_is_noticed(digits, tmp_path):
    quiet(Drawing(), digits, replace(survival.RECIPE, epochs=1), tmp_path)
    path = tmp_path / "run" / "checkpoint.pt"
    whole = path.read_bytes()
    for number, place in enumerate(torch.linspace(0, len(whole) - 1, 120).long().tolist()):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << number % 8]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
            read_checkpoint(path)


def test_a_network_with_nan_weights_is_refused(digits, tmp_path):
    model = Drawing()
    model.layers[0].bias.data[3] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.0\.bias holds NaN"):
        quiet(model, digits, survival.RECIPE, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5000}, "batch_size=5000 is more than the 1437 training images; give 1437 or less"),
        ({"epochs": 1, "batch_size": 1437}, "no room to rise in 1 steps"),
        ({"epochs": 1, "batch_size": 300, "warmup": 0.15}, "no room to rise in 5 steps"),
    ],
)
def test_recipes_that_do_not_fit_the_data_are_refused(changes, message, digits, tmp_path):
    with pytest.raises(ValueError, match=message):
        quiet(Drawing(), digits, replace(survival.RECIPE, **changes), tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train_labels", torch.full((40,), 2), "train_labels reach from 2 to 2, and there are 2 classes"),
        ("test_labels", torch.zeros(20), "test_labels are .*float32; give one int64 an image"),
        ("test_labels", torch.zeros(19, dtype=torch.int64), r"test_labels are \(19,\)"),
        ("train_images", torch.zeros(40, 1, 32, 32, dtype=torch.uint8), r"train_images are \(40, 1, 32, 32\)"),
        ("train_images", torch.zeros(40, 3, 32, 32), "torch.float32; give .* of uint8"),
    ],
)
def test_data_made_by_hand_are_checked(field, value, message, random_data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    with pytest.raises(utils.DataError, match=message):
        utils.train(model, random_data._replace(**{field: value}), utils.Recipe(epochs=1, batch_size=8), verbose=False)


def test_random_states_of_the_caller_are_kept_even_when_training_fails(digits, tmp_path):
    import random

    first, second = Drawing(), Drawing()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    quiet(first, digits, replace(survival.RECIPE, epochs=1), tmp_path)
    with pytest.raises(RunError):
        quiet(second, digits, replace(survival.RECIPE, epochs=2), tmp_path)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
