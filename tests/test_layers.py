"""The quicker Conv2d and Dropout compute what PyTorch's do, in every form and for every tool."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import S9Net, StudentNet
from s9.layers import Conv2d, Dropout

FORMS = [
    {"kernel_size": kernel, "stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    for kernel in (1, 3, (3, 5)) for stride in (1, 2, (2, 3)) for dilation in (1, 2, (2, 3))
    for padding in (0, 1, 2, (2, 6)) for groups in (1, 4)
]  # fmt: skip
FORMS += [{"kernel_size": 3, "dilation": 2, "padding": padding, "groups": 4} for padding in ("same", "valid")]
FORMS += [
    {"kernel_size": 3, "dilation": 2, "padding": 2, "groups": 4, "padding_mode": mode}
    for mode in ("reflect", "replicate", "circular")
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(16, 18), (17, 13)])
def test_every_convolution_is_torchs_in_result_and_gradients(size, bias):
    """Of nn.Conv2d with the same weights, in train and in eval mode."""
    torch.manual_seed(0)
    for form in FORMS:
        ours, theirs = (kind(4, 8, bias=bias, **form).double() for kind in (Conv2d, nn.Conv2d))
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, 4, *size, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
        y = x.detach().clone().requires_grad_()
        result, expected = ours.train()(x), theirs(y)
        assert result.shape == expected.shape, form
        upstream = torch.randn_like(expected)
        result.backward(upstream)
        expected.backward(upstream)
        pairs = [(result, expected), (ours.eval()(x), expected), (x.grad, y.grad)]
        pairs += [(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)]
        for one, other in pairs:
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12, msg=lambda text, form=form: f"{form} {text}")


@pytest.mark.parametrize("size", [(3, 2), (1, 1), (5, 4)])
@pytest.mark.parametrize("dilation", [2, 3])
def test_maps_smaller_than_the_dilated_kernel(size, dilation):
    ours = Conv2d(4, 4, 3, padding=dilation, dilation=dilation, groups=4).double().train()
    x = torch.randn(2, 4, *size, dtype=torch.double)
    expected = F.conv2d(x, ours.weight, ours.bias, padding=dilation, dilation=dilation, groups=4)
    torch.testing.assert_close(ours(x), expected)


def test_a_single_image_without_a_batch():
    layer = Conv2d(4, 4, 3, padding=2, dilation=2, groups=4).train()
    x = torch.randn(4, 9, 9)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_drops_a_share_and_scales_the_rest(layout):
    torch.manual_seed(0)
    x = torch.ones(64, 16, 32, 32).contiguous(memory_format=layout).requires_grad_()
    y = Dropout(0.1)(x)
    values = y.detach().unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.9]))
    n = x.numel()
    dropped = (y == 0).double()
    four_sigma = 4 * (0.1 * 0.9) ** 0.5
    assert abs(dropped.mean() - 0.1) < four_sigma / n**0.5
    # independent along every axis: each mean over the others is as near to 0.1 as chance allows
    for axis in range(4):
        means = dropped.mean([other for other in range(4) if other != axis])
        assert (means - 0.1).abs().max() < 1.5 * four_sigma / (n / len(means)) ** 0.5
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_follows_the_seed_and_does_nothing_in_eval_mode():
    x = torch.randn(8, 3, 5, 7)
    layer = Dropout(0.5)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)


def test_dropout_leaves_expanded_tensors_to_torch():
    x = torch.ones(4, 1, 8, 8).expand(4, 16, 8, 8)
    assert set(Dropout(0.5)(x).unique().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(p):
    x = torch.randn(4, 3, 5, 5)
    state = torch.get_rng_state()
    assert torch.equal(Dropout(p).train()(x), nn.Dropout(p).train()(x))
    if p == 0:
        assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn


def test_dropout_in_place():
    x = torch.ones(4, 3, 8, 8)
    y = Dropout(0.5, inplace=True).train()(x)
    assert y is x
    assert set(x.unique().tolist()) == {0.0, 2.0}
    leaf = torch.ones(2, 3, requires_grad=True)
    product = leaf * 1
    Dropout(0.5, inplace=True).train()(product).sum().backward()
    assert set(leaf.grad.unique().tolist()) <= {0.0, 2.0}


NETWORKS = {
    "as published": lambda: StudentNet(),
    "mended": lambda: StudentNet(use_relu=True, norm_strided=True, pad_strided=True, dropout=0.0),
    "S9Net": lambda: S9Net(16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_pickle(name, tmp_path):
    model = NETWORKS[name]().eval()
    images = torch.randn(2, 3, 32, 32)
    torch.save(model, tmp_path / "model.pt")
    for copy in (pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(copy.eval()(images), model(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_one_graph_in_train_mode(name):
    """No graph breaks, also where dropout draws."""
    torch.manual_seed(0)
    model = NETWORKS[name]().train()
    images = torch.randn(2, 3, 32, 32)
    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        compiled(images).sum().backward()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_export_in_train_mode(name):
    model = NETWORKS[name]().train()
    exported = torch.export.export(model, (torch.randn(4, 3, 32, 32),), strict=False).module()
    assert exported(torch.randn(4, 3, 32, 32)).shape == (4, 10)


def test_train_and_eval_mode_give_the_same_layout():
    """What follows may take a view of it."""
    layer = Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
    for x in (torch.ones(4, 6, 8, 8), torch.ones(2, 6, 9, 7).to(memory_format=torch.channels_last)):
        assert layer.train()(x).stride() == layer.eval()(x).stride()
    assert layer.train()(torch.ones(4, 6, 8, 8)).view(4, -1).shape == (4, 384)


def test_dropout_under_tracers_and_transforms_is_torchs():
    layer, x = Dropout(0.5).train(), torch.ones(8, 3, 16, 16)
    masks = torch.vmap(layer, randomness="different")(x)
    assert not torch.equal(masks[0], masks[1])
    with FakeTensorMode():
        assert layer(torch.ones(3, 3)).shape == (3, 3)
    exported = torch.export.export(layer, (x,), strict=False).module()
    assert not torch.equal(exported(x), exported(x))  # no mask is baked in


@pytest.mark.parametrize("p", [1e-6, 0.9999])
def test_dropout_of_nearly_nothing_and_nearly_everything_keeps_the_mean(p):
    torch.manual_seed(0)
    n = 4_000_000
    mean = Dropout(p).train()(torch.ones(n)).mean().item()
    assert abs(mean - 1) < 5 * (p / (1 - p) / n) ** 0.5  # five deviations
