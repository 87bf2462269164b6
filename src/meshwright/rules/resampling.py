"""Linear maps of one spatial dim as weights: pooling by means, upsampling, padding with rows.

Each output row is a weighted sum of a run of input rows. The formulas are
those of PyTorch's kernels (ATen/native/UpSample.h, AdaptiveAveragePooling.cpp,
AvgPoolKernel.cpp), which work out source positions in single precision; so
does this file, since rounding decides which row is nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor

import numpy as np

from meshwright.layout.halo import Range
from meshwright.program.types import Argument

Taps = tuple[tuple[int, tuple[float, ...]], ...]  # of each output row: first input row, weights

# How an average over a window is divided: by all its rows, by those that are there, or not at all.
DIVIDE_BY_ALL, DIVIDE_BY_THERE, UNDIVIDED = range(3)

_CUBIC = -0.75  # PyTorch's coefficient, that of Keys (1981) being -0.5


@dataclass(frozen=True, slots=True)
class Resampling:
    """One dim: `kind` and its `options`, from `size` input rows to `made` output rows.

    options: of `nearest`, `exact`, `linear` and `cubic` the scale (0 for none
    given), of the last two whether corners are aligned before it; of `average`
    kernel, stride, padding and how to divide; of `reflect` and `replicate` the
    rows before.
    """

    kind: str
    size: int
    made: int
    options: tuple[float, ...] = ()

    def key(self) -> tuple[Argument, ...]:
        """As an argument of a lowered op."""
        return (self.kind, self.size, self.made, tuple(self.options))

    def reads(self, rows: Range) -> Range:
        """Input rows that output `rows` need."""
        if rows[0] >= rows[1]:
            return (0, 0)
        needed = [(first, first + len(weights)) for first, weights in taps(self)[slice(*rows)]]
        return min(first for first, _ in needed), max(past for _, past in needed)


@lru_cache(maxsize=512)
def taps(resampling: Resampling) -> Taps:
    return tuple(_TAPS[resampling.kind](resampling, row) for row in range(resampling.made))


def _joined(
    size: int, rows: Sequence[int], weights: Sequence[float]
) -> tuple[int, tuple[float, ...]]:
    """A run of input rows, rows beyond the ends taken for the last ones there."""
    held = [min(max(row, 0), size - 1) for row in rows]
    run = [0.0] * (max(held) - min(held) + 1)
    for row, weight in zip(held, weights, strict=True):
        run[row - min(held)] += weight
    return min(held), tuple(run)


def _scale(resampling: Resampling) -> np.float32:
    """Input rows for one output row, from the scale that the user gave or from the sizes."""
    given = resampling.options[-1] if resampling.options else 0.0
    if given > 0:
        return np.float32(1.0 / given)
    return np.float32(resampling.size) / np.float32(resampling.made)


def _nearest(it: Resampling, row: int) -> tuple[int, tuple[float, ...]]:
    if it.size == it.made:
        source = row
    elif it.made == 2 * it.size:
        source = row // 2
    else:
        source = floor(np.float32(row) * _scale(it))
    return min(source, it.size - 1), (1.0,)


def _exact(it: Resampling, row: int) -> tuple[int, tuple[float, ...]]:
    return min(floor(np.float32(row + 0.5) * _scale(it)), it.size - 1), (1.0,)


def _position(it: Resampling, row: int) -> np.float32:
    if it.options[0]:
        if it.made <= 1:
            return np.float32(0)
        return np.float32(it.size - 1) / np.float32(it.made - 1) * np.float32(row)
    return np.float32(_scale(it) * np.float32(row + 0.5)) - np.float32(0.5)


def _linear(it: Resampling, row: int) -> tuple[int, tuple[float, ...]]:
    if it.size == it.made:
        return row, (1.0,)
    position = max(float(_position(it, row)), 0.0)
    first = min(int(position), it.size - 1)
    share = min(max(position - first, 0.0), 1.0)
    return _joined(it.size, (first, first + 1), (1.0 - share, share))


def _cubic(it: Resampling, row: int) -> tuple[int, tuple[float, ...]]:
    if it.size == it.made:
        return row, (1.0,)
    position = _position(it, row)
    first = floor(position)
    t = min(max(float(position) - first, 0.0), 1.0)

    def near(x: float) -> float:
        return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1

    def far(x: float) -> float:
        return ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC

    weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
    return _joined(it.size, range(first - 1, first + 3), weights)


def _mean(it: Resampling, row: int) -> tuple[int, tuple[float, ...]]:
    first = row * it.size // it.made
    past = -(-(row + 1) * it.size // it.made)
    return first, (1.0 / (past - first),) * (past - first)


def _average(it: Resampling, row: int) -> tuple[int, tuple[float, ...]]:
    kernel, stride, padding, how = (int(option) for option in it.options)
    start = row * stride - padding
    past = min(start + kernel, it.size + padding)
    with_padding = past - start
    first, past = max(start, 0), min(past, it.size)
    divisor = {DIVIDE_BY_ALL: with_padding, DIVIDE_BY_THERE: past - first, UNDIVIDED: 1}[how]
    return first, (1.0 / divisor,) * (past - first)


def _reflect(it: Resampling, row: int) -> tuple[int, tuple[float, ...]]:
    source = abs(row - int(it.options[0]))
    last = it.size - 1
    return (source if source <= last else 2 * last - source), (1.0,)


def _replicate(it: Resampling, row: int) -> tuple[int, tuple[float, ...]]:
    return min(max(row - int(it.options[0]), 0), it.size - 1), (1.0,)


_TAPS = {
    "nearest": _nearest, "exact": _exact, "linear": _linear, "cubic": _cubic, "mean": _mean,
    "average": _average, "reflect": _reflect, "replicate": _replicate,
}  # fmt: skip
