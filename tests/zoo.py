"""Small networks with one planted fault each, of kinds that students make, each beside its healthy twin."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

CLASSES, SIZE, COUNT = 4, 16, 48


class Setup(NamedTuple):
    """What a review is given."""

    model: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    loss_fn: Callable = F.cross_entropy
    optimizer: torch.optim.Optimizer | None = None


class Fault(NamedTuple):
    """A faulty set-up, the finding that it must get, and the same without the fault."""

    name: str
    check: str
    where: str
    faulty: Callable[[], Setup]
    healthy: Callable[[], Setup]


ZOO: list[Fault] = []


def fault(check: str, where: str = ""):
    """Register a function from `broken` (bool) to a model or a Setup, under the function's name."""

    def register(build):
        def setup(broken: bool) -> Setup:
            torch.manual_seed(0)
            built = build(broken)
            return built if isinstance(built, Setup) else Setup(built, *pictures())

        name = build.__name__.replace("_", " ")
        ZOO.append(Fault(name, check, where, lambda: setup(True), lambda: setup(False)))
        return build

    return register


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images whose classes can be told: each has a bright bar in a place of its own."""
    labels = torch.arange(COUNT) % CLASSES
    images = 0.3 * torch.randn(COUNT, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * label : 4 * label + 4] += 2
    return (images - images.mean()) / images.std(), labels


def conv(i: int, o: int, stride: int = 1, kernel: int = 3, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=bias)


def unit(i: int, o: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(i, o, stride), nn.BatchNorm2d(o), nn.ReLU())


class Net(nn.Module):
    """The healthy network that most faults are planted in: three convolutions, and a linear head on the flat map."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = conv(3, 8), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = conv(8, 16, stride=2), nn.BatchNorm2d(16)
        self.unit = unit(16, 16, stride=2)
        self.relu, self.drop = nn.ReLU(), nn.Dropout(0.1)
        self.head = nn.Linear(16 * 16, CLASSES)

    def forward(self, x):
        return self.tail(self.stem(x))

    def stem(self, x):
        return self.relu(self.norm1(self.conv1(x)))

    def tail(self, x):
        return self.head(self.drop(self.unit(self.relu(self.norm2(self.conv2(x)))).flatten(1)))


def net_with(broken: bool, **methods) -> Net:
    """A Net with some methods replaced where it is broken."""
    return type("Net", (Net,), methods if broken else {})()


@fault("discarded-output", "act")
def activation_called_and_dropped(broken):
    class Called(Net):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def tail(self, x):
            x = self.norm2(self.conv2(x))
            y = self.act(x)
            return self.head(self.drop(self.unit(x if broken else y).flatten(1)))

    return Called()


@fault("discarded-output", "drop")
def dropout_called_and_dropped(broken):
    def tail(self, x):
        x = self.unit(self.relu(self.norm2(self.conv2(x)))).flatten(1)
        self.drop(x)
        return self.head(x)

    return net_with(broken, tail=tail)


@fault("discarded-output", "norm1")
def batchnorm_called_and_dropped(broken):
    def stem(self, x):
        x = self.conv1(x)
        self.norm1(x)
        return self.relu(x)

    return net_with(broken, stem=stem)


class WithBranch(Net):
    def __init__(self):
        super().__init__()
        self.branch = unit(8, 8)


@fault("discarded-output", "branch")
def residual_branch_not_added(broken):
    class Branched(WithBranch):
        def stem(self, x):
            x = super().stem(x)
            y = self.branch(x)
            return x if broken else x + y

    return Branched()


@fault("discarded-output", "relu")
def shared_activation_dropped_once(broken):
    def stem(self, x):
        x = self.norm1(self.conv1(x))
        self.relu(x)
        return F.silu(x)

    return net_with(broken, stem=stem)


@fault("discarded-output", "gate")
def gate_returned_in_a_tuple_and_ignored(broken):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(8, 8)

        def forward(self, x):
            return {"weights": (self.mix(x.mean((2, 3))).sigmoid(),)}

    class Gated(Net):
        def __init__(self):
            super().__init__()
            self.gate = Gate()

        def stem(self, x):
            x = super().stem(x)
            (weights,) = self.gate(x)["weights"]
            return x if broken else x * weights[:, :, None, None]

    return Gated()


@fault("affine-network")
def no_activation_at_all(broken):
    model = Net()
    if broken:
        model.relu, model.unit[2] = nn.Identity(), nn.Identity()
    return model


@fault("affine-network")
def activations_without_effect(broken):
    model = Net()
    model.relu, model.unit[2] = (nn.LeakyReLU(1.0 if broken else 0.1) for _ in range(2))
    return model


@fault("linear-pair", "conv1")
def two_convolutions_in_a_row(broken):
    def stem(self, x):
        return self.norm1(self.conv1(x))

    return net_with(broken, stem=stem)


@fault("linear-pair", "1")
def two_linear_layers_in_a_row(broken):
    between = [] if broken else [nn.ReLU()]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIZE**2, 64), *between, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)
    )


@fault("missing-norm", "conv1")
def strided_convolution_left_bare(broken):
    def stem(self, x):
        return self.conv1(x)

    return net_with(broken, stem=stem)


@fault("bias-before-norm", "conv1")
def bias_that_batchnorm_takes_away(broken):
    model = Net()
    model.conv1 = conv(3, 8, bias=broken)
    return model


@fault("unused-module", "branch")
def layer_never_called(broken):
    class Branched(WithBranch):
        def stem(self, x):
            x = super().stem(x)
            return x if broken else x + self.branch(x)

    return Branched()


class Blocks(Net):
    def stem(self, x):
        x = super().stem(x)
        for block in self.blocks.values() if isinstance(self.blocks, dict | nn.ModuleDict) else self.blocks:
            x = block(x)
        return x


@fault("unregistered-parameter", "blocks")
def layers_in_a_list(broken):
    model, blocks = Blocks(), [unit(8, 8), unit(8, 8)]
    model.blocks = blocks if broken else nn.ModuleList(blocks)
    return model


@fault("unregistered-parameter", "blocks")
def layers_in_a_dictionary(broken):
    model, blocks = Blocks(), {"first": unit(8, 8)}
    model.blocks = blocks if broken else nn.ModuleDict(blocks)
    return model


@fault("unregistered-parameter", "scale")
def weight_that_is_a_plain_tensor(broken):
    class Scaled(Net):
        def __init__(self):
            super().__init__()
            scale = torch.ones(8, 1, 1, requires_grad=True)
            self.scale = scale if broken else nn.Parameter(scale.detach())

        def stem(self, x):
            return super().stem(x) * self.scale

    return Scaled()


@fault("frozen-by-detach", "norm1")
def graph_cut_by_detach(broken):
    return net_with(broken, stem=lambda self, x: Net.stem(self, x).detach())


@fault("frozen-by-detach", "norm1")
def graph_cut_by_no_grad(broken):
    return net_with(broken, stem=torch.no_grad()(Net.stem))


@fault("frozen-by-detach", "norm1")
def graph_cut_by_data(broken):
    return net_with(broken, stem=lambda self, x: Net.stem(self, x).data)


@fault("batch-leak")
def permute_that_mixes_the_batch(broken):
    def forward(self, x):
        x = self.unit(self.relu(self.norm2(self.conv2(self.stem(x)))))
        return self.head(x.permute(1, 0, 2, 3).reshape(len(x), -1))

    return net_with(broken, forward=forward)


@fault("batch-leak")
def softmax_over_the_batch(broken):
    def stem(self, x):
        return Net.stem(self, x) * len(x) * Net.stem(self, x).mean((1, 2, 3), keepdim=True).softmax(0)

    return net_with(broken, stem=stem)


@fault("batch-leak")
def centred_over_the_batch(broken):
    def stem(self, x):
        x = Net.stem(self, x)
        return x - x.mean(0)

    return net_with(broken, stem=stem)


@fault("batch-leak")
def view_that_changes_the_number_of_images(broken):
    model = net_with(broken, forward=lambda self, x: self.head(self.unit(self.conv2(self.stem(x))).view(-1, 128)))
    model.head = nn.Linear(128 if broken else 256, CLASSES)
    return model


@fault("double-softmax")
def softmax_before_cross_entropy(broken):
    return net_with(broken, forward=lambda self, x: Net.forward(self, x).softmax(1))


@fault("constant-output")
def features_multiplied_by_nothing(broken):
    return net_with(broken, tail=lambda self, x: Net.tail(self, x * 0))


@fault("constant-output")
def only_negative_numbers_into_the_last_relu(broken):
    return net_with(
        broken, forward=lambda self, x: self.head(F.relu(-Net.stem(self, x).exp())[:, :4, ::2, ::2].flatten(1))
    )


@fault("downsampled-too-far", "3.0")
def maps_smaller_than_the_kernel(broken):
    strides = (2, 2, 2, 2) if broken else (2, 1, 2, 1)
    units = [unit(i, 16, stride) for i, stride in zip((3, 16, 16, 16), strides, strict=True)]
    return nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


@fault("receptive-field")
def pointwise_convolutions_only(broken):
    kernel = 1 if broken else 15
    layers = [conv(3, 8, kernel=kernel), nn.ReLU(), conv(8, 8, kernel=kernel), nn.ReLU()]
    layers += [conv(8, 8, kernel=kernel), nn.ReLU(), conv(8, 8, kernel=kernel), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


@fault("dead-activation", "relu")
def biases_that_switch_everything_off(broken):
    model = Net()
    if broken:
        nn.init.constant_(model.norm1.bias, -8.0)
    return model


@fault("vanishing-gradient", "1")
def many_sigmoids(broken):
    between = nn.Sigmoid if broken else nn.ReLU
    layers = [layer for _ in range(10) for layer in (nn.Linear(64, 64), between())]
    if not broken:
        for layer in layers[::2]:
            nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 64), between(), *layers, nn.Linear(64, CLASSES))


@fault("exploding-gradient", "conv1")
def tiny_weights_before_a_norm(broken):
    model = Net()
    if broken:
        with torch.no_grad():
            model.conv1.weight *= 1e-3
        model.norm1.eps = 1e-12
    return model


@fault("initial-loss")
def last_layer_far_too_large(broken):
    model = Net()
    if broken:
        with torch.no_grad():
            model.head.weight *= 100
    return model


@fault("initial-loss")
def negative_log_likelihood_of_logits(broken):
    return Setup(Net(), *pictures(), loss_fn=F.nll_loss if broken else F.cross_entropy)


@fault("input-scale")
def pixels_of_0_to_255(broken):
    images, labels = pictures()
    pixels = (255 * (images - images.min()) / (images.max() - images.min())).round()
    return Setup(Net(), pixels if broken else images, labels)


@fault("input-scale")
def pixels_of_0_to_1(broken):
    images, labels = pictures()
    return Setup(Net(), (images - images.min()) / (images.max() - images.min()) if broken else images, labels)


@fault("label-range")
def labels_from_1(broken):
    images, labels = pictures()
    return Setup(Net(), images, labels + 1 if broken else labels)


@fault("optimizer-misses-parameters", "head")
def optimiser_made_before_the_head(broken):
    model = Net()
    parts = [model.conv1, model.norm1, model.conv2, model.norm2, model.unit] + ([] if broken else [model.head])
    parameters = [parameter for part in parts for parameter in part.parameters()]
    return Setup(model, *pictures(), optimizer=torch.optim.SGD(parameters, lr=0.1))


@fault("eval-mode-gap")
def batchnorm_that_never_updates(broken):
    model, (images, labels) = Net(), pictures()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and broken:
            module.momentum = 0.0
            module.running_mean += 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return Setup(model, images, labels)


def with_rate(rate: float) -> Setup:
    model = Net()
    return Setup(model, *pictures(), optimizer=torch.optim.SGD(model.parameters(), lr=rate))


@fault("learning-rate")
def rate_far_too_low(broken):
    return with_rate(1e-5 if broken else 0.05)


@fault("learning-rate")
def rate_far_too_high(broken):
    return with_rate(20.0 if broken else 0.05)
