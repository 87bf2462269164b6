"""Python state that a step changes is told, or refused where numbers would be wrong."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import Tensor, nn
from usercase import noise, square

from meshwright.api import Model
from meshwright.capture import capture
from meshwright.capture.frozen import FrozenState
from meshwright.errors import CaptureError
from meshwright.task import Task


class Stateful(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.kind = kind
        self.calls = 0
        self.ready = False
        self.previous = torch.zeros(8)
        self.cache: dict[int, Tensor] = {}
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        if self.kind == "counter":
            self.calls += 1
            h = h * self.calls
        if self.kind == "flag" and not self.ready:
            self.ready = True
            h = h * 2
        if self.kind == "random" and random.random() < 2:
            h = h + 1
        if self.kind == "carried":
            h = h + self.previous
            self.previous = h.detach().mean(0)
        if self.kind == "kept":
            if self.kept is not None:
                h = h + self.kept
            self.kept = h.detach()
        if self.kind == "cache":
            if 8 not in self.cache:
                self.cache[8] = torch.arange(8.0)
            h = h + self.cache[8]
        return h


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("counter", r"calls \(0, then 1\)"),
        ("flag", r"ready \(False, then True\)"),
        ("random", "Python's random"),
        ("kept", r"kept \(None, then"),
    ],
)
def test_what_is_frozen_is_named(kind: str, named: str) -> None:
    before = random.getstate()
    with pytest.warns(FrozenState, match=named):
        capture(Task(lambda: Stateful(kind), square, noise(4, 8)))
    assert random.getstate() == before


@pytest.mark.parametrize("built", [False, True])
def test_a_tensor_carried_to_the_next_step_is_refused(built: bool) -> None:
    model = Stateful("carried") if built else lambda: Stateful("carried")
    with pytest.raises(CaptureError, match="previous is a plain attribute"):
        capture(Task(model, square, noise(4, 8)))


def test_a_cache_is_not_kept_from_one_capture_to_the_next() -> None:
    task = Task(lambda: Stateful("cache"), square, noise(4, 8))
    model = Model(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targets = [
            [op.target for op in model.captured(noise(rows, 8))[0].program.ops] for rows in (4, 2)
        ]
    assert targets[0] == targets[1]
