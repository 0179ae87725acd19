import torch
from torch import nn

from s9 import training
from s9.muon import Muon, orthogonalize
from s9.recipes import Recipe


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


def test_without_orthogonal_groups_it_is_torchs_nesterov_sgd():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(7, 3), nn.Linear(7, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        Muon([{"params": list(ours.parameters()), "weight_decay": 0.1}], lr=0.05, momentum=0.8),
        torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
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
    optimizer = training.make_optimizer(model, recipe)
    decayed, plain, kernels = optimizer.param_groups
    assert [id(p) for p in kernels["params"]] == [id(model[3].weight)]
    assert (kernels["lr"], kernels["orthogonal"]) == (0.02, True)
    assert {id(p) for p in decayed["params"]} == {id(model[n].weight) for n in (0, 2, 5)}
    assert (decayed["lr"], decayed["weight_decay"], plain["weight_decay"]) == (0.3, 1e-3, 0.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    scheduler = training.make_scheduler(optimizer, Recipe(schedule="one-cycle", epochs=2), 50)
    ratios = set()
    for _ in range(99):
        ratios.add(round(kernels["lr"] / decayed["lr"], 4))
        optimizer.step()
        scheduler.step()
    assert ratios == {round(0.02 / 0.3, 4)}
