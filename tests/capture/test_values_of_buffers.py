"""A buffer built from a literal has a value that capture could see, and must not use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from meshwright import Task
from meshwright.capture.trace import capture
from meshwright.errors import CaptureError


class WarmUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * min(1.0, self.calls.item() / 10)


@pytest.mark.parametrize("model", [WarmUp, WarmUp()], ids=["factory", "module"])
def test_a_branch_on_a_counter_is_refused_however_the_model_is_given(model):
    task = Task(model=model, loss=lambda module, x: module(x).mean(), batch=torch.ones(2, 4))
    with pytest.raises(CaptureError, match=r"test_values_of_buffers\.py"):
        capture(task)
