"""netreview.watch on loops with a known fault, and on healthy ones of many styles, of which nothing may be said."""

import contextlib
import copy
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netreview
import netreview.__main__

CLASSES = 4


def network(dropout=0.1):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout),
        nn.Linear(24, CLASSES),
    )  # fmt: skip


class Setup:
    """A network, an optimiser and batches, all new; loops change what they need."""

    def __init__(self):
        torch.manual_seed(0)
        self.model, self.loss_fn, self.steps = network(), F.cross_entropy, 6
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)
        self.watching = contextlib.ExitStack()

    def begin(self):
        """Watch from here on."""
        self.watching.close()
        self.watched = self.watching.enter_context(netreview.watch(self.model, self.optimizer))

    def batches(self, count=None, size=16):
        for _ in range(count or self.steps):
            yield torch.randn(size, 3, 8, 8), torch.randint(CLASSES, (size,))

    def backward(self, images, labels):
        loss = self.loss_fn(self.model(images), labels)
        loss.backward()
        return loss

    def step(self, images, labels):
        self.optimizer.zero_grad()
        loss = self.backward(images, labels)
        self.optimizer.step()
        return loss


def plain(s):
    for images, labels in s.batches():
        s.step(images, labels)


# ------------------------------------------------------------------------------------------------------------- faults


def no_zero_grad(s):
    for images, labels in s.batches():
        s.backward(images, labels)
        s.optimizer.step()


def zero_grad_of_another_model(s):
    other = network()
    for images, labels in s.batches():
        other.zero_grad()
        s.backward(images, labels)
        s.optimizer.step()


def zero_grad_each_epoch(s):
    for _ in range(2):
        s.optimizer.zero_grad()
        no_zero_grad(s)


def cleared_before_the_step(s):
    for images, labels in s.batches():
        s.backward(images, labels)
        s.optimizer.zero_grad()
        s.optimizer.step()


def cleared_to_zero_before_the_step(s):
    for images, labels in s.batches():
        s.backward(images, labels)
        s.optimizer.zero_grad(set_to_none=False)
        s.optimizer.step()


def no_step(s):
    for images, labels in s.batches():
        s.optimizer.zero_grad()
        s.backward(images, labels)


def step_is_not_called(s):
    for images, labels in s.batches():
        s.optimizer.zero_grad()
        s.backward(images, labels)
        s.optimizer.step  # noqa: B018


def no_backward(s):
    for images, labels in s.batches():
        s.optimizer.zero_grad()
        s.loss_fn(s.model(images), labels)
        s.optimizer.step()


def no_backward_and_no_step(s):
    for images, labels in s.batches():
        s.loss_fn(s.model(images), labels)


def step_before_backward(s):
    for images, labels in s.batches():
        s.optimizer.zero_grad(set_to_none=False)
        loss = s.loss_fn(s.model(images), labels)
        s.optimizer.step()
        loss.backward()


def rate_of_zero(s):
    s.optimizer.param_groups[0]["lr"] = 0.0
    plain(s)


def model_rebuilt(s):
    s.model.load_state_dict(s.model.state_dict())
    s.optimizer = torch.optim.SGD(network().parameters(), 0.05)
    s.begin()
    for images, labels in s.batches():
        s.model.zero_grad()
        s.backward(images, labels)
        s.optimizer.step()


def model_copied(s):
    s.optimizer = torch.optim.Adam(copy.deepcopy(s.model).parameters())
    s.begin()
    for images, labels in s.batches():
        s.model.zero_grad()
        s.backward(images, labels)
        s.optimizer.step()


def layer_added_later(s):
    s.model[6] = nn.Linear(24, CLASSES)
    s.begin()
    for images, labels in s.batches():
        s.model.zero_grad()
        s.backward(images, labels)
        s.optimizer.step()


def body_only(s):
    s.optimizer = torch.optim.SGD(s.model[0].parameters(), 0.05)
    s.begin()
    for images, labels in s.batches():
        s.model.zero_grad()
        s.backward(images, labels)
        s.optimizer.step()


def eval_mode(s):
    s.model.eval()
    plain(s)


def eval_after_the_first_test(s):
    for epoch in range(3):
        if epoch:
            s.model.eval()
        plain(s)


def under_no_grad(s):
    with torch.no_grad():
        for images, labels in s.batches():
            s.loss_fn(s.model(images), labels)
            s.optimizer.step()


def detached(s):
    for images, labels in s.batches():
        s.loss_fn(s.model(images).detach(), labels).backward()


def loss_of_argmax(s):
    for images, labels in s.batches():
        s.loss_fn(F.one_hot(s.model(images).argmax(1), CLASSES).float(), labels).backward()


def detached_and_regularised(s):
    for images, labels in s.batches():
        s.optimizer.zero_grad()
        loss = s.loss_fn(s.model(images).detach(), labels) + sum(p.square().sum() for p in s.model.parameters())
        loss.backward()
        s.optimizer.step()


def total_of_losses(s):
    total = 0
    for images, labels in s.batches():
        total += s.step(images, labels)


def total_as_tensor(s):
    total = torch.zeros(())
    for images, labels in s.batches():
        total = total + s.step(images, labels)


def list_of_losses(s):
    s.losses = []
    for images, labels in s.batches():
        s.losses.append(s.step(images, labels))


def dictionary_of_losses(s):
    s.logged = {}
    for number, (images, labels) in enumerate(s.batches()):
        s.logged[number] = {"loss": s.step(images, labels)}


def rate_far_too_high(s):
    s.optimizer.param_groups[0]["lr"] = 1e30
    s.model[1] = nn.Identity()
    s.begin()
    s.steps = 12
    plain(s)


def nan_in_the_data(s):
    for images, labels in s.batches():
        images[0] = float("nan")
        s.step(images, labels)


def logarithm_of_zero(s):
    s.loss_fn = lambda outputs, labels: F.nll_loss(outputs.clamp(0, 0).log(), labels)
    plain(s)


def regression(s, loss):
    s.model[6] = nn.Linear(24, 1)
    s.optimizer = torch.optim.SGD(s.model.parameters(), 0.01)
    s.begin()
    s.loss_fn = loss
    for images, labels in s.batches():
        s.step(images, labels.float())


def mse_broadcasts(s):
    regression(s, F.mse_loss)


def difference_broadcasts(s):
    regression(s, lambda outputs, labels: (outputs - labels).square().mean())


def smooth_l1_broadcasts(s):
    regression(s, nn.SmoothL1Loss())


def labels_from_one(s):
    for images, labels in s.batches():
        s.step(images, labels + 1)


def label_of_minus_two(s):
    s.loss_fn = lambda outputs, labels: F.cross_entropy(outputs, labels, ignore_index=-2)
    for images, labels in s.batches():
        labels[0] = -2
        s.step(images, labels)


def one_class_a_batch(s):
    for number, (images, labels) in enumerate(s.batches()):
        s.step(images, labels * 0 + number * CLASSES // s.steps)


def sorted_labels(s):
    for images, labels in s.batches():
        s.step(images, labels.sort().values)


def the_same_batch(s):
    batch = next(s.batches())
    for _ in range(8):
        s.step(*batch)


def batches_of_one(s):
    for images, labels in s.batches(size=1):
        s.step(images, labels)


def raw_pixels(s):
    for _, labels in s.batches():
        s.step(torch.randint(256, (16, 3, 8, 8)).float(), labels)


def constant_guess(s):
    s.optimizer = torch.optim.SGD(s.model.parameters(), 1e-9)
    s.begin()
    s.model[6].weight.data.zero_()
    s.steps = 130
    plain(s)


def step_lr_each_batch(s):
    scheduler = torch.optim.lr_scheduler.StepLR(s.optimizer, 3, 0.1)
    s.begin()
    for images, labels in s.batches(20):
        s.step(images, labels)
        scheduler.step()


def exponential_each_batch(s):
    scheduler = torch.optim.lr_scheduler.ExponentialLR(s.optimizer, 0.5)
    s.begin()
    for images, labels in s.batches(20):
        s.step(images, labels)
        scheduler.step()


def one_layer_in_vain(s):
    s.model.add_module("spare", nn.Linear(3, 3))
    s.model.forward = lambda x: s.model[6](s.model[:6](x))
    s.optimizer.add_param_group({"params": s.model.spare.parameters()})
    s.begin()
    plain(s)


FAULTS = {
    no_zero_grad: "gradients-not-cleared",
    zero_grad_of_another_model: "gradients-not-cleared",
    zero_grad_each_epoch: "gradients-not-cleared",
    cleared_before_the_step: "gradients-cleared-early",
    cleared_to_zero_before_the_step: "gradients-cleared-early",
    no_step: "no-step",
    step_is_not_called: "no-step",
    no_backward: "loss-without-graph",
    no_backward_and_no_step: "no-backward",
    step_before_backward: "step-before-backward",
    rate_of_zero: "step-changes-nothing",
    model_rebuilt: "optimizer-of-others",
    model_copied: "optimizer-of-others",
    layer_added_later: "optimizer-lacks-parameters",
    body_only: "optimizer-lacks-parameters",
    eval_mode: "trained-in-eval-mode",
    eval_after_the_first_test: "trained-in-eval-mode",
    under_no_grad: "loss-without-graph",
    detached: "loss-without-graph",
    loss_of_argmax: "loss-without-graph",
    detached_and_regularised: "loss-without-graph",
    total_of_losses: "loss-kept",
    total_as_tensor: "loss-kept",
    list_of_losses: "loss-kept",
    dictionary_of_losses: "loss-kept",
    rate_far_too_high: "loss-not-finite",
    nan_in_the_data: "loss-not-finite",
    logarithm_of_zero: "loss-not-finite",
    mse_broadcasts: "loss-broadcasts",
    difference_broadcasts: "loss-broadcasts",
    smooth_l1_broadcasts: "loss-broadcasts",
    labels_from_one: "label-range",
    one_class_a_batch: "not-shuffled",
    sorted_labels: "not-shuffled",
    the_same_batch: "same-batch",
    batches_of_one: "single-image-batches",
    raw_pixels: "not-normalised",
    constant_guess: "loss-stands-still",
    step_lr_each_batch: "scheduler-calls",
    exponential_each_batch: "scheduler-calls",
    one_layer_in_vain: "parameters-without-gradient",
}


# ------------------------------------------------------------------------------------------------------------ healthy


def zero_grad_last(s):
    for images, labels in s.batches():
        s.backward(images, labels)
        s.optimizer.step()
        s.optimizer.zero_grad()


def zero_grad_between(s):
    for images, labels in s.batches():
        loss = s.loss_fn(s.model(images), labels)
        s.model.zero_grad(set_to_none=False)
        loss.backward()
        s.optimizer.step()


def gradients_set_to_none(s):
    for images, labels in s.batches():
        for parameter in s.model.parameters():
            parameter.grad = None
        s.backward(images, labels)
        s.optimizer.step()


def accumulated(s):
    for number, (images, labels) in enumerate(s.batches(12)):
        (s.loss_fn(s.model(images), labels) / 3).backward()
        if number % 3 == 2:
            s.optimizer.step()
            s.optimizer.zero_grad()


def losses_summed_before_backward(s):
    for _ in range(4):
        s.optimizer.zero_grad()
        sum(s.loss_fn(s.model(images), labels) for images, labels in s.batches(2)).backward()
        s.optimizer.step()


def clipped(s):
    for images, labels in s.batches():
        s.optimizer.zero_grad()
        s.backward(images, labels)
        nn.utils.clip_grad_norm_(s.model.parameters(), 1.0)
        s.optimizer.step()


def with_a_test_each_epoch(s):
    for _ in range(3):
        s.model.train()
        plain(s)
        s.model.eval()
        with torch.no_grad():
            for images, labels in s.batches(8):
                s.loss_fn(s.model(images), labels).item()


def with_a_test_first(s):
    s.model.eval()
    with torch.inference_mode():
        for images, _ in s.batches():
            s.model(images)
    s.model.train()
    plain(s)


def losses_as_numbers(s):
    total, numbers = 0.0, []
    for images, labels in s.batches():
        loss = s.step(images, labels)
        total += loss.item()
        numbers.append(loss.detach())


def running_mean(s):
    mean = None
    for images, labels in s.batches():
        loss = s.step(images, labels).detach()
        mean = loss if mean is None else 0.9 * mean + 0.1 * loss


def adam(s):
    s.optimizer = torch.optim.AdamW(s.model.parameters(), 1e-3, weight_decay=0.01)
    s.begin()
    plain(s)


def two_groups(s):
    body, head = {"params": s.model[:3].parameters(), "lr": 0.01}, {"params": s.model[6].parameters()}
    s.optimizer = torch.optim.SGD([body, head], 0.1)
    s.begin()
    plain(s)


def frozen_body(s):
    s.model[:6].requires_grad_(False)
    s.optimizer = torch.optim.SGD(s.model[6].parameters(), 0.1)
    s.begin()
    plain(s)


def two_optimizers(s):
    first, second = torch.optim.SGD(s.model[:2].parameters(), 0.1), torch.optim.Adam(s.model[6].parameters())
    s.optimizer = None
    s.begin()
    for images, labels in s.batches():
        s.model.zero_grad()
        s.backward(images, labels)
        first.step()
        second.step()


def adversarial(s):
    critic = nn.Sequential(nn.Flatten(), nn.Linear(CLASSES, 1))
    other = torch.optim.Adam(critic.parameters())
    for images, _ in s.batches():
        other.zero_grad()
        F.softplus(critic(s.model(images).detach())).mean().backward()
        other.step()
        s.optimizer.zero_grad()
        F.softplus(-critic(s.model(images))).mean().backward()
        s.optimizer.step()


def one_cycle(s):
    scheduler = torch.optim.lr_scheduler.OneCycleLR(s.optimizer, 0.1, total_steps=20)
    s.begin()
    for images, labels in s.batches(20):
        s.step(images, labels)
        scheduler.step()


def cosine_each_step(s):
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(s.optimizer, 20)
    s.begin()
    for images, labels in s.batches(20):
        s.step(images, labels)
        scheduler.step()


def step_lr_each_epoch(s):
    scheduler = torch.optim.lr_scheduler.StepLR(s.optimizer, 1, 0.5)
    s.begin()
    for _ in range(4):
        plain(s)
        scheduler.step()


def on_a_plateau(s):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(s.optimizer)
    s.begin()
    for _ in range(3):
        plain(s)
        scheduler.step(1.0)


def averaged_weights(s):
    average = torch.optim.swa_utils.AveragedModel(s.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn())
    for images, labels in s.batches():
        s.step(images, labels)
        average.update_parameters(s.model)
        average(images)


def scaled(s):
    scaler = torch.amp.GradScaler("cpu")
    for images, labels in s.batches():
        s.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = s.loss_fn(s.model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(s.optimizer)
        scaler.update()


def weighted(s):
    s.loss_fn = nn.CrossEntropyLoss(weight=torch.rand(CLASSES), label_smoothing=0.1)
    plain(s)


def ignored_labels(s):
    for images, labels in s.batches():
        labels[0] = -100
        s.step(images, labels)


def one_hot_labels(s):
    for images, labels in s.batches():
        s.step(images, F.one_hot(labels, CLASSES).float())


def mixed_images(s):
    for images, labels in s.batches():
        share, order = 0.3, torch.randperm(16)
        s.optimizer.zero_grad()
        outputs = s.model(share * images + (1 - share) * images[order])
        (share * s.loss_fn(outputs, labels) + (1 - share) * s.loss_fn(outputs, labels[order])).backward()
        s.optimizer.step()


def penalised(s):
    for images, labels in s.batches():
        s.optimizer.zero_grad()
        (s.loss_fn(s.model(images), labels) + 1e-4 * sum(p.square().sum() for p in s.model.parameters())).backward()
        s.optimizer.step()


def per_sample(s):
    for images, labels in s.batches():
        s.optimizer.zero_grad()
        s.loss_fn(s.model(images), labels, reduction="none").mean().backward()
        s.optimizer.step()


def regression_of_one_column(s):
    regression(s, lambda outputs, labels: F.mse_loss(outputs.squeeze(1), labels))


def own_data_loader(s):
    data = torch.utils.data.TensorDataset(torch.randn(96, 3, 8, 8), torch.arange(96) % CLASSES)
    for images, labels in itertools.chain(*[torch.utils.data.DataLoader(data, 16, shuffle=True)] * 2):
        s.step(images, labels)


def few_overfitted_images(s):
    batches = list(s.batches(2))
    for images, labels in batches * 4:
        s.step(images, labels)


def pixels_from_0_to_1(s):
    for images, labels in s.batches():
        s.step(images.sigmoid(), labels)


def raw_pixels_into_a_norm(s):
    s.model = nn.Sequential(nn.BatchNorm2d(3), *s.model)
    s.optimizer = torch.optim.SGD(s.model.parameters(), 0.05)
    s.begin()
    raw_pixels(s)


def closure(s):
    for images, labels in s.batches():

        def again(images=images, labels=labels):
            s.optimizer.zero_grad()
            return s.backward(images, labels)

        s.optimizer.step(again)


def stochastic_depth(s):
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = nn.Conv2d(6, 6, 1), 0

        def forward(self, x):
            self.calls += 1
            return x + self.inner(x) if self.calls % 2 else x

    s.model = nn.Sequential(s.model[0], Sometimes(), *s.model[1:])
    s.optimizer = torch.optim.SGD(s.model.parameters(), 0.05)
    s.begin()
    plain(s)


def eval_mode_without_effect(s):
    s.model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).eval()
    s.optimizer = torch.optim.SGD(s.model.parameters(), 0.05)
    s.begin()
    plain(s)


def gradients_of_the_image(s):
    for images, labels in s.batches():
        images.requires_grad_()
        s.step(images, labels)
        images.grad.sign()


def attacked(s):
    """Training on images that were moved along the gradient, FGSM's way."""
    for images, labels in s.batches():
        moved = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(s.loss_fn(s.model(moved), labels), moved)
        s.step((images + 0.01 * gradient.sign()).detach(), labels)


def nothing_yet(s):
    s.model.eval()
    with torch.no_grad():
        s.model(torch.randn(4, 3, 8, 8))


HEALTHY = [
    plain, zero_grad_last, zero_grad_between, gradients_set_to_none, accumulated, losses_summed_before_backward,
    clipped, with_a_test_each_epoch, with_a_test_first, losses_as_numbers, running_mean, adam, two_groups,
    frozen_body, two_optimizers, adversarial, one_cycle, cosine_each_step, step_lr_each_epoch, on_a_plateau,
    averaged_weights, scaled, weighted, ignored_labels, one_hot_labels, mixed_images, penalised, per_sample,
    regression_of_one_column, own_data_loader, few_overfitted_images, pixels_from_0_to_1, raw_pixels_into_a_norm,
    closure, stochastic_depth, eval_mode_without_effect, gradients_of_the_image, attacked, nothing_yet,
    label_of_minus_two,
]  # fmt: skip


def findings_of(loop):
    setup = Setup()
    setup.begin()
    with contextlib.suppress(RuntimeError, IndexError), setup.watching:
        loop(setup)
    return setup.watched.findings


@pytest.mark.filterwarnings("ignore:Using a target size", "ignore:Detected call of", "ignore::FutureWarning")
@pytest.mark.parametrize("loop", FAULTS, ids=lambda loop: loop.__name__)
def test_fault_of_a_loop_is_named(loop):
    findings = findings_of(loop)
    assert FAULTS[loop] in [finding.check for finding in findings], str(findings)


@pytest.mark.parametrize("loop", HEALTHY, ids=lambda loop: loop.__name__)
def test_nothing_is_said_of_a_healthy_loop(loop):
    findings = findings_of(loop)
    assert not findings, str(findings)


def test_watching_changes_nothing_and_leaves_nothing_behind():
    results = []
    for is_watched in (False, True):
        setup = Setup()
        scheduler = torch.optim.lr_scheduler.StepLR(setup.optimizer, 2, 0.5)
        before = {name for name in vars(scheduler)}
        with netreview.watch(setup.model, setup.optimizer) if is_watched else contextlib.nullcontext():
            for images, labels in setup.batches():
                setup.step(images, labels)
                scheduler.step()
        assert {name for name in vars(scheduler)} == before
        hooks = [
            vars(module)[name] for module in setup.model.modules() for name in vars(module) if name.endswith("_hooks")
        ]
        assert not any(hooks)
        assert not any(p._post_accumulate_grad_hooks for p in setup.model.parameters())
        results.append((setup.model.state_dict(), setup.optimizer.state_dict(), torch.random.get_rng_state()))
    (model, optimizer, state), (watched, watched_optimizer, watched_state) = results
    assert all(torch.equal(model[name], watched[name]) for name in model)
    assert torch.equal(state, watched_state)
    assert str(optimizer) == str(watched_optimizer)


def test_errors_of_the_loop_pass_through_and_are_told():
    setup = Setup()
    watching = netreview.watch(setup.model, setup.optimizer)

    def failing():
        with watching:
            plain(setup)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    watched = watching.watched
    assert [finding.check for finding in watched.findings] == ["loop-stopped"]


def test_only_a_network_can_be_watched():
    with pytest.raises(TypeError, match="is a function, and has to be"):
        netreview.watch(lambda x: x)


SCRIPT = """
import sys
import torch
from torch import nn
from helper import WIDTH

model = nn.Sequential(nn.Flatten(), nn.Linear(192, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
optimizer, loss_fn = torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss()

def main():
    for step in range(10**9):
        images, labels = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
        if "--right" in sys.argv:
            optimizer.zero_grad()
        loss_fn(model(images), labels).backward()
        if "--fails" in sys.argv:
            raise KeyError("a fault of its own")
        try:
            optimizer.step()
        except Exception:
            print("never")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--right"], 0, "12 steps of Sequential:\nNo findings."),
        ([], 1, "gradients-not-cleared"),
        (["--fails"], 1, "KeyError: 'a fault of its own'"),
    ],
)
def test_a_script_is_watched_as_it_is(arguments, code, said, tmp_path):
    (tmp_path / "helper.py").write_text("WIDTH = 8\n")
    (tmp_path / "train.py").write_text(SCRIPT)
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-m", "netreview", "--script", "train.py", "--steps", "12", *arguments]
    result = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, said in result.stdout) == (code, True), result.stdout + result.stderr
    assert "never" not in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_script_that_trains_nothing_is_said_to(tmp_path, capsys):
    (tmp_path / "other.py").write_text("print('hello')")
    assert netreview.__main__.main(["--script", str(tmp_path / "other.py")]) == 2
    assert "trained no network." in capsys.readouterr().err
