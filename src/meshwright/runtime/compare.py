"""A planned job beside one device: the same steps, every number compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from meshwright.runtime.job import Job
from meshwright.runtime.reference import Reference

TOLERANCE = 1e-4

# A tensor whose values are lost in the rounding of much larger ones (the gradient of an
# attention's key bias is zero but for that) has no digits to compare. Differences are
# relative to a tensor's own largest value, or to this share of the largest of all tensors
# of its kind where that is more.
FLOOR = 1e-2


@dataclass
class Worst:
    """The largest relative difference seen, and where."""

    name: str = ""
    relative: float = 0.0

    def see(self, name: str, relative: float) -> None:
        # A NaN difference compares false with everything, and must not pass unseen.
        if not relative <= self.relative or not self.name:
            self.name, self.relative = name, relative


@dataclass
class Comparison:
    """Worst differences by kind, over all steps. `initial` is of parameters before the first."""

    loss: Worst = field(default_factory=Worst)
    gradient: Worst = field(default_factory=Worst)
    parameter: Worst = field(default_factory=Worst)
    buffer: Worst = field(default_factory=Worst)
    initial_equal: bool = True
    losses: list[tuple[float, float]] = field(default_factory=list)  # (planned, one device)

    @property
    def equal(self) -> bool:
        worst = (self.loss, self.gradient, self.parameter, self.buffer)
        return self.initial_equal and all(item.relative <= TOLERANCE for item in worst)


def compare(
    job: Job, make_reference: Callable[[], Reference], batches: Iterable[Any]
) -> Comparison | None:
    """Step both over `batches`. Every process calls it; rank 0 alone makes the reference.

    Returns the comparison on rank 0 and None on others.
    """
    reference = make_reference() if job.comm.rank == 0 else None
    result = Comparison()
    names = _Names(reference)
    start = {path: x.detach().clone() for path, x in names.parameters().items()}
    for path in job.trainer.parameters:
        mine = job.parameter(path)
        if reference is not None:
            theirs = start[path]
            result.initial_equal &= bool(mine.dtype == theirs.dtype and mine.equal(theirs))
    for number, batch in enumerate(batches, 1):
        metrics = job.step(batch)
        if reference is not None:
            loss = reference.step(batch)
            result.losses.append((metrics.loss, loss))
            result.loss.see(f"step {number}", _relative_number(metrics.loss, loss))
        _tensors(
            result.gradient, job.trainer.trainable, job.gradient,
            {path: p.grad for path, p in names.parameters().items()},
        )  # fmt: skip
    updated = {path: x.detach() for path, x in names.parameters().items()}
    # Parameters that start at zero are as small as their updates: the floor is set by those.
    moved = max((_largest(updated[path] - start[path]) for path in updated), default=0.0)
    _tensors(result.parameter, job.trainer.parameters, job.parameter, updated, moved)
    _tensors(result.buffer, job.trainer.buffers, job.buffer, names.buffers())
    return result if reference is not None else None


class _Names:
    """The reference's tensors by path; empty on ranks that have none."""

    def __init__(self, reference: Reference | None) -> None:
        self.model = None if reference is None else reference.model

    def parameters(self) -> dict[str, Tensor]:
        return {} if self.model is None else dict(self.model.named_parameters())

    def buffers(self) -> dict[str, Tensor]:
        return {} if self.model is None else dict(self.model.named_buffers())


def _tensors(
    worst: Worst,
    paths: Iterable[str],
    gathered: Callable[[str], Tensor | None],
    theirs: dict[str, Any],
    scale: float | None = None,
) -> None:
    """Compare one tensor after another, so that only one lives whole at a time."""
    if scale is None:
        scale = max((_largest(x) for x in theirs.values() if x is not None), default=0.0)
    for path in paths:
        mine = gathered(path)
        if not theirs:
            continue
        other = theirs.get(path)
        if mine is None and other is None:
            continue
        if mine is None or other is None:
            worst.see(path, float("inf"))
            continue
        worst.see(path, relative_difference(mine, other, FLOOR * scale))


def relative_difference(mine: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    """Largest difference of two tensors, relative to the largest value of `theirs` or `floor`."""
    if mine.shape != theirs.shape:
        return float("inf")
    if not mine.numel():
        return 0.0
    difference = float((mine.double() - theirs.double()).abs().max())
    if difference == 0.0:
        return 0.0
    scale = max(_largest(theirs), floor)
    return difference / scale if scale else float("inf")


def _relative_number(mine: float, theirs: float) -> float:
    return abs(mine - theirs) / abs(theirs) if theirs else abs(mine)


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().max()) if x.numel() else 0.0
