"""A planned job beside one device: the same steps, every number compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meshwright.runtime.job import Job
from meshwright.runtime.reference import Reference

TOLERANCE = 1e-4

# Rounding steps of the coarsest dtype that a step computes in, where that is more than
# the tolerance: sums in bfloat16 are rounded after each device's part, one device's once.
STEPS_OF_DTYPE = 4
_STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}

# Differences are relative to a tensor's own largest value, or to this share of the largest
# of all tensors of its kind where that is more.
FLOOR = 1e-2

# Some gradients have no digits to compare: that of an attention's key bias, or of a bias
# before a batch norm, is zero but for rounding, and so is a loss whose terms cancel. A
# difference beyond the tolerance is therefore held against what one device itself loses
# to rounding, which a run in double precision tells: this many times that loss counts as
# rounding too.
ROUNDINGS = 10


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
    tolerance: float = TOLERANCE
    losses: list[tuple[float, float]] = field(default_factory=list)  # (planned, one device)

    @property
    def equal(self) -> bool:
        worst = (self.loss, self.gradient, self.parameter, self.buffer)
        return self.initial_equal and all(item.relative <= self.tolerance for item in worst)


def compare(
    job: Job, make_reference: Callable[[], Reference], batches: Iterable[Any]
) -> Comparison | None:
    """Step both over `batches`. Every process calls it; rank 0 alone makes the reference.

    Returns the comparison on rank 0 and None on others.
    """
    reference = make_reference() if job.comm.rank == 0 else None
    result = Comparison(
        tolerance=tolerance_of(value.dtype for value in job.lowered.values.values())
    )
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
            relative = _loss_difference(metrics.loss, loss, reference, batch, result.tolerance)
            result.loss.see(f"step {number}", relative)
        gradients = {path: p.grad for path, p in names.parameters().items()}
        found = _differences(job.trainer.trainable, job.gradient, gradients)
        _forgive_rounding(found, gradients, reference, batch, result.tolerance)
        for path, (relative, _) in found.items():
            result.gradient.see(path, relative)
    updated = {path: x.detach() for path, x in names.parameters().items()}
    # Parameters that start at zero are as small as their updates: the floor is set by those.
    moved = max((_largest(updated[path] - start[path]) for path in updated), default=0.0)
    _tensors(result.parameter, job.trainer.parameters, job.parameter, updated, moved)
    buffers = {k: x for k, x in names.buffers().items() if k in job.trainer.buffers}
    _tensors(result.buffer, job.trainer.buffers, job.buffer, buffers)
    return result if reference is not None else None


class _Names:
    """The reference's tensors by path; empty on ranks that have none."""

    def __init__(self, reference: Reference | None) -> None:
        self.model = None if reference is None else reference.model

    def parameters(self) -> dict[str, Tensor]:
        return {} if self.model is None else dict(self.model.named_parameters())

    def buffers(self) -> dict[str, Tensor]:
        # A parameter that the step writes to and nobody trains is held as buffers are.
        if self.model is None:
            return {}
        frozen = ((k, p.detach()) for k, p in self.model.named_parameters() if not p.requires_grad)
        return {**dict(frozen), **dict(self.model.named_buffers())}


def tolerance_of(dtypes: Iterable[str]) -> float:
    """The relative difference allowed for a step that holds values of these dtypes."""
    return max(TOLERANCE, *(STEPS_OF_DTYPE * _STEP.get(dtype, 0.0) for dtype in dtypes))


def _tensors(
    worst: Worst,
    paths: Iterable[str],
    gathered: Callable[[str], Tensor | None],
    theirs: dict[str, Any],
    scale: float | None = None,
) -> None:
    for path, (relative, _) in _differences(paths, gathered, theirs, scale).items():
        worst.see(path, relative)


def _differences(
    paths: Iterable[str],
    gathered: Callable[[str], Tensor | None],
    theirs: dict[str, Any],
    scale: float | None = None,
) -> dict[str, tuple[float, float]]:
    """Relative and largest absolute difference of each tensor that one device has.

    One tensor is compared after another, so that only one lives whole at a time.
    """
    if scale is None:
        scale = max((_largest(x) for x in theirs.values() if x is not None), default=0.0)
    found: dict[str, tuple[float, float]] = {}
    for path in paths:
        mine = gathered(path)
        other = theirs.get(path)
        if not theirs or (mine is None and other is None):
            continue
        if mine is None or other is None:
            # A parameter that no value depended on in this step has no gradient on one
            # device, and one of zeros where the step's ops are fixed beforehand.
            given = other if mine is None else mine
            none = path in theirs and given is not None and not bool(given.any())
            found[path] = (0.0, 0.0) if none else (float("inf"), float("inf"))
            continue
        relative = relative_difference(mine, other, FLOOR * scale)
        found[path] = (relative, relative * max(_largest(other), FLOOR * scale))
    return found


def _forgive_rounding(
    found: dict[str, tuple[float, float]],
    theirs: dict[str, Any],
    reference: Reference | None,
    batch: Any,
    tolerance: float,
) -> None:
    """Restate differences beyond the tolerance that are within one device's own rounding."""
    beyond = [path for path, (relative, _) in found.items() if not relative <= tolerance]
    if reference is None or not beyond:
        return
    exact = reference.exact(batch)
    for path in beyond if exact is not None else ():
        assert exact is not None
        truth, other = exact[1].get(path), theirs.get(path)
        if truth is None or other is None:
            continue
        rounding = _largest(_wide(other) - truth)
        relative, absolute = found[path]
        found[path] = (_forgiven(relative, absolute, rounding, tolerance), absolute)


def _loss_difference(
    mine: float, theirs: float, reference: Reference, batch: Any, tolerance: float
) -> float:
    """Relative, restated as `_forgive_rounding` does."""
    relative = _relative_number(mine, theirs)
    exact = None if relative <= tolerance else reference.exact(batch)
    if exact is None:
        return relative
    return _forgiven(relative, abs(mine - theirs), abs(theirs - exact[0]), tolerance)


def _forgiven(relative: float, absolute: float, rounding: float, tolerance: float) -> float:
    """`relative`, or what of the tolerance a difference within the rounding of one device takes."""
    if rounding and absolute <= ROUNDINGS * rounding:
        return tolerance * absolute / (ROUNDINGS * rounding)
    return relative


def relative_difference(mine: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    """Largest difference of two tensors, relative to the largest value of `theirs` or `floor`.

    Infinities at the same places with the same sign, as in a mask, are no difference.
    """
    if mine.shape != theirs.shape:
        return float("inf")
    if not mine.numel():
        return 0.0
    wide, other = _wide(mine), _wide(theirs)
    difference = float((wide - other).abs().masked_fill_(wide == other, 0.0).max())
    if difference == 0.0:
        return 0.0
    scale = max(_largest(theirs), floor)
    return difference / scale if scale else float("inf")


def _relative_number(mine: float, theirs: float) -> float:
    return abs(mine - theirs) / abs(theirs) if theirs else abs(mine)


def _largest(x: Tensor) -> float:
    """The largest finite magnitude: what is measured against infinity never differs. NaN stays."""
    size = _wide(x).abs()
    return float(size.masked_fill_(size.isinf(), 0.0).max()) if x.numel() else 0.0


def _wide(x: Tensor) -> Tensor:
    # `double()` would drop the imaginary part of a complex tensor.
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64)
