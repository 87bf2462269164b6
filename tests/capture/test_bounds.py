"""Branches on a uniform draw whose outcome is known, as stochastic depth that is off."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

from meshwright.api import verify
from meshwright.capture.trace import capture
from meshwright.errors import CaptureError
from meshwright.task import Task


class Skips(nn.Module):
    """Skips its layer where `compare(draw, bound)`; then drops, which is a draw that counts."""

    def __init__(self, compare, bound, prepare=lambda draw: draw):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.compare, self.bound, self.prepare = compare, bound, prepare
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        if not self.compare(self.prepare(torch.rand([])), self.bound):
            x = self.layer(x)
        return self.dropout(self.last(x)).square().mean()


def task(*args):
    return Task(lambda: Skips(*args), lambda model, batch: model(batch), torch.randn(8, 4))


@pytest.mark.parametrize(
    ("compare", "bound", "skips"),
    [
        (operator.lt, 0.0, False), (operator.lt, -0.5, False), (operator.lt, 1.0, True),
        (operator.le, 1, True), (operator.le, -1e-9, False),
        (operator.ge, 0, True), (operator.ge, 1.0, False),
        (operator.gt, 1.0, False), (operator.gt, -0.1, True),
    ],
)  # fmt: skip
def test_what_a_draw_can_not_be_decides_the_branch(compare, bound, skips):
    program = capture(task(compare, bound)).program
    assert (program.gradients["layer.weight"] is None) == skips


@pytest.mark.parametrize(
    ("compare", "bound", "prepare"),
    [
        (operator.lt, 0.5, lambda draw: draw),
        (operator.le, 0.0, lambda draw: draw),
        (operator.gt, 0.0, lambda draw: draw),
        (operator.lt, 0.0, lambda draw: draw.mul_(-1)),
        (operator.lt, 0.0, lambda draw: draw - 0.5),
    ],
)
def test_what_depends_on_the_draw_is_refused(compare, bound, prepare):
    with pytest.raises(CaptureError, match="depends on values"):
        capture(task(compare, bound, prepare))


def test_later_draws_are_those_of_one_device_though_the_first_is_used_by_nothing():
    result = verify(task(operator.lt, 0.0), "local:4", "data")
    assert result.equal
