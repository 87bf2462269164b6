"""DiT (Peebles and Xie, 2022): a diffusion transformer, conditioned by adaptive layer norm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.task import Task
from meshwright.zoo.checks import require_multiple
from meshwright.zoo.diffusion import Noise, denoising_loss, draw_images, timestep_embedding
from meshwright.zoo.sizes import config_of
from meshwright.zoo.synthetic import seeded

FREQUENCIES = 256


@dataclass(frozen=True)
class DiTConfig:
    layers: int = 28
    width: int = 1152
    heads: int = 16
    patch: int = 2
    image_size: int = 32
    channels: int = 4
    classes: int = 1000
    mlp_ratio: int = 4
    global_batch: int = 256


SIZES = {
    "tiny": DiTConfig(
        2, width=16, heads=2, image_size=8, channels=1, classes=10, global_batch=8
    ),
    "small": DiTConfig(
        6, width=128, heads=4, image_size=16, channels=1, classes=10, global_batch=32
    ),
    "full": DiTConfig(),
}  # fmt: skip


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, S, D]; shift and scale [B, D]."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Attention(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        qkv = self.qkv(x).reshape(batch, seq, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, seq, width))
        return out


class Block(nn.Module):
    """What the condition says shifts, scales and gates both halves."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_ratio * config.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        out: Tensor = x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return out


class FinalLayer(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(config.width, config.patch**2 * config.channels)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        out: Tensor = self.linear(modulate(self.norm(x), shift, scale))
        return out


class DiT(nn.Module):
    """`model(noisy, timesteps, labels) -> noise`; noisy [B, C, H, W], the others [B]."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        side = config.image_size // config.patch
        self.diffuse = Noise()
        self.patches = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)
        self.positions = nn.Parameter(torch.empty(1, side * side, config.width))
        self.time = nn.Sequential(
            nn.Linear(FREQUENCIES, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.labels = nn.Embedding(config.classes, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final = FinalLayer(config)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.normal_(self.labels.weight, std=0.02)
        # Every block starts as the identity, the whole model as zero.
        for block in [*self.blocks, self.final]:
            nn.init.zeros_(block.modulation[1].weight)
            nn.init.zeros_(block.modulation[1].bias)
        nn.init.zeros_(self.final.linear.weight)

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        condition = self.time(timestep_embedding(timesteps, FREQUENCIES)) + self.labels(labels)
        x = self.patches(noisy).flatten(2).transpose(1, 2) + self.positions  # [B, S, D]
        for block in self.blocks:
            x = block(x, condition)
        return self.to_image(self.final(x, condition))

    def to_image(self, x: Tensor) -> Tensor:
        """[B, S, patch * patch * C] -> [B, C, H, W]."""
        patch, channels = self.config.patch, self.config.channels
        side = self.config.image_size // patch
        x = x.view(-1, side, side, patch, patch, channels)
        x = torch.einsum("nhwpqc->nchpwq", x)
        return x.reshape(-1, channels, side * patch, side * patch)


def draw(config: DiTConfig, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(images [B, C, H, W], timesteps [B], labels [B])."""
    return draw_images(
        generator, config.global_batch, config.channels, config.image_size, config.classes
    )


def dit_task(
    size: str = "small",
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    patch: int | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    mlp_ratio: int | None = None,
    global_batch: int | None = None,
) -> Task:
    """Denoising of images of a class; `size=full` is DiT-XL/2: 675 million parameters."""
    config = config_of(
        SIZES, size, layers=layers, width=width, heads=heads, patch=patch, image_size=image_size,
        channels=channels, classes=classes, mlp_ratio=mlp_ratio, global_batch=global_batch,
    )  # fmt: skip
    require_multiple("width", config.width, "heads", config.heads)
    require_multiple("image_size", config.image_size, "patch", config.patch)
    return Task(
        model=partial(DiT, config), loss=denoising_loss, batch=draw(config, seeded(0)), name="dit"
    )
