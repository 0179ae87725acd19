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


@fault("exploding-gradient", "1")
def large_weights_and_no_norm(broken):
    layers = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.ReLU())]
    if broken:
        for layer in layers[::2]:
            nn.init.normal_(layer.weight, std=1.0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 64), nn.ReLU(), *layers, nn.Linear(64, CLASSES))


@fault("initial-loss")
def last_layer_far_too_large(broken):
    model = Net()
    if broken:
        with torch.no_grad():
            model.head.weight *= 100
    return model


@fault("loss-mismatch")
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
            module.momentum = 1e-6
            module.running_mean += 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return Setup(model, images, labels)


@fault("batchnorm-settings", "norm1")
def batchnorm_of_no_momentum(broken):
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and broken:
            module.momentum = 0.0
    return model


def with_rate(rate: float) -> Setup:
    model = Net()
    return Setup(model, *pictures(), optimizer=torch.optim.SGD(model.parameters(), lr=rate))


@fault("learning-rate")
def rate_far_too_low(broken):
    return with_rate(1e-6 if broken else 0.05)


@fault("learning-rate")
def rate_far_too_high(broken):
    return with_rate(100.0 if broken else 0.05)


# Of kinds that people reported of their own networks.


@fault("discarded-output", "")
def function_written_alone_on_a_line(broken):
    def stem(self, x):
        x = self.norm1(self.conv1(x))
        F.relu(x)
        return F.silu(x)

    return net_with(broken, stem=stem)


@fault("discarded-output", "")
def dropout_function_written_alone_on_a_line(broken):
    def stem(self, x):
        x = Net.stem(self, x)
        F.dropout(x, 0.1, self.training)
        return x

    return net_with(broken, stem=stem)


@fault("loss-mismatch")
def relu_on_logits(broken):
    return net_with(broken, forward=lambda self, x: F.relu(Net.forward(self, x)))


@fault("loss-mismatch")
def softmax_before_nll(broken):
    def forward(self, x):
        return Net.forward(self, x).softmax(1) if broken else Net.forward(self, x).log_softmax(1)

    return Setup(net_with(True, forward=forward), *pictures(), loss_fn=F.nll_loss)


def one_hot_bce(output, labels):
    return F.binary_cross_entropy_with_logits(output, F.one_hot(labels, CLASSES).float())


@fault("double-softmax")
def sigmoid_before_bce_with_logits(broken):
    model = net_with(broken, forward=lambda self, x: Net.forward(self, x).sigmoid())
    return Setup(model, *pictures(), loss_fn=one_hot_bce)


@fault("loss-without-gradient")
def loss_of_argmax(broken):
    def loss(output, labels):
        return (output.argmax(1).float() - labels).square().mean().requires_grad_()

    return Setup(Net(), *pictures(), loss_fn=loss if broken else F.cross_entropy)


class Residual(nn.Module):
    def __init__(self, add, inplace=False):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(inplace), conv(8, 8), nn.BatchNorm2d(8))
        self.add = add

    def forward(self, x):
        return self.add(x, self.body(x))


class WithBlock(Net):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def stem(self, x):
        return self.block(self.norm1(self.conv1(x)))


@fault("adds-itself", "block")
def residual_block_that_adds_its_output_to_itself(broken):
    return WithBlock(Residual((lambda x, y: y + y) if broken else torch.add))


@fault("shortcut-overwritten", "block.body.0")
def in_place_activation_on_the_shortcut(broken):
    return WithBlock(Residual(torch.add, inplace=broken))


@fault("shared-module", "block")
def one_block_four_times(broken):
    blocks = [Residual(torch.add)] * 3 if broken else [Residual(torch.add) for _ in range(3)]
    return WithBlock(nn.Sequential(*blocks))


@fault("shared-norm", "norm2")
def one_batchnorm_for_two_places(broken):
    class Twice(Net):
        def __init__(self):
            super().__init__()
            self.conv3, self.norm3 = conv(16, 16), nn.BatchNorm2d(16)

        def tail(self, x):
            x = self.relu(self.norm2(self.conv2(x)))
            x = self.relu((self.norm2 if broken else self.norm3)(self.conv3(x)))
            return self.head(self.unit(x).flatten(1))

    model = Twice()
    if broken:
        del model.norm3
    return model


@fault("side-output", "drop")
def dropout_of_what_is_returned_beside_the_logits(broken):
    def forward(self, x):
        x = self.unit(self.relu(self.norm2(self.conv2(self.stem(x))))).flatten(1)
        embedding = self.drop(x)
        return {"embedding": embedding, "logits": self.head(x if broken else embedding)}

    return net_with(True, forward=forward)


@fault("unread-attribute", "conv1.weight")
def requires_grad_misspelt(broken):
    model = Net()
    setattr(model.conv1.weight, "require_grad" if broken else "requires_grad", False)
    return model


@fault("unread-attribute", "unit")
def requires_grad_of_a_module(broken):
    model = Net()
    if broken:
        model.unit.requires_grad = False
    else:
        model.unit.requires_grad_(False)
    return model


@fault("dropout-settings", "drop")
def dropout_of_what_was_to_be_kept(broken):
    model = Net()
    model.drop.p = 0.9 if broken else 0.1
    return model


@fault("left-in-eval-mode")
def training_goes_on_in_eval_mode(broken):
    model = Net().train(not broken)
    return Setup(model, *pictures(), optimizer=torch.optim.SGD(model.parameters(), lr=0.05))


@fault("optimizer-settings")
def weight_decay_that_takes_all(broken):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.5 if broken else 5e-4)
    return Setup(model, *pictures(), optimizer=optimizer)


@fault("optimizer-settings", "group 1")
def group_with_a_rate_of_zero(broken):
    model = Net()
    head = {"params": model.head.parameters(), "lr": 0.0 if broken else 0.01}
    body = [p for name, p in model.named_parameters() if not name.startswith("head")]
    return Setup(model, *pictures(), optimizer=torch.optim.SGD([{"params": body}, head], lr=0.05))


@fault("optimizer-settings")
def betas_the_wrong_way_round(broken):
    model = Net()
    betas = (0.999, 0.9) if broken else (0.9, 0.999)
    return Setup(model, *pictures(), optimizer=torch.optim.Adam(model.parameters(), betas=betas))


@fault("optimizer-settings")
def rate_set_on_the_optimiser_itself(broken):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if broken:
        optimizer.lr = 0.01
    return Setup(model, *pictures(), optimizer=optimizer)


@fault("spare-outputs")
def head_of_another_data_set(broken):
    model = Net()
    model.head = nn.Linear(256, 100 if broken else CLASSES)
    images, labels = pictures()
    return Setup(model, images.flip(0), labels.flip(0))


@fault("nothing-trainable")
def head_frozen_too(broken):
    model = Net().requires_grad_(False)
    model.head.requires_grad_(not broken)
    return model


@fault("not-finite", "head")
def weights_of_nan(broken):
    model = Net()
    if broken:
        nn.init.constant_(model.head.weight, float("nan"))
    return model


@fault("stuck-at-zero", "block.body.1")
def branch_of_zeros(broken):
    model = WithBlock(Residual(torch.add))
    nn.init.zeros_(model.block.body[2].weight)
    if broken:
        nn.init.zeros_(model.block.body[1].weight)
    return model


@fault("random-in-eval")
def dropout_function_that_is_always_on(broken):
    return net_with(broken, stem=lambda self, x: F.dropout(Net.stem(self, x), 0.1))


@fault("fixed-batch-size", "position")
def parameter_of_the_batchs_size(broken):
    class Positioned(Net):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.zeros(COUNT if broken else 1, 8, SIZE, SIZE))

        def stem(self, x):
            return super().stem(x) + self.position

    return Positioned()


@fault("does-not-run", "head")
def head_of_the_wrong_width(broken):
    model = Net()
    model.head = nn.Linear(255 if broken else 256, CLASSES)
    return model


@fault("wrong-type", "conv1")
def images_of_whole_numbers(broken):
    images, labels = pictures()
    return Setup(Net(), (images * 20 + 100).byte() if broken else images, labels)


@fault("label-type")
def labels_as_floats(broken):
    images, labels = pictures()
    return Setup(Net(), images, labels.float() if broken else labels)


@fault("output-shape")
def head_without_flatten(broken):
    layers = [unit(3, 8), nn.AdaptiveAvgPool2d(1), conv(8, CLASSES, kernel=1, bias=True)]
    return nn.Sequential(*layers, *([] if broken else [nn.Flatten()]))


def smooth_pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Coloured images in which neighbours are alike, as in photographs."""
    images, labels = pictures()
    colours = torch.randn(COUNT, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    images = 0.1 * images + F.interpolate(colours, size=SIZE, mode="bilinear")
    return (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True), labels


@fault("scrambled-image")
def channels_moved_by_reshape(broken):
    images, labels = smooth_pictures()
    if broken:
        images = images.permute(0, 2, 3, 1).reshape(COUNT, 3, SIZE, SIZE)
    return Setup(Net(), images, labels)


@fault("channels-last", "0")
def channels_behind(broken):
    images, labels = smooth_pictures()
    layers = [nn.Conv2d(SIZE if broken else 3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Setup(
        nn.Sequential(*layers, nn.Linear(8, CLASSES)), images.permute(0, 2, 3, 1) if broken else images, labels
    )
