import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from s9.optimizers import Muon, make_optimizer, orthogonalize
from s9.recipes import Recipe
from s9.schedules import make_scheduler


def test_orthogonalize_is_near_the_polar_factor():
    torch.manual_seed(0)
    for shape in ((8, 8), (6, 20), (20, 6), (3, 5, 9)):
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


def one_by_one(parameter, gradient, state, lr, momentum=0.9):
    """A step of Muon on one kernel, written out."""
    if not state:
        state |= {"velocity": torch.zeros_like(parameter), "size": parameter.norm()}
    state["velocity"] = momentum * state["velocity"] + gradient
    step = orthogonalize((gradient + momentum * state["velocity"]).flatten(1)).view_as(parameter)
    if step.any():
        step = step * state["size"] / step.norm()
    turned = parameter - lr * step
    return turned * state["size"] / turned.norm()


def test_kernels_together_are_stepped_as_one_by_one_also_without_a_gradient():
    """Several shapes, one of them twice; a gradient of zeros, a missing one, and resumption in between."""
    torch.manual_seed(0)
    kernels = [nn.Parameter(torch.randn(shape).double()) for shape in ((8, 4, 1, 1), (4, 8, 1, 1), (8, 4, 1, 1))]
    kernels += [nn.Parameter(torch.randn(6, 4, 3, 3).double())]
    expected, states = [kernel.detach().clone() for kernel in kernels], [{} for _ in kernels]
    optimizer = Muon([{"params": kernels, "orthogonal": True}], lr=0.05)
    for number in range(6):
        for index, kernel in enumerate(kernels):
            kernel.grad = torch.randn_like(kernel) * (number != 1 or index != 0)
            if number == 2 and index == 2:
                kernel.grad = None
            else:
                expected[index] = one_by_one(expected[index], kernel.grad, states[index], 0.05)
        optimizer.step()
        if number == 3:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = Muon([{"params": kernels, "orthogonal": True}], lr=0.05)
            optimizer.load_state_dict(saved)
    for ours, theirs in zip(kernels, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs)


def test_a_zero_gradient_at_the_first_step_leaves_the_kernel():
    kernel = nn.Parameter(torch.randn(8, 16, 1, 1))
    before = kernel.detach().clone()
    kernel.grad = torch.zeros_like(kernel)
    Muon([{"params": [kernel], "orthogonal": True}], lr=0.01).step()
    torch.testing.assert_close(kernel.detach(), before)


def test_a_kernel_of_zeros_is_refused_by_muon_and_left_to_sgd_by_the_recipe():
    kernel = nn.Parameter(torch.zeros(8, 16, 1, 1))
    with pytest.raises(ValueError, match="no size to keep"):
        Muon([{"params": [kernel], "orthogonal": True}], lr=0.01)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1))
    nn.init.zeros_(model[1].weight)
    optimizer = make_optimizer(model, Recipe(optimizer="muon", momentum=0.9, nesterov=True))
    assert [group["orthogonal"] for group in optimizer.param_groups] == [False, False, True]
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 4, 4)).square().sum().backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model[1].weight.any()


def test_residual_networks_that_start_with_zero_norms_train():
    from torchvision.models import ResNet
    from torchvision.models.resnet import BasicBlock

    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4, zero_init_residual=True).train()
    optimizer = make_optimizer(model, Recipe(optimizer="muon", momentum=0.9, nesterov=True, learning_rate=0.05))
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_step_starts_few_operations():
    """A hundred kernels of one shape take as many operations as two do, once the optimiser has its state."""

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.number += "view" not in function.__name__  # which starts nothing on a GPU
            return function(*args, **(kwargs or {}))

    def operations(count: int) -> int:
        kernels = [nn.Parameter(torch.randn(8, 16, 1, 1)) for _ in range(count)]
        for kernel in kernels:
            kernel.grad = torch.randn_like(kernel)
        optimizer = Muon([{"params": kernels, "orthogonal": True}], lr=0.01)
        optimizer.step()
        with Count() as counted:
            optimizer.step()
        return counted.number

    assert operations(100) == operations(2)
