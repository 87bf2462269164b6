"""What counts as a difference between a planned step and one device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import meshwright
from meshwright.api import verify
from meshwright.runtime.compare import relative_difference

INF = float("inf")


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1 + 2j], [1 + 1j], 2**-0.5),  # the imaginary part counts
        ([-INF, 2.0], [-INF, 2.0], 0.0),  # a mask is as it was
        ([-INF, 2.5], [-INF, 2.0], 0.25),  # beside infinities, others are seen
        ([-INF, 2.0], [INF, 2.0], INF),
        ([-INF, 2.0], [0.0, 2.0], INF),
    ],
)
def test_relative_difference(mine: list[float], theirs: list[float], expected: float) -> None:
    found = relative_difference(torch.tensor(mine), torch.tensor(theirs))
    assert found == pytest.approx(expected)


def test_nan_is_never_within_a_tolerance() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert not relative_difference(nan, nan) <= 1.0
    assert not relative_difference(nan, torch.ones(2)) <= 1.0


class MaskedMean(nn.Module):
    """A mask of minus infinity in one buffer, and another buffer that every step changes."""

    mask: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 8)
        self.register_buffer("mask", torch.full((8, 8), -INF).triu(1))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.lin(x)
        with torch.no_grad():
            self.mean.lerp_(y.mean(0), 0.5)
        return (F.softmax(y[:, None] + self.mask, -1) @ y[..., None]).square().mean()


def _task(model: type[nn.Module]) -> meshwright.Task:
    batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return meshwright.Task(model=model, loss=None, batch=batch, name="masked")


def test_a_mask_of_infinities_is_equal_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task(MaskedMean)
    assert verify(task, "local:2", "data", steps=1).equal

    from meshwright.runtime.job import Job

    buffer = Job.buffer

    def wrong(job: Job, path: str) -> Tensor | None:
        found = buffer(job, path)
        return found + 1.0 if path == "mean" and found is not None else found

    monkeypatch.setattr(Job, "buffer", wrong)
    assert verify(task, "local:2", "data", steps=1).buffer.name == "mean"


class CancellingLoss(nn.Module):
    """Rows of a centred product add up to zero, so that the loss is rounding and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.7, 1.3, -0.4, 0.9]))

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, None, None, self.scale, training=True)
        return (y @ y.T).sum(0).mean()


def test_a_loss_that_is_nothing_but_rounding_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    from meshwright.runtime.reference import Reference

    found = verify(_task(CancellingLoss), "local:4", "data", steps=1)
    assert all(abs(loss) < 1e-5 for pair in found.losses for loss in pair)
    assert found.equal, found
    monkeypatch.setattr(Reference, "exact", lambda self, batch: None)
    assert not verify(_task(CancellingLoss), "local:4", "data", steps=1).equal
