"""What the files of user-like models have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.task import Task


@dataclass(frozen=True)
class Case:
    """A task and the strategies that it is verified under, on two devices.

    microbatches and batches are handed to `verify`. refused: what the error says of a
    model that can't be captured, as a regular expression.
    """

    task: Callable[[], Task]
    strategies: tuple[str, ...] = ("data=2,zero=3", "tensor=2")
    microbatches: int | None = None
    batches: Callable[[], list[Any]] | None = None
    refused: str = ""


def noise(*shape: int, seed: int = 4) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(*shape: int, below: int = 16) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(3))


def square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).pow(2).mean()


def on_noise(model: Callable[[], nn.Module], *shape: int, refused: str = "") -> Case:
    return Case(lambda: Task(model, square, noise(*(shape or (4, 8)))), refused=refused)
