import dataclasses
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

import utils
from models import StudentNet
from s9 import recipes
from s9.augmented_batches import Batches, channel_statistics
from s9.data import subset
from s9.files import write_whole
from s9.guards import count_parameters
from s9.machine import resolve_precision
from s9.optimizers import make_optimizer
from s9.randomness import epoch_seed
from s9.recipes import STUDENT_RECIPE
from s9.results import history_log, read_history
from s9.runs import read_checkpoint, sample_outputs
from s9.weights import Preprocessing
from utils import Recipe, train

TINY = Recipe(epochs=3, batch_size=16, learning_rate=0.05, precision="fp32")


def small_net(classes: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def quiet(*args, **kwargs):
    return train(*args, verbose=False, device="cpu", **kwargs)


def without_seconds(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def test_seed_recipe_is_the_students():
    said = {
        "epochs": 25,
        "batch_size": 512,
        "learning_rate": 0.01,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "optimizer": "sgd",
    }
    said |= {"schedule": "step", "step_epochs": 15, "step_factor": 0.1, "label_smoothing": 0.0}
    assert said.items() <= dataclasses.asdict(STUDENT_RECIPE).items()


def test_every_field_of_a_recipe_has_a_comment():
    source = Path(recipes.__file__).read_text()
    for field in dataclasses.fields(Recipe):
        assert re.search(rf"^    {field.name}: \w+ = .*  # \S", source, re.MULTILINE), field.name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("epochs", 1.5), ("batch_size", -1), ("optimizer", "sdg"), ("learning_rate", 0.0),
        ("learning_rate", float("nan")), ("momentum", 1.0), ("weight_decay", -1e-4), ("schedule", "cosine"),
        ("crop", -1), ("label_smoothing", 1.0), ("seed", -1), ("precision", "fp8"), ("nesterov", True),
    ],
)  # fmt: skip
def test_recipes_that_cannot_work_are_refused_by_field(field, value):
    with pytest.raises(ValueError, match=field):
        Recipe(**{field: value})


def reference_training(model, data, recipe, learning_rates) -> nn.Module:
    """The training loop written out: plain SGD by hand, one step after another."""
    mean, std = channel_statistics(data.train_images)
    batches = Batches(
        data.train_images, data.train_labels, recipe.batch_size, mean, std, shuffle=True, crop=recipe.crop,
        flip=recipe.flip, seed=recipe.seed,
    )  # fmt: skip
    velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
    learning_rates = iter(learning_rates)
    model.train()
    for epoch in range(recipe.epochs):
        torch.manual_seed(epoch_seed(recipe.seed, epoch, "dropout"))
        for images, labels in batches:
            model.zero_grad()
            F.nll_loss(model(images).log_softmax(1), labels).backward()
            rate = next(learning_rates)
            with torch.no_grad():
                for parameter, v in zip(model.parameters(), velocity, strict=True):
                    v.mul_(recipe.momentum).add_(parameter.grad)
                    parameter -= rate * v
    assert next(learning_rates, None) is None
    return model


def test_training_is_gradient_descent_with_a_stepped_rate(random_data):
    recipe = replace(TINY, epochs=4, step_epochs=2, momentum=0.5, crop=2, flip=True, seed=5)
    model, reference = small_net().to(memory_format=torch.channels_last), small_net()
    history = quiet(model, random_data, recipe)
    rates = [0.05] * 6 + [0.005] * 6  # 3 batches an epoch
    reference_training(reference.to(memory_format=torch.channels_last), random_data, recipe, rates)
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-4, atol=1e-5)
    assert [record["learning_rate"] for record in history] == pytest.approx([0.05, 0.05, 0.005, 0.005])


def test_one_cycle_rises_and_falls_to_nothing(random_data):
    recipe = replace(TINY, epochs=20, schedule="one-cycle", warmup=0.25)
    rates = [record["learning_rate"] for record in quiet(small_net(), random_data, recipe)]
    peak = max(range(20), key=rates.__getitem__)
    assert peak in (4, 5)
    assert rates[peak] == pytest.approx(0.05, rel=0.02)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.05 / 1000


def test_weight_decay_shrinks_matrices_only(random_data):
    model = small_net()
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    optimizer = make_optimizer(model, Recipe(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        torch.testing.assert_close(parameter.data, torch.full_like(parameter, 0.95 if parameter.ndim > 1 else 1.0))


def test_history_agrees_with_scikit_learn(digits):
    model = small_net(10)
    history = quiet(model, digits, replace(TINY, epochs=2, batch_size=128))
    predicted, probabilities = utils.predict(model, digits, device="cpu", precision="fp32")
    last = history[-1]
    assert last["test_accuracy"] == pytest.approx(100 * accuracy_score(digits.test_labels, predicted))
    assert last["test_correct"] == accuracy_score(digits.test_labels, predicted, normalize=False)
    assert last["test_loss"] == pytest.approx(log_loss(digits.test_labels, probabilities, labels=range(10)), rel=1e-5)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert not model.training


def test_predictions_averaged_with_the_mirror_image(digits):
    model = small_net(10).eval()
    mirrored = digits._replace(test_images=digits.test_images.flip(3))
    (_, plain), (_, other), (_, both) = (
        utils.predict(model, data, device="cpu", precision="fp32", flip=flip)
        for data, flip in ((digits, False), (mirrored, False), (digits, True))
    )
    expected = np.sqrt(plain * other)  # the mean of logits is the geometric mean of probabilities, up to a factor
    np.testing.assert_allclose(both, expected / expected.sum(1, keepdims=True), rtol=1e-4)
    assert np.abs(both - plain).max() > 1e-3


def test_training_loss_and_accuracy_are_of_the_epoch(random_data):
    recipe = replace(TINY, epochs=1, learning_rate=1e-12)  # as good as no learning: the model stays as it is
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    (record,) = quiet(model, random_data, recipe)
    _, probabilities = utils.predict(
        model, random_data._replace(test_images=random_data.train_images, test_labels=random_data.train_labels),
        device="cpu", precision="fp32",
    )  # fmt: skip
    labels = random_data.train_labels.numpy()
    assert record["train_loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-4)
    assert record["train_accuracy"] == pytest.approx(100 * accuracy_score(labels, probabilities.argmax(1)))


def test_same_seed_same_history_and_the_callers_random_state_is_kept(random_data, state_of_numpy_and_torch):
    first = quiet(small_net(), random_data, TINY)
    model = small_net()
    before = state_of_numpy_and_torch()
    second = quiet(model, random_data, TINY)
    assert state_of_numpy_and_torch() == before
    assert without_seconds(first) == without_seconds(second)
    other = quiet(small_net(), random_data, replace(TINY, seed=1))
    assert without_seconds(first) != without_seconds(other)


def stop_at(epoch: int, step: int = 1):
    """A callback that stands for somebody's Ctrl-C."""

    def stop(*numbers) -> None:
        if numbers == (epoch, step):
            raise KeyboardInterrupt

    return stop


CHANGES = [
    {},
    {"momentum": 0.9, "nesterov": True, "schedule": "one-cycle"},
    {"optimizer": "adamw", "crop": 4},
    {"optimizer": "muon", "momentum": 0.9},
]


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("changes", CHANGES)
def test_a_stopped_run_resumes_as_if_it_had_not_been(random_data, tmp_path, epoch, changes):
    recipe = replace(TINY, epochs=4, **changes)
    whole, stopped = small_net(), small_net()
    expected = quiet(whole, random_data, recipe)
    with pytest.raises(utils.TrainingStopped, match=f"Stopped after {epoch} of 4 epochs; the same call resumes"):
        quiet(stopped, random_data, recipe, run="stopped", root=tmp_path, on_step=stop_at(epoch))
    for model in (stopped, small_net(seed=9)):  # whatever the second call starts from, the checkpoint counts
        shutil.copytree(tmp_path / "stopped", tmp_path / "again", dirs_exist_ok=True)
        history = quiet(model, random_data, recipe, run="again", root=tmp_path)
        assert without_seconds(history) == without_seconds(expected)
        assert torch.equal(weights(model), weights(whole))
        shutil.rmtree(tmp_path / "again")


@pytest.mark.parametrize("epoch", [0, 2])
def test_stopped_without_a_run_the_model_is_as_after_its_last_whole_epoch(random_data, epoch):
    recipe = replace(TINY, epochs=4)
    model, expected = small_net(), small_net()
    before = weights(model)
    with pytest.raises(utils.TrainingStopped) as stop:
        quiet(model, random_data, recipe, on_step=stop_at(epoch))
    assert str(stop.value) == f"Stopped after {epoch} of 4 epochs."
    assert not model.training
    if epoch == 0:
        assert stop.value.history == []
        assert torch.equal(weights(model), before)
    else:
        with pytest.raises(utils.TrainingStopped) as other:
            quiet(expected, random_data, recipe, on_step=stop_at(epoch, step=0))
        assert torch.equal(weights(model), weights(expected))
        assert [record["epoch"] for record in other.value.history] == [1, 2]
        predicted, _ = utils.predict(model, random_data, device="cpu", precision="fp32")
        assert (predicted == random_data.test_labels.numpy()).sum() == stop.value.history[-1]["test_correct"]


def test_a_finished_run_is_loaded_and_leaves_its_records(random_data, tmp_path, capsys):
    model = small_net()
    history = quiet(model, random_data, TINY, run="done", root=tmp_path)
    home = tmp_path / "done"
    assert read_history(home / "history.jsonl") == history
    assert json.loads((home / "recipe.json").read_text()) == dataclasses.asdict(TINY)
    surroundings = json.loads((home / "environment.json").read_text())
    assert surroundings["torch"] == torch.__version__
    assert surroundings["data"] == "noise, made for tests"
    assert surroundings["precision"] == "float32"
    assert sorted(path.name for path in home.iterdir()) == [
        ".s9-lock", "checkpoint.previous.pt", "checkpoint.pt", "environment.json", "history.jsonl", "model.json",
        "model.pt", "recipe.json",
    ]  # fmt: skip
    again = small_net(seed=9)
    capsys.readouterr()
    trained_again = lambda *_: pytest.fail("trained again")  # noqa: E731
    assert quiet(again, random_data, TINY, run="done", root=tmp_path, on_step=trained_again) == history
    assert capsys.readouterr().out == f"{home}: 3 of 3 epochs are done, and were loaded.\n"
    assert torch.equal(weights(again), weights(model))


def test_a_finished_run_goes_on_to_more_epochs_where_its_schedule_is_the_same(random_data, tmp_path):
    long = replace(TINY, epochs=5, step_epochs=2, momentum=0.9, crop=2, flip=True)
    straight = small_net()
    expected = quiet(straight, random_data, long)
    for epochs in (2, 5):
        model = small_net()
        history = quiet(model, random_data, replace(long, epochs=epochs), run="longer", root=tmp_path)
    assert without_seconds(history) == without_seconds(expected)
    assert torch.equal(weights(model), weights(straight))
    assert json.loads((tmp_path / "longer" / "recipe.json").read_text())["epochs"] == 5
    with pytest.raises(ValueError, match="epochs: 5 there, 4 asked for"):
        quiet(small_net(), random_data, replace(long, epochs=4), run="longer", root=tmp_path)
    one_cycle = replace(TINY, schedule="one-cycle", warmup=0.5, epochs=2)
    quiet(small_net(), random_data, one_cycle, run="one-cycle", root=tmp_path)
    with pytest.raises(ValueError, match="epochs: 2 there, 3 asked for"):
        quiet(small_net(), random_data, replace(one_cycle, epochs=3), run="one-cycle", root=tmp_path)


def test_a_run_of_something_else_is_refused_and_kept(random_data, digits, tmp_path):
    quiet(small_net(), random_data, TINY, run="mine", root=tmp_path)
    before = (tmp_path / "mine" / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"recipe.*learning_rate: 0\.05 there, 0\.1 asked for"):
        quiet(small_net(), random_data, replace(TINY, learning_rate=0.1), run="mine", root=tmp_path)
    with pytest.raises(ValueError, match="network"):
        quiet(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), random_data, TINY, run="mine", root=tmp_path)
    with pytest.raises(ValueError, match="data"):
        quiet(small_net(), random_data._replace(copy="another"), TINY, run="mine", root=tmp_path)
    for changed in (
        random_data._replace(train_labels=1 - random_data.train_labels),
        random_data._replace(test_labels=1 - random_data.test_labels),
        random_data._replace(test_images=255 - random_data.test_images),
        random_data._replace(train_images=255 - random_data.train_images),
        random_data._replace(classes=("odd", "even")),
    ):
        with pytest.raises(ValueError, match="another content"):
            quiet(small_net(), changed, TINY, run="mine", root=tmp_path)
    assert (tmp_path / "mine" / "checkpoint.pt").read_bytes() == before


class Rectified(nn.Module):
    """The same layers, whether what the ReLU gives is used or dropped."""

    def __init__(self, use_relu: bool):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 2)
        self.uses = (use_relu,)

    def forward(self, x):
        x = self.first(x.flatten(1))
        rectified = self.relu(x)
        return self.last(rectified if self.uses[0] else x)


class Dropping(Rectified):
    """Dropout that its representation does not show."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


def test_a_network_that_computes_something_else_is_another(random_data, tmp_path):
    """A student repairs `forward` and runs the same cell again."""
    quiet(Rectified(False), random_data, TINY, run="mine", root=tmp_path)
    assert str(Rectified(False)) == str(Rectified(True))
    with pytest.raises(ValueError, match=r"another outputs.*the same layers compute something else"):
        quiet(Rectified(True), random_data, TINY, run="mine", root=tmp_path)
    Dropping.__name__ = "Rectified"
    with pytest.raises(ValueError, match="the same layers compute something else"):
        quiet(Dropping(False), random_data, TINY, run="mine", root=tmp_path)
    quiet(Rectified(False), random_data, TINY, run="mine", root=tmp_path)


class Deep(nn.Module):
    """Convolutions with a ReLU behind each but `without`."""

    def __init__(self, depth: int, norm: type[nn.Module], without: int | None = None):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(8 if i else 3, 8, 3, padding=1) for i in range(depth))
        self.norms = nn.ModuleList(norm(8) for _ in range(depth))
        self.last, self.without = nn.Linear(8, 2), without

    def forward(self, x):
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(x))
            x = x if i == self.without else x.relu()
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
@pytest.mark.parametrize("depth", [3, 12, 40])
def test_every_relu_that_is_left_out_is_noticed(depth, norm):
    whole = torch.tensor(sample_outputs(Deep(depth, norm), (3, 32, 32)))
    assert whole.isfinite().all()
    for without in (0, depth // 2, depth - 1):
        other = torch.tensor(sample_outputs(Deep(depth, norm, without), (3, 32, 32)))
        assert (other - whole).abs().max() > 0.005 * whole.abs().max()  # a run is refused from 0.001 on


class Scaled(nn.Module):
    """Multiplies by a constant that is no parameter."""

    def __init__(self, scale: float):
        super().__init__()
        self.linear = nn.Linear(3072, 2)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x):
        return self.linear(self.scale * x.flatten(1))


def test_a_constant_belongs_to_what_a_network_computes():
    assert sample_outputs(Scaled(1.0), (3, 32, 32)) != sample_outputs(Scaled(-1.0), (3, 32, 32))


@pytest.mark.parametrize(
    "build",
    [
        small_net,
        lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(3072, 2))),
        lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(3072, 2))),
    ],
    ids=["BatchNorm", "spectral norm", "weight norm"],
)
def test_training_does_not_make_it_another_network(build, random_data):
    model = build()
    before = sample_outputs(model, (3, 32, 32))
    quiet(model, random_data, TINY)
    assert sample_outputs(model, (3, 32, 32)) == before


class Keeping(nn.Module):
    """Keeps its feature map, for figures."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3072, 2)

    def forward(self, x):
        self.map = self.linear(x.flatten(1))
        return self.map


def test_a_network_that_keeps_its_feature_map_and_was_called_before_trains(random_data, tmp_path):
    model = Keeping()
    model(torch.zeros(2, 3, 32, 32))
    assert len(quiet(model, random_data, TINY, run="mine", root=tmp_path)) == 3


def test_images_permuted_from_numpys_layout_are_the_same_data(random_data, tmp_path):
    """Not contiguous in memory."""
    permuted = random_data._replace(
        train_images=random_data.train_images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    )
    history = quiet(small_net(), permuted, TINY, run="mine", root=tmp_path)
    assert quiet(small_net(), random_data, TINY, run="mine", root=tmp_path) == history


def test_a_resumed_run_keeps_the_precision_that_it_began_with(random_data, tmp_path, monkeypatch, capsys):
    recipe = replace(TINY, precision="auto")
    monkeypatch.setattr(utils, "resolve_precision", lambda precision, device: torch.bfloat16)
    with pytest.raises(utils.TrainingStopped):
        quiet(small_net(), random_data, recipe, run="mine", root=tmp_path, on_step=stop_at(1))
    monkeypatch.setattr(utils, "resolve_precision", lambda precision, device: torch.float32)
    train(small_net(), random_data, recipe, run="mine", root=tmp_path, device="cpu")
    said = capsys.readouterr().out
    assert "Device: cpu, bfloat16" in said
    assert "mine: stays in torch.bfloat16, in which it began, instead of torch.float32." in said
    assert json.loads((tmp_path / "mine" / "environment.json").read_text())["precision"] == "bfloat16"


def test_the_schedule_waits_where_fp16_skips_a_step(random_data):
    """A gradient that overflows fp16 leads to no step, and so not to the next rate."""
    recipe = replace(TINY, schedule="one-cycle", epochs=4)
    trainer = utils.Trainer(small_net(), random_data, recipe, torch.device("cpu"), torch.float16)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    images, labels = next(iter(trainer.batches))
    rates = [trainer.descend(trainer.loss(images, labels)[0]) for _ in range(2)]
    assert rates[0] == rates[1]
    assert trainer.scaler.get_scale() < 2.0**60


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_gives_the_same(random_data):
    """The mode that makes CUDA graphs on a GPU; on a CPU it compiles all the same."""
    recipe = replace(TINY, epochs=2)
    plain, compiled = (nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    expected = quiet(plain, random_data, recipe)
    history = quiet(compiled, random_data, recipe, compile_mode="reduce-overhead")
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-5)
    assert history[-1]["train_loss"] == pytest.approx(expected[-1]["train_loss"], rel=1e-4)


def test_a_diverging_loss_is_told(random_data):
    with pytest.raises(FloatingPointError, match="lower learning rate") as error:
        quiet(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), random_data, replace(TINY, learning_rate=1e38))
    assert "fp32" not in str(error.value)  # which it was in


class Root(nn.Module):
    """Takes the root of what is negative in any picture that is not black."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3072, 2)

    def forward(self, x):
        return self.linear((-x.flatten(1).square()).sqrt())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_before_the_first_step_the_learning_rate_is_not_blamed(random_data, precision):
    with pytest.raises(FloatingPointError, match=r"epoch 1, batch 0; layer linear \(Linear\) was first") as error:
        quiet(Root(), random_data, replace(TINY, precision=precision))
    assert "learning rate" not in str(error.value)
    assert ("fp32" in str(error.value)) == (precision == "bf16")


def test_training_prints_in_the_students_form(random_data, capsys):
    train(small_net(), random_data, replace(TINY, epochs=2, step_epochs=1), device="cpu")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "Learning rate: 0.05" in lines
    assert "Batch size: 16" in lines
    assert [line for line in lines if line.startswith("Epoch ")] == ["Epoch 1", "Epoch 2"]
    test_lines = [line for line in lines if line.startswith("Test set")]
    assert len(test_lines) == 2
    for line in test_lines:
        loss, correct, percent = re.fullmatch(
            r"Test set: Average loss: (\d+\.\d{4}), Accuracy: (\d+)/20 \((\d+\.\d\d)%\)", line
        ).groups()
        assert float(percent) == 5 * int(correct)
        assert float(loss) > 0
    rates = [line for line in lines if line.startswith("Adjusting")]
    assert rates == [
        f"Adjusting learning rate of group 0 to {rate}." for rate in ("5.0000e-02", "5.0000e-03", "5.0000e-04")
    ]
    assert re.search(r"Train: Loss=\d+\.\d{4} Batch_id=2 Accuracy=\d+\.\d\d: 100%", out)  # in its place among the lines
    assert not err


def test_history_log_holds_what_training_printed(random_data, capsys):
    history = train(small_net(), random_data, TINY, device="cpu")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Epoch ", "Test set"))]
    log = history_log(history, 20).splitlines()
    assert [line for line in log if line.startswith(("Epoch ", "Test set"))] == printed


class Brightness(nn.Module):
    """Scores a picture by the normalised brightness of its three channels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x.mean((2, 3))


def test_classify_takes_the_middle_of_a_picture_and_normalises_it(tmp_path):
    picture = Image.new("RGB", (300, 100), "black")
    picture.paste((255, 51, 0), (90, 0, 210, 100))  # the square in the middle, and some pixels around it
    picture.save(tmp_path / "wide.png")
    pixels = (torch.tensor([1.0, 0.2, 0.0]) - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor(
        [0.2470, 0.2435, 0.2616]
    )
    expected = pixels.softmax(0).tolist()
    model = Brightness()
    with pytest.raises(ValueError, match="no preprocessing"):
        utils.classify(model, picture)
    model.preprocessing = Preprocessing(("red", "green", "blue"), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    for source in (picture, tmp_path / "wide.png", str(tmp_path / "wide.png")):
        answer = utils.classify(model, source)
        assert list(answer) == ["red", "green", "blue"]
        assert list(answer.values()) == pytest.approx(expected, rel=1e-4)
    (tmp_path / "text.png").write_text("not an image")
    for source in (tmp_path / "text.png", tmp_path / "nowhere.png"):
        with pytest.raises(utils.DataError, match=f"{source.name} cannot be read as a picture"):
            utils.classify(model, source)


def test_parameters_are_counted_if_they_are_trained():
    model = nn.Linear(5, 3)
    model.bias.requires_grad_(False)
    assert count_parameters(model) == 15


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    write_whole(tmp_path / "file", lambda path: path.write_text("whole"))
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_precision():
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu) == torch.float32
    assert resolve_precision("bf16", cpu) == torch.bfloat16
    assert resolve_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="GPU"):
        resolve_precision("fp16", cpu)


def test_bf16_is_near_fp32(digits):
    torch.manual_seed(0)
    model = StudentNet()
    _, exact = utils.predict(model, digits, device="cpu", precision="fp32")
    _, quick = utils.predict(model, digits, device="cpu", precision="bf16")
    np.testing.assert_allclose(quick, exact, atol=0.02)


def test_fp16_takes_scaled_losses_and_the_same_steps(random_data, tmp_path, monkeypatch):
    """As on a GPU without bf16; fp16 is refused on a CPU, which can do it all the same."""
    exact, scaled = small_net(), small_net()
    before = weights(exact)
    expected = quiet(exact, random_data, TINY)
    monkeypatch.setattr(utils, "resolve_precision", lambda precision, device: torch.float16)
    history = quiet(scaled, random_data, TINY, run="fp16", root=tmp_path)
    assert history[-1]["train_loss"] == pytest.approx(expected[-1]["train_loss"], rel=0.05)
    assert (weights(scaled) - weights(exact)).norm() < 0.1 * (weights(exact) - before).norm()
    checkpoint = read_checkpoint(tmp_path / "fp16" / "checkpoint.pt")
    assert checkpoint["scaler"]["scale"] > 1


def test_student_learns_from_real_photographs(cifar10):
    """The student's first epoch of 98 steps ends at 26.39 %; 63 small steps must be clearly over chance."""
    torch.manual_seed(0)
    data = subset(cifar10, 4_000)
    data = data._replace(test_images=data.test_images[::10], test_labels=data.test_labels[::10])
    (record,) = quiet(StudentNet(), data, replace(STUDENT_RECIPE, epochs=1, batch_size=64))
    assert 15 < record["test_accuracy"] < 35
