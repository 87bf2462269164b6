"""3D U-Net for the segmentation of volumes (Çiçek et al., 2016; nnU-Net's configuration)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.task import Task
from meshwright.zoo.checks import require_multiple, require_one_of
from meshwright.zoo.sizes import config_of
from meshwright.zoo.synthetic import balls, scanned, seeded

WIDEST = 320  # channels of the deep levels are bounded by this
NORMS = ("instance", "batch", "group")
UPSAMPLINGS = ("transposed", "trilinear")


@dataclass(frozen=True)
class UNet3dConfig:
    """`levels` counts the resolutions; each halves the side of the one before."""

    width: int = 32
    levels: int = 6
    volume: int = 128
    channels: int = 4
    classes: int = 4
    norm: str = "instance"
    up: str = "transposed"
    global_batch: int = 4


SIZES = {
    "tiny": UNet3dConfig(8, levels=3, volume=16, channels=1, classes=3),
    "small": UNet3dConfig(16, levels=4, volume=32, channels=1, classes=3),
    "full": UNet3dConfig(),
}


class ConvBlock(nn.Sequential):
    """Two convolutions, each normalised."""

    def __init__(self, channels_in: int, channels_out: int, norm: str, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1),
            normalisation(norm, channels_out),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv3d(channels_out, channels_out, 3, padding=1),
            normalisation(norm, channels_out),
            nn.LeakyReLU(0.01, inplace=True),
        )


def normalisation(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    if norm == "group":
        return nn.GroupNorm(4, channels)
    return nn.InstanceNorm3d(channels, affine=True)


class Up(nn.Module):
    """Doubles the side, joins the level's skip connection and convolves both."""

    def __init__(self, channels_in: int, channels_out: int, config: UNet3dConfig) -> None:
        super().__init__()
        self.up: nn.Module
        if config.up == "transposed":
            self.up = nn.ConvTranspose3d(channels_in, channels_out, 2, stride=2)
        else:
            self.up = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
                nn.Conv3d(channels_in, channels_out, 1),
            )
        self.conv = ConvBlock(2 * channels_out, channels_out, config.norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([self.up(x), skip], dim=1)
        out: Tensor = self.conv(x)
        return out


class UNet3d(nn.Module):
    """`model(volumes) -> logits`, volumes [B, C, D, H, W], logits [B, classes, D, H, W]."""

    def __init__(self, config: UNet3dConfig) -> None:
        super().__init__()
        self.config = config
        widths = [min(config.width * 2**level, WIDEST) for level in range(config.levels)]
        self.down = nn.ModuleList()
        channels = config.channels
        for level, width in enumerate(widths):
            stride = 1 if level == 0 else 2
            self.down.append(ConvBlock(channels, width, config.norm, stride))
            channels = width
        self.up = nn.ModuleList(
            Up(deep, shallow, config)
            for deep, shallow in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv3d(widths[0], config.classes, 1)

    def forward(self, volumes: Tensor) -> Tensor:
        x = volumes
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        logits: Tensor = self.head(x)
        return logits


def segmentation_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy plus soft Dice; batch is (volumes [B, C, D, H, W], labels [B, D, H, W])."""
    volumes, labels = batch
    logits = model(volumes)
    likely = logits.softmax(dim=1)
    truth = F.one_hot(labels, logits.size(1)).movedim(-1, 1).to(likely.dtype)
    dims = (2, 3, 4)
    overlap = (likely * truth).sum(dims)
    extent = likely.sum(dims) + truth.sum(dims)
    dice = (2 * overlap + 1) / (extent + 1)
    loss: Tensor = F.cross_entropy(logits, labels) + 1 - dice.mean()
    return loss


def draw(config: UNet3dConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(volumes [B, C, D, H, W], labels [B, D, H, W])."""
    labels = balls(generator, config.global_batch, (config.volume,) * 3, config.classes)
    return scanned(generator, labels, config.channels, config.classes), labels


def unet3d_task(
    size: str = "small",
    width: int | None = None,
    levels: int | None = None,
    volume: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    norm: str | None = None,
    up: str | None = None,
    global_batch: int | None = None,
) -> Task:
    """Segmentation of cubes of side `volume`; `size=full` is nnU-Net's for brain tumours."""
    config = config_of(
        SIZES, size, width=width, levels=levels, volume=volume, channels=channels,
        classes=classes, norm=norm, up=up, global_batch=global_batch,
    )  # fmt: skip
    require_one_of("norm", config.norm, NORMS)
    require_one_of("up", config.up, UPSAMPLINGS)
    require_multiple("volume", config.volume, f"2**{config.levels - 1}", 2 ** (config.levels - 1))
    if config.norm == "group":
        require_multiple("width", config.width, "groups", 4)
    return Task(
        model=partial(UNet3d, config),
        loss=segmentation_loss,
        batch=draw(config, seeded(0)),
        name="unet3d",
    )
