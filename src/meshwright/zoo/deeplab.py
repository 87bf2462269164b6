"""DeepLabV3 (Chen et al., 2017): segmentation of images with dilated convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo.checks import whole_numbers
from meshwright.zoo.resnet import Bottleneck, Stem, init_convolutions, stage
from meshwright.zoo.sizes import config_of
from meshwright.zoo.synthetic import balls, scanned, seeded

UNLABELLED = 255


@dataclass(frozen=True)
class DeepLabConfig:
    """`rates` are the dilations of the pyramid, `head` its channels."""

    width: int = 64
    blocks: str = "3-4-6-3"
    rates: str = "12-24-36"
    head: int = 256
    image_size: int = 513
    channels: int = 3
    classes: int = 21
    dropout: float = 0.1
    global_batch: int = 16


SIZES = {
    "tiny": DeepLabConfig(
        4, "1-1-1-1", "1-2-3", head=16, image_size=32, classes=5, global_batch=8
    ),
    "small": DeepLabConfig(
        16, "2-2-2-2", "3-6-9", head=64, image_size=96, classes=5, global_batch=16
    ),
    "full": DeepLabConfig(),
}  # fmt: skip


class ConvNorm(nn.Sequential):
    def __init__(self, channels_in: int, channels_out: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(
                channels_in,
                channels_out,
                kernel,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                bias=False,
            ),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class GlobalPooling(nn.Module):
    """What the whole picture shows, at every pixel.

    Not normalised: over a batch of single pixels the statistics would mean little.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.relu(self.conv(self.pool(x)))
        return F.interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling."""

    def __init__(self, channels: int, head: int, rates: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNorm(channels, head, 1)])
        self.branches.extend(ConvNorm(channels, head, 3, rate) for rate in rates)
        self.branches.append(GlobalPooling(channels, head))
        self.project = ConvNorm(len(self.branches) * head, head, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([branch(x) for branch in self.branches], dim=1)
        out: Tensor = self.dropout(self.project(joined))
        return out


class DeepLab(nn.Module):
    """`model(images) -> logits`, images [B, C, H, W], logits [B, classes, H, W]."""

    def __init__(self, config: DeepLabConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config.channels, config.width)
        stages = []
        channels = config.width
        # The last stages dilate in place of striding: features of an eighth of the side.
        strides, dilations = (1, 2, 1, 1), (1, 1, 2, 4)
        for index, blocks in enumerate(whole_numbers("blocks", config.blocks)):
            width = config.width * 2**index
            stages.append(stage(channels, width, blocks, strides[index], dilations[index]))
            channels = width * Bottleneck.expansion
        self.stages = nn.Sequential(*stages)
        rates = whole_numbers("rates", config.rates)
        self.pyramid = Pyramid(channels, config.head, rates, config.dropout)
        self.refine = ConvNorm(config.head, config.head, 3)
        self.classify = nn.Conv2d(config.head, config.classes, 1)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.stem(images))
        logits = self.classify(self.refine(self.pyramid(features)))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def per_pixel_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over labelled pixels; batch is (images [B, C, H, W], labels [B, H, W])."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, ignore_index=UNLABELLED)


def draw(config: DeepLabConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(images [B, C, H, W], labels [B, H, W]); the outermost pixels are unlabelled."""
    size = (config.image_size,) * 2
    labels = balls(generator, config.global_batch, size, config.classes)
    images = scanned(generator, labels, config.channels, config.classes)
    border = torch.ones(size, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    return images, labels.masked_fill(border, UNLABELLED)


def deeplab_task(
    size: str = "small",
    width: int | None = None,
    blocks: str | None = None,
    rates: str | None = None,
    head: int | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    dropout: float | None = None,
    global_batch: int | None = None,
) -> Task:
    """Segmentation of images; `size=full` is DeepLabV3 with ResNet-50 on Pascal VOC."""
    config = config_of(
        SIZES, size, width=width, blocks=blocks, rates=rates, head=head, image_size=image_size,
        channels=channels, classes=classes, dropout=dropout, global_batch=global_batch,
    )  # fmt: skip
    whole_numbers("rates", config.rates)
    if len(whole_numbers("blocks", config.blocks)) != 4:
        raise ModelError(
            f"blocks is {config.blocks!r}, but this network has four stages.",
            "Give blocks=3-4-6-3, say.",
        )
    return Task(
        model=partial(DeepLab, config),
        loss=per_pixel_loss,
        batch=draw(config, seeded(0)),
        name="deeplab",
    )
