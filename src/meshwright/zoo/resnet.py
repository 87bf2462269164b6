"""ResNet with bottlenecks (He et al., 2015), as for ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from meshwright.task import Task
from meshwright.zoo.checks import whole_numbers
from meshwright.zoo.convnet import classification_loss
from meshwright.zoo.sizes import config_of
from meshwright.zoo.synthetic import labelled_images, seeded


@dataclass(frozen=True)
class ResNetConfig:
    """`blocks` are the bottlenecks of each stage; `width` are the channels of the first."""

    width: int = 64
    blocks: str = "3-4-6-3"
    image_size: int = 224
    channels: int = 3
    classes: int = 1000
    global_batch: int = 256


SIZES = {
    "tiny": ResNetConfig(8, "1-1-1-1", image_size=64, classes=10, global_batch=8),
    "small": ResNetConfig(32, "2-2-2-2", image_size=64, classes=10, global_batch=32),
    "full": ResNetConfig(),
}


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += identity
        out: Tensor = self.relu(x)
        return out


class Stem(nn.Sequential):
    """A quarter of the picture's side."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )


def stage(channels_in: int, width: int, blocks: int, stride: int, dilation: int = 1) -> nn.Module:
    """`blocks` bottlenecks, the first of which strides."""
    first = Bottleneck(channels_in, width, stride, dilation)
    out = width * Bottleneck.expansion
    return nn.Sequential(
        first, *(Bottleneck(out, width, dilation=dilation) for _ in range(blocks - 1))
    )


def init_convolutions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet(nn.Module):
    """`model(images) -> logits`, images [B, C, H, W], logits [B, classes]."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config.channels, config.width)
        stages = []
        channels = config.width
        for index, blocks in enumerate(whole_numbers("blocks", config.blocks)):
            width = config.width * 2**index
            stages.append(stage(channels, width, blocks, stride=1 if index == 0 else 2))
            channels = width * Bottleneck.expansion
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, config.classes)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.stem(images))
        logits: Tensor = self.head(torch.flatten(self.pool(x), 1))
        return logits


def draw(config: ResNetConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(images [B, C, H, W], labels [B])."""
    return labelled_images(
        generator, config.global_batch, config.channels, config.image_size, config.classes
    )


def resnet50_task(
    size: str = "small",
    width: int | None = None,
    blocks: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    global_batch: int | None = None,
) -> Task:
    """An image classifier; `size=full` is ResNet-50 on ImageNet: 25.6 million parameters."""
    config = config_of(
        SIZES, size, width=width, blocks=blocks, image_size=image_size, channels=channels,
        classes=classes, global_batch=global_batch,
    )  # fmt: skip
    whole_numbers("blocks", config.blocks)
    return Task(
        model=partial(ResNet, config),
        loss=classification_loss,
        batch=draw(config, seeded(0)),
        name="resnet50",
    )
