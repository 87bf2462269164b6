"""Data made by a formula: there is something to learn in it, and it is the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Draw = Callable[[torch.Generator], Any]


class Drawn:
    """Batches of a function of a generator: `self[step]` depends on seed and step alone."""

    def __init__(self, draw: Draw, seed: int) -> None:
        self._draw = draw
        self._seed = seed

    def __getitem__(self, step: int) -> Any:
        return self._draw(seeded(self._seed, step))


def seeded(seed: int, step: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + step)


def fixed(*shape: int) -> Tensor:
    """Normal numbers that are the same in every batch: what there is to learn."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(20_01))


def labelled_images(
    generator: torch.Generator, batch: int, channels: int, size: int, classes: int
) -> tuple[Tensor, Tensor]:
    """(images [B, C, S, S], labels [B]): a coarse pattern of the class, under noise."""
    labels = torch.randint(classes, (batch,), generator=generator)
    patterns = fixed(classes, channels, 4, 4)[labels]
    images = F.interpolate(patterns, size=(size, size), mode="bilinear", align_corners=False)
    return images + 0.5 * torch.randn(images.shape, generator=generator), labels


def balls(
    generator: torch.Generator, batch: int, size: tuple[int, ...], classes: int, count: int = 4
) -> Tensor:
    """Labels [B, *size] int64: `count` balls of random classes on a background of class 0."""
    labels = torch.zeros(batch, *size, dtype=torch.int64)
    axes = [torch.linspace(0, 1, points) for points in size]
    lead = (batch,) + (1,) * len(size)
    for _ in range(count):
        radius = 0.1 + 0.25 * torch.rand(lead, generator=generator)
        label = torch.randint(classes, lead, generator=generator)
        distance = torch.zeros(batch, *size)
        for dim, axis in enumerate(axes):
            centre = torch.rand(lead, generator=generator)
            along = [1] * (len(size) + 1)
            along[dim + 1] = -1
            distance = distance + (axis.view(along) - centre) ** 2
        labels = torch.where(distance < radius**2, label, labels)
    return labels


def scanned(generator: torch.Generator, labels: Tensor, channels: int, classes: int) -> Tensor:
    """Images [B, C, ...] of labels [B, ...]: each class has a colour of its own, under noise."""
    colours = fixed(classes, channels)
    images = colours[labels].movedim(-1, 1).contiguous()
    return images + 0.5 * torch.randn(images.shape, generator=generator)
