"""A small residual convolutional classifier for images of 8x8 to 32x32."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo.checks import require_positive


class ConvBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False
        )
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(self.first(x))))


class ConvNet(nn.Module):
    """`model(images) -> logits`, images [B, C, H, W], logits [B, classes]."""

    def __init__(self, channels: int, width: int, residual_blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = ConvBlock(channels, width)
        self.pool = nn.MaxPool2d(2)
        self.widen = ConvBlock(width, 2 * width, stride=2)
        self.residual = nn.Sequential(*(ResidualBlock(2 * width) for _ in range(residual_blocks)))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.widen(self.pool(self.stem(images)))
        x = self.average(self.residual(x)).flatten(1)
        logits: Tensor = self.head(x)
        return logits


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy; batch is (inputs [B, ...], labels [B] int64)."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def convnet_task(
    width: int = 32,
    residual_blocks: int = 2,
    image_size: int = 8,
    channels: int = 1,
    classes: int = 10,
    global_batch: int = 64,
) -> Task:
    """A classifier sized for scikit-learn's digits: 8x8 images of one channel, 10 classes."""
    require_positive(
        width=width,
        residual_blocks=residual_blocks,
        channels=channels,
        classes=classes,
        global_batch=global_batch,
    )
    if not 8 <= image_size <= 32:
        raise ModelError(
            f"image_size is {image_size}, but this network is made for 8 to 32.",
            "Give image_size=8, 16 or 32, or bring a network of your own.",
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(global_batch, channels, image_size, image_size, generator=generator)
    labels = torch.randint(classes, (global_batch,), generator=generator)
    return Task(
        model=partial(ConvNet, channels, width, residual_blocks, classes),
        loss=classification_loss,
        batch=(images, labels),
        name="convnet",
    )
