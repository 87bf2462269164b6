"""What diffusion models share: the noise schedule, the loss, the embedding of a timestep, data."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.zoo.synthetic import labelled_images

STEPS = 1000


class Noise(nn.Module):
    """The share of signal and of noise at each timestep: linear betas (Ho et al., 2020)."""

    signal: Tensor
    noise: Tensor

    def __init__(self) -> None:
        super().__init__()
        betas = torch.linspace(1e-4, 0.02, STEPS)
        alphas = torch.cumprod(1 - betas, dim=0)
        self.register_buffer("signal", alphas.sqrt())
        self.register_buffer("noise", (1 - alphas).sqrt())

    def forward(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy images [B, C, H, W] at timesteps [B]."""
        signal_share = self.signal[timesteps].view(-1, 1, 1, 1)
        noise_share = self.noise[timesteps].view(-1, 1, 1, 1)
        return signal_share * images + noise_share * noise


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """[B] -> [B, width]: sines and cosines of wavelengths up to 10,000."""
    half = width // 2
    exponents = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
    frequencies = torch.exp(-math.log(10_000) * exponents)
    angles = timesteps[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def denoising_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """How well the noise is told from the image.

    Batch is (images [B, C, H, W], timesteps [B]) and what else the model is told.
    """
    images, timesteps, *condition = batch
    noise = torch.randn_like(images)
    noisy = model.diffuse(images, noise, timesteps)  # type: ignore[operator]
    return F.mse_loss(model(noisy, timesteps, *condition), noise)


def draw_images(
    generator: torch.Generator, batch: int, channels: int, size: int, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(images [B, C, H, W], timesteps [B], classes [B])."""
    images, labels = labelled_images(generator, batch, channels, size, classes)
    return images, torch.randint(STEPS, (batch,), generator=generator), labels
