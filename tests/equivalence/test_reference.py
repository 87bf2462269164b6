"""The one-device side of a comparison."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from meshwright import Task, verify


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4)),
        lambda: nn.Sequential(nn.Linear(8, 8).requires_grad_(False), nn.Dropout(), nn.Linear(8, 4)),
    ],
    ids=["on the input", "after a frozen layer"],
)
def test_dropout_of_what_needs_no_gradient_draws_alike(build):
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(8, 8, generator=generator), torch.arange(8) % 4)
    task = Task(build, lambda model, b: functional.cross_entropy(model(b[0]), b[1]), batch)
    result = verify(task, "local:2", "data")
    assert result.equal, result
    different = verify(task, "local:2", "data", seed=1)
    assert different.losses != result.losses
