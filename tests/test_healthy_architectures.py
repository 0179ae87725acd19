"""No false alarm: review finds no error in architectures that are known to work."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models import swin_transformer as swin
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.vgg import make_layers

from netreview import review

SMALL_VIT = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
SMALL_MAXVIT = {"input_size": (64, 64), "stem_channels": 16, "partition_size": 2, "head_dim": 16}
SMALL_MAXVIT |= {"block_channels": [16, 32], "block_layers": [1, 1], "stochastic_depth_prob": 0.1}
SMALL_SWIN = {"patch_size": [4, 4], "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
SWIN_V2 = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
CONVNEXT = [models.convnext.CNBlockConfig(24, 48, 2), models.convnext.CNBlockConfig(48, None, 2)]
EFFICIENTNET = [MBConvConfig(1, 3, 1, 32, 16, 1, 0.5), MBConvConfig(6, 5, 2, 16, 40, 2, 0.5)]
VGG = [16, "M", 32, 32, "M", 512, "M"]


def narrow(model: nn.Module, num_classes: int) -> nn.Module:
    """A model with a head of 64 in place of the 4,096 that cost so much time."""
    layers = [nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Dropout(), nn.Linear(64, num_classes)]
    model.classifier = nn.Sequential(*layers)
    model(torch.zeros(2, 3, 64, 64))  # sets the size of the lazy layer
    return model


def resnet(block, **options):
    return lambda num_classes: models.ResNet(block, [1, 1, 1, 1], num_classes=num_classes, **options)


ARCHITECTURES = {  # the architecture, in as small a form as still is one: builder, image size
    "AlexNet": (lambda n: narrow(models.alexnet(), n), 64),
    "VGG": (lambda n: narrow(models.VGG(make_layers(VGG)), n), 64),
    "VGG with BatchNorm": (lambda n: narrow(models.VGG(make_layers(VGG, batch_norm=True)), n), 64),
    "ResNet": (resnet(models.resnet.BasicBlock), 64),
    "ResNet with bottlenecks": (resnet(models.resnet.Bottleneck), 64),
    "ResNeXt": (resnet(models.resnet.Bottleneck, groups=32, width_per_group=4), 64),
    "Inception v3": (lambda n: models.inception_v3(num_classes=n, init_weights=False, aux_logits=False), 80),
    "GoogLeNet": (lambda n: models.googlenet(num_classes=n, init_weights=False), 64),
    "SqueezeNet": (lambda n: models.squeezenet1_1(num_classes=n), 64),
    "DenseNet": (lambda n: models.DenseNet(8, (2, 2, 2), 16, num_classes=n), 64),
    "MobileNet v2": (lambda n: models.mobilenet_v2(num_classes=n, width_mult=0.35), 64),
    "MobileNet v3": (lambda n: models.mobilenet_v3_small(num_classes=n), 64),
    "MNASNet": (lambda n: models.mnasnet0_5(num_classes=n), 64),
    "ShuffleNet v2": (lambda n: models.shufflenet_v2_x0_5(num_classes=n), 64),
    "EfficientNet": (lambda n: models.EfficientNet(EFFICIENTNET, 0.2, num_classes=n), 64),
    "RegNet X": (lambda n: models.regnet_x_400mf(num_classes=n), 32),
    "RegNet Y": (lambda n: models.regnet_y_400mf(num_classes=n), 32),
    "ConvNeXt": (lambda n: models.ConvNeXt(CONVNEXT, num_classes=n), 64),
    "ViT": (lambda n: models.VisionTransformer(**SMALL_VIT, num_classes=n), 32),
    "Swin": (lambda n: models.SwinTransformer(**SMALL_SWIN, num_classes=n), 64),
    "Swin v2": (lambda n: models.SwinTransformer(**SMALL_SWIN, **SWIN_V2, num_classes=n), 64),
    "MaxViT": (lambda n: models.MaxVit(**SMALL_MAXVIT, num_classes=n), 64),
}


def batch(size: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 3, size, size), torch.arange(count) % 4


def errors(model, images, labels, **options) -> list[str]:
    return [str(finding) for finding in review(model, images, labels, **options) if finding.severity == "error"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_untrained(name):
    build, size = ARCHITECTURES[name]
    torch.manual_seed(0)
    assert not errors(build(4), *batch(size))


@pytest.mark.parametrize("name", ["ResNet", "MobileNet v2", "EfficientNet", "ViT", "ConvNeXt"])
def test_after_a_few_steps(name):
    build, size = ARCHITECTURES[name]
    torch.manual_seed(0)
    model, (images, labels) = build(4), batch(size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert not errors(model, images, labels, optimizer=optimizer)


@pytest.mark.parametrize("name", ["AlexNet", "SqueezeNet", "DenseNet", "EfficientNet", "ConvNeXt", "ViT", "Swin"])
def test_no_warning_either(name):
    """Of those whose maps are not too small at these sizes."""
    build, size = ARCHITECTURES[name]
    torch.manual_seed(0)
    assert not [str(finding) for finding in review(build(4), *batch(size)) if finding.severity == "warning"]
