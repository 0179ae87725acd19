import copy
import io

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from s9.optimizers import Muon, make_optimizer, orthogonalize
from s9.recipes import Recipe
from s9.schedules import make_scheduler


def test_orthogonalize_is_near_the_polar_factor():
    torch.manual_seed(0)
    for shape in ((1, 8, 8), (2, 6, 20), (2, 20, 6), (3, 5, 9)):
        matrices = torch.randn(shape)
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        ours = orthogonalize(matrices)
        values = torch.linalg.svdvals(ours)
        assert values.min() > 0.6
        assert values.max() < 1.25
        assert nn.functional.cosine_similarity(ours.flatten(), (u @ vh).flatten(), dim=0) > 0.97


@pytest.mark.parametrize("nesterov", [True, False])
def test_without_orthogonal_groups_it_is_torchs_sgd(nesterov):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(7, 3), nn.Linear(7, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        Muon([{"params": list(ours.parameters()), "weight_decay": 0.1}], lr=0.05, momentum=0.8, nesterov=nesterov),
        torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.8, nesterov=nesterov, weight_decay=0.1),
    ]
    for _ in range(5):
        x = torch.randn(4, 7)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_a_kernel_keeps_its_size_and_turns_by_the_rate():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 16, 1, 1))
    before = kernel.detach().clone()
    optimizer = Muon([{"params": [kernel], "orthogonal": True}], lr=0.01)
    kernel.grad = torch.randn_like(kernel)
    optimizer.step()
    torch.testing.assert_close(kernel.norm(), before.norm())
    torch.testing.assert_close((kernel - before).norm() / before.norm(), torch.tensor(0.01), rtol=0.05, atol=0)


SHAPES = {  # of two kernels each
    "kernels": [(8, 6, 1, 1), (6, 8, 1, 1), (5, 4, 3, 3)],
    "matrices": [(7, 3), (4, 1, 3, 3)],
    "vectors": [(6,), ()],
}


def parameters_and_groups(dtype=torch.double) -> tuple[list[nn.Parameter], list[dict]]:
    """Parameters of all kinds, two of a shape, and groups of them with different settings."""
    torch.manual_seed(0)
    of = {kind: [nn.Parameter(torch.randn(s, dtype=dtype)) for s in 2 * shapes] for kind, shapes in SHAPES.items()}
    groups = [
        {"params": of["matrices"], "weight_decay": 0.1},
        {"params": of["vectors"]},
        {"params": of["kernels"][:4], "orthogonal": True, "lr": 0.02},
        {"params": of["kernels"][4:], "orthogonal": True, "lr": 0.05, "weight_decay": 0.01, "momentum": 0.5},
    ]
    return [parameter for group in groups for parameter in group["params"]], groups


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    """Random ones, some of zeros, and for some parameters none."""
    generator = torch.Generator().manual_seed(seed)
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
        if (index + seed) % 5 == 0:
            parameter.grad = None
        elif (index + seed) % 7 == 0:
            parameter.grad.zero_()


def one_by_one(parameter, gradient, state, lr, momentum, nesterov=True, weight_decay=0.0, orthogonal=False) -> None:
    """Muon's step of one parameter, as its sources write it down."""
    if not state:
        state.update(velocity=torch.zeros_like(parameter), size=parameter.norm())
    gradient = gradient + weight_decay * parameter
    state["velocity"] = momentum * state["velocity"] + gradient
    step = gradient + momentum * state["velocity"] if nesterov else state["velocity"].clone()
    if orthogonal and step.any() and state["size"] > 0:
        x = step.flatten(1) if step.shape[0] <= step[0].numel() else step.flatten(1).T
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        x = (x if step.shape[0] <= step[0].numel() else x.T).reshape(step.shape)
        step = x * state["size"] / x.norm()
    parameter -= lr * step
    if orthogonal and state["size"] > 0:
        parameter *= state["size"] / parameter.norm()


def test_parameters_stepped_together_go_where_each_would_go_alone():
    parameters, groups = parameters_and_groups()
    with torch.no_grad():
        groups[2]["params"][0].zero_()
    alone, states = [parameter.detach().clone() for parameter in parameters], [{} for _ in parameters]
    optimizer = Muon(groups, lr=0.1, momentum=0.9)
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
        for _ in group["params"]
    ]
    for seed in range(12):
        give_gradients(parameters, seed)
        optimizer.step()
        for ours, parameter, state, setting in zip(parameters, alone, states, settings, strict=True):
            if ours.grad is not None:
                one_by_one(parameter, ours.grad, state, **setting)
    for ours, parameter in zip(parameters, alone, strict=True):
        torch.testing.assert_close(ours.detach(), parameter, rtol=1e-6, atol=1e-6)  # norms are taken with 1e-7 added


def test_a_zero_gradient_leaves_a_kernel_as_it_is():
    kernel = nn.Parameter(torch.randn(8, 16, 1, 1))
    before = kernel.detach().clone()
    optimizer = Muon([{"params": [kernel], "orthogonal": True}], lr=0.1)
    kernel.grad = torch.zeros_like(kernel)
    optimizer.step()
    torch.testing.assert_close(kernel.detach(), before)
    kernel.grad = torch.randn_like(kernel)
    optimizer.step()
    assert kernel.isfinite().all()
    assert not torch.allclose(kernel, before)


@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1e12])
def test_kernels_and_gradients_of_any_size_work(scale):
    torch.manual_seed(0)
    kernel = nn.Parameter(scale * torch.randn(8, 16, 1, 1))
    size, before = kernel.detach().norm(), kernel.detach().clone()
    optimizer = Muon([{"params": [kernel], "orthogonal": True}], lr=0.1)
    for gradient in (torch.randn_like(kernel), 1e-30 * torch.randn_like(kernel), 1e10 * torch.randn_like(kernel)):
        kernel.grad = gradient
        optimizer.step()
        torch.testing.assert_close(kernel.detach().norm(), size)
    assert not torch.allclose(kernel, before, rtol=1e-2, atol=0)


def test_a_kernel_that_starts_at_zero_learns_as_by_sgd():
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.zeros(4, 5, 3, 3)) for _ in range(2))
    other = nn.Parameter(torch.randn(4, 5, 3, 3))  # of the same shape, and not zero
    size = other.detach().norm()
    optimizers = [
        Muon([{"params": [other, ours], "orthogonal": True}], lr=0.05, momentum=0.8),
        torch.optim.SGD([theirs], lr=0.05, momentum=0.8, nesterov=True),
    ]
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn_like(ours)
        other.grad = torch.randn_like(ours)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert ours.norm() > 0
    torch.testing.assert_close(other.detach().norm(), size)


def test_a_residual_network_trains_whose_branches_start_at_zero():
    torch.manual_seed(0)
    block = torchvision.models.resnet.BasicBlock
    model = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=4, zero_init_residual=True)
    recipe = Recipe(optimizer="muon", learning_rate=0.02, kernel_rate=0.02, momentum=0.9)
    optimizer = make_optimizer(model, recipe)
    images, labels, losses = torch.randn(8, 3, 32, 32), torch.arange(8) % 4, []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_a_state_that_was_saved_goes_on_bit_for_bit(dtype):
    parameters, groups = parameters_and_groups(dtype)
    optimizer = Muon(groups, lr=0.1)
    for seed in range(3):
        give_gradients(parameters, seed)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again, groups = parameters_and_groups(dtype)
    resumed = Muon(groups, lr=0.1)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for parameter, before in zip(again, parameters, strict=True):
            parameter.copy_(before)
    for seed in range(3, 6):
        for each, own in ((optimizer, parameters), (resumed, again)):
            give_gradients(own, seed)
            each.step()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, parameters, strict=True))


@pytest.mark.parametrize("orthogonal", [False, True])
def test_numbers_and_devices_of_several_kinds_share_a_group(orthogonal):
    torch.manual_seed(0)
    kinds = [{"dtype": torch.float}, {"dtype": torch.double}, {"dtype": torch.bfloat16}, {"device": "meta"}]
    together = [nn.Parameter(torch.randn(4, 5, 1, 1, **kind)) for kind in kinds]
    alone = [copy.deepcopy(parameter) for parameter in together]
    for ours, theirs in zip(together, alone, strict=True):
        ours.grad = theirs.grad = torch.randn_like(ours)
        Muon([{"params": [theirs], "orthogonal": orthogonal}], lr=0.1).step()
    Muon([{"params": together, "orthogonal": orthogonal}], lr=0.1).step()
    for ours, theirs in zip(together[:3], alone[:3], strict=True):
        assert torch.equal(ours, theirs)


class Operations(TorchDispatchMode):
    """Counts what is computed; views cost nothing."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view and not str(function).startswith("profiler")
        return function(*args, **kwargs or {})


def test_more_parameters_take_no_more_operations():
    counts = []
    for number in (2, 20):
        shapes = [(8, 6, 1, 1), (6, 8, 1, 1)]
        groups = [
            {"params": [nn.Parameter(torch.randn(7, 3)) for _ in range(number)]},
            {"params": [nn.Parameter(torch.randn(s)) for s in number * shapes], "orthogonal": True},
        ]
        optimizer = Muon(groups, lr=0.1)
        for parameter in (p for group in groups for p in group["params"]):
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        with Operations() as operations:
            optimizer.step()
        counts.append(operations.count)
    assert counts[0] == counts[1] < 100


def test_a_closure_is_called_and_its_loss_returned():
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = Muon([weight], lr=0.1)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9
    assert weight.item() == pytest.approx(3 - 0.1 * 6 * 1.9)


def test_the_recipe_gives_muon_the_kernels_that_mix_channels():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    recipe = Recipe(optimizer="muon", learning_rate=0.3, kernel_rate=0.02, momentum=0.9, weight_decay=1e-3)
    optimizer = make_optimizer(model, recipe)
    decayed, plain, kernels = optimizer.param_groups
    assert [id(p) for p in kernels["params"]] == [id(model[3].weight)]
    assert (kernels["lr"], kernels["orthogonal"]) == (0.02, True)
    assert {id(p) for p in decayed["params"]} == {id(model[n].weight) for n in (0, 2, 5)}
    assert (decayed["lr"], decayed["weight_decay"], plain["weight_decay"]) == (0.3, 1e-3, 0.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    scheduler = make_scheduler(optimizer, Recipe(schedule="one-cycle", epochs=2), 50)
    ratios = set()
    for _ in range(99):
        ratios.add(round(kernels["lr"] / decayed["lr"], 4))
        optimizer.step()
        scheduler.step()
    assert ratios == {round(0.02 / 0.3, 4)}
