"""Models with something wrong; each factory is a MODEL of a test."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from meshwright import Task


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no luck today")


def fails() -> Task:
    return Task(Fails, _loss, torch.randn(8, 16))


def misfit() -> Task:
    return Task(lambda: nn.Linear(16, 16), _loss, torch.randn(8, 12))


def quits() -> Task:
    raise SystemExit(3)


def chatty() -> Task:
    print("printed by a model")
    os.write(1, b"written past Python\n")
    return Task(lambda: nn.Linear(16, 16), _loss, torch.randn(8, 16))


def buggy() -> Task:
    """Not the user's fault as far as the command line can tell."""
    return Task(lambda: nn.Linear(16, 16), _loss, torch.randn(8, 16))
