"""The U-Net of diffusion models (Ho et al., 2020; Dhariwal and Nichol, 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.task import Task
from meshwright.zoo.checks import require_multiple, whole_numbers
from meshwright.zoo.diffusion import Noise, denoising_loss, draw_images, timestep_embedding
from meshwright.zoo.sizes import config_of
from meshwright.zoo.synthetic import seeded


@dataclass(frozen=True)
class DiffusionUNetConfig:
    """`multiples` of `width` are the channels of each resolution; those from
    `attention_from` on (counted from 0) have attention."""

    width: int = 320
    multiples: str = "1-2-4-4"
    blocks: int = 2
    attention_from: int = 2
    heads: int = 8
    groups: int = 32
    image_size: int = 64
    channels: int = 4
    dropout: float = 0.0
    global_batch: int = 256


SIZES = {
    "tiny": DiffusionUNetConfig(
        8, "1-2", blocks=1, attention_from=1, heads=2, groups=4, image_size=8, channels=1,
        global_batch=8,
    ),
    "small": DiffusionUNetConfig(
        32, "1-2-2", blocks=1, attention_from=1, heads=4, groups=8, image_size=16, channels=1,
        global_batch=32,
    ),
    "full": DiffusionUNetConfig(),
}  # fmt: skip


class ResidualBlock(nn.Module):
    """Two convolutions, told the timestep in between."""

    def __init__(self, channels_in: int, channels_out: int, config: DiffusionUNetConfig) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time = nn.Linear(4 * config.width, channels_out)
        self.norm2 = nn.GroupNorm(config.groups, channels_out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.skip = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(time))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        out: Tensor = self.skip(x) + h
        return out


class Attention(nn.Module):
    """Every pixel attends to every other."""

    def __init__(self, channels: int, config: DiffusionUNetConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.GroupNorm(config.groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(
            batch, 3, self.heads, channels // self.heads, height * width
        )
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # [B, heads, H * W, C / heads]
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj(y.transpose(-1, -2).reshape(batch, channels, height, width))
        return out


class Level(nn.Module):
    """A residual block, with attention behind it where the resolution is low."""

    def __init__(
        self, channels_in: int, channels_out: int, attention: bool, config: DiffusionUNetConfig
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(channels_in, channels_out, config)
        self.attention = Attention(channels_out, config) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.attention(self.block(x, time))
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class DiffusionUNet(nn.Module):
    """`model(noisy, timesteps) -> noise`, noisy and noise [B, C, H, W], timesteps [B]."""

    def __init__(self, config: DiffusionUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in whole_numbers("multiples", config.multiples)]
        self.diffuse = Noise()
        self.time = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.SiLU(),
            nn.Linear(4 * config.width, 4 * config.width),
        )
        self.stem = nn.Conv2d(config.channels, config.width, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.width
        skips = [channels]
        for index, width in enumerate(widths):
            if index:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
            for _ in range(config.blocks):
                self.down.append(Level(channels, width, index >= config.attention_from, config))
                channels = width
                skips.append(channels)
        self.middle = nn.ModuleList(
            [Level(channels, channels, True, config), Level(channels, channels, False, config)]
        )
        self.up = nn.ModuleList()
        for index, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                attention = index >= config.attention_from
                self.up.append(Level(channels + skips.pop(), width, attention, config))
                channels = width
            if index:
                self.up.append(Upsample(channels))
        self.norm = nn.GroupNorm(config.groups, channels)
        self.head = nn.Conv2d(channels, config.channels, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        time = self.time(timestep_embedding(timesteps, self.config.width))
        x = self.stem(noisy)
        skips = [x]
        for module in self.down:
            x = module(x, time) if isinstance(module, Level) else module(x)
            skips.append(x)
        for module in self.middle:
            x = module(x, time)
        for module in self.up:
            if isinstance(module, Level):
                x = module(torch.cat([x, skips.pop()], dim=1), time)
            else:
                x = module(x)
        out: Tensor = self.head(F.silu(self.norm(x)))
        return out


def draw(config: DiffusionUNetConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(images [B, C, H, W], timesteps [B])."""
    images, timesteps, _ = draw_images(
        generator, config.global_batch, config.channels, config.image_size, classes=10
    )
    return images, timesteps


def diffusion_unet_task(
    size: str = "small",
    width: int | None = None,
    multiples: str | None = None,
    blocks: int | None = None,
    attention_from: int | None = None,
    heads: int | None = None,
    groups: int | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    dropout: float | None = None,
    global_batch: int | None = None,
) -> Task:
    """Denoising of images; `size=full` is a latent diffusion model with 664 million parameters."""
    config = config_of(
        SIZES, size, width=width, multiples=multiples, blocks=blocks,
        attention_from=attention_from, heads=heads, groups=groups, image_size=image_size,
        channels=channels, dropout=dropout, global_batch=global_batch,
    )  # fmt: skip
    levels = len(whole_numbers("multiples", config.multiples))
    require_multiple("width", config.width, "groups", config.groups)
    require_multiple("width", config.width, "heads", config.heads)
    require_multiple("width", config.width, "two", 2)
    require_multiple("image_size", config.image_size, f"2**{levels - 1}", 2 ** (levels - 1))
    return Task(
        model=partial(DiffusionUNet, config),
        loss=denoising_loss,
        batch=draw(config, seeded(0)),
        name="diffusion-unet",
    )
