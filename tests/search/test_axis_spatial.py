"""What the spatial axis cuts: which side, of which leaves, and when it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.api import Model, plan
from meshwright.errors import StrategyError
from meshwright.task import Task
from meshwright.zoo.mlp import mlp_task


class Pixels(nn.Module):
    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.first = kind(2, 4, 3, padding=1)
        self.last = kind(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def pixels(*size: int) -> Task:
    batch = torch.randn(2, 2, *size), torch.zeros(2, *size, dtype=torch.int64)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    return Task(lambda: Pixels(len(size)), loss, batch, "pixels")


def cut(task: Task, strategy: str, devices: int) -> list[tuple[str, str, int]]:
    made = plan(task, f"local:{devices}", strategy, model=Model(task))
    return [(item.axis, item.value, item.dim) for item in made.decisions if item.axis == "spatial"]


@pytest.mark.parametrize(
    ("size", "dim"),
    [((12, 8), 2), ((8, 12), 3), ((8, 8), 2), ((6, 4, 10), 4), ((6, 7, 5), 3), ((40,), 2)],
)
def test_the_longest_side_is_cut_and_labels_with_it(size: tuple[int, ...], dim: int) -> None:
    found = cut(pixels(*size), "spatial", 4)
    assert found == [("spatial", "batch[0]", dim), ("spatial", "batch[1]", dim - 1)]


def test_two_pictures_are_cut_alike() -> None:
    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        # The two meet only as numbers, so that no group reaches from one to the other.
        return model(batch["a"]).mean() * model(batch["b"]).mean() + batch["scale"].mean()

    batch = {
        "a": torch.randn(2, 2, 12, 8), "b": torch.randn(2, 2, 12, 8), "scale": torch.randn(2, 12),
    }  # fmt: skip
    found = cut(Task(Pixels, loss, batch, "two"), "spatial", 2)
    assert found == [("spatial", "batch['a']", 2), ("spatial", "batch['b']", 2)]


def test_labels_of_whole_images_stay() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]).mean((2, 3)), batch[1])

    batch = torch.randn(4, 2, 8, 8), torch.zeros(4, dtype=torch.int64)
    task = Task(Pixels, loss, batch, "labels")
    assert cut(task, "data=2,spatial=2", 4) == [("spatial", "batch[0]", 2)]


def test_without_pictures_it_says_so() -> None:
    with pytest.raises(StrategyError, match="is an image or a volume"):
        cut(mlp_task(features=12, hidden=16, layers=1, classes=5, global_batch=8), "spatial", 2)


def test_more_devices_than_rows() -> None:
    with pytest.raises(StrategyError, match=r"batch\[0\] has at most 6 rows along a side"):
        cut(pixels(6, 5), "spatial", 8)
    assert cut(pixels(6, 5), "spatial", 6)
