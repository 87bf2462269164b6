"""Random draws by global position, so that a plan doesn't change them.

Element i (row-major) of the whole tensor is word i of a Philox 4x64 stream
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) whose
128-bit key is a hash of (seed, op, step, microbatch, ...). A device draws only
what it holds: it jumps to the start of each contiguous run. When runs are
short it draws an enclosing range and keeps its part, whichever costs less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meshwright.layout.types import Split
from meshwright.runtime.primitives import Cut, shard

Cuts = Sequence[tuple[Split, int, int, int]]  # as returned by `layout.types.cuts`

# What decides how to cover the local part: a jump against drawing one element more.
_JUMP_S = 4e-6
_DRAW_S = 5e-9
_TORCH = {4: torch.float32, 8: torch.float64}
# Bits of a uniform draw that dtypes below float32 hold without rounding up to 1.
_DIGITS = {torch.bfloat16: 8, torch.float16: 11}


def uniform(
    shape: tuple[int, ...], cuts: Cuts, key: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """This device's part of a tensor of `shape`, uniform on [0, 1).

    `cuts` says which part (none: all of it); `key` names the draw.
    """
    if dtype is torch.float64:
        return _draw(shape, cuts, key, np.dtype(np.float64))
    values = _draw(shape, cuts, key, np.dtype(np.float32))
    if dtype is torch.float32:
        return values
    scale = float(2 ** _DIGITS[dtype])
    return values.mul_(scale).floor_().mul_(1 / scale).to(dtype)


def normal(
    shape: tuple[int, ...], cuts: Cuts, key: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """This device's part of a tensor of `shape`, standard normal.

    By the inverse distribution function, from 53 random bits: tails reach 8 sigma.
    """
    probability = _draw(shape, cuts, key, np.dtype(np.float64)).clamp_(min=2.0**-54)
    result: Tensor = torch.special.ndtri(probability)
    return result.to(dtype)


def bernoulli(shape: tuple[int, ...], cuts: Cuts, key: tuple[int, ...], p: float) -> Tensor:
    """This device's part of a bool tensor of `shape`, True with probability `p`."""
    return _draw(shape, cuts, key, np.dtype(np.float32)) < p


def dropout(
    x: Tensor, p: float, shape: tuple[int, ...], cuts: Cuts, key: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """As `aten.native_dropout` in training: the scaled local `x` and the bool mask of what stays.

    `x` is this device's part of a tensor of `shape`.
    """
    if p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    mask = bernoulli(shape, cuts, key, 1 - p).to(x.device)
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return (x * mask).mul_(scale), mask


@dataclass(frozen=True)
class _Cover:
    """How to draw a local part.

    starts, lengths: runs of the whole tensor to draw one after another. [runs]
    drawn: their shape, dims that are drawn whole included.
    keep: cuts of the dims that are drawn whole: (cut, index, parts).
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    drawn: tuple[int, ...]
    keep: tuple[tuple[Cut, int, int], ...]


def _draw(
    shape: tuple[int, ...], cuts: Cuts, key: tuple[int, ...], dtype: np.dtype[np.floating]
) -> Tensor:
    cover = _cover(tuple(shape), tuple(cuts))
    bits = np.random.Philox(key=_philox_key(key))
    generator = np.random.Generator(bits)
    # PyTorch's own memory, so that measurements of memory see it
    drawn = torch.empty(sum(cover.lengths), dtype=_TORCH[dtype.itemsize])
    out = drawn.numpy()
    per_count = 32 // dtype.itemsize  # one Philox counter gives 32 bytes
    filled = count = 0
    for start, length in zip(cover.starts, cover.lengths, strict=True):
        target, skip = divmod(start, per_count)
        bits.advance(target - count)  # also drops what is left of a half-used counter
        if skip:
            generator.random(skip, dtype.type)
        generator.random(dtype=dtype.type, out=out[filled : filled + length])
        filled += length
        count = target - (-(skip + length) // per_count)
    result = drawn.view(cover.drawn)
    for cut, index, parts in cover.keep:
        result = shard(result, cut, index, parts)
    return result


def _philox_key(key: tuple[int, ...]) -> int:
    text = ",".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


@lru_cache(maxsize=1024)
def _cover(shape: tuple[int, ...], cuts: tuple[tuple[Split, int, int, int], ...]) -> _Cover:
    """The cheapest cover: dims after some level are drawn whole, that level by its intervals."""
    # A cut leaves the outer part of those inside it whole: inner cuts go first.
    cuts = tuple(sorted(cuts, key=lambda item: -item[0].outer))
    held = _positions(shape, cuts)
    strides = [int(np.prod(shape[dim + 1 :], dtype=np.int64)) for dim in range(len(shape))]
    best, best_s = -1, float("inf")
    for level in range(len(shape)):
        outer = int(np.prod([len(held[dim]) for dim in range(level)], dtype=np.int64))
        jumps = outer * len(_intervals(held[level]))
        cost_s = jumps * _JUMP_S + outer * len(held[level]) * strides[level] * _DRAW_S
        if cost_s < best_s:
            best, best_s = level, cost_s
    if best < 0:  # a scalar
        return _Cover((0,), (1,), (), ())
    offsets = np.zeros(1, np.int64)
    for dim in range(best):
        offsets = (offsets[:, None] + held[dim] * strides[dim]).reshape(-1)
    intervals = _intervals(held[best]) * strides[best]
    starts = (offsets[:, None] + intervals[:, 0]).reshape(-1)
    lengths = np.broadcast_to(intervals[:, 1] - intervals[:, 0], (len(offsets), len(intervals)))
    return _Cover(
        tuple(starts.tolist()),
        tuple(lengths.reshape(-1).tolist()),
        (*(len(held[dim]) for dim in range(best + 1)), *shape[best + 1 :]),
        tuple(_later_cuts(shape, cuts, best)),
    )


def _later_cuts(
    shape: tuple[int, ...], cuts: tuple[tuple[Split, int, int, int], ...], level: int
) -> Iterator[tuple[Cut, int, int]]:
    """The cuts of dims after `level`, each with the minor size that it finds."""
    sizes = list(shape)
    for split, parts, index, extent in cuts:
        if split.dim > level:
            minor = sizes[split.dim] // (split.outer * extent) if extent else 0
            cut = Cut(split.dim, split.outer, extent, minor)
            sizes[split.dim] = cut.size(cut.part(index, parts)[1])
            yield cut, index, parts


def _positions(
    shape: tuple[int, ...], cuts: tuple[tuple[Split, int, int, int], ...]
) -> list[NDArray[np.int64]]:
    """For each dim, which of its positions the local part holds, in order."""
    held = [np.arange(size, dtype=np.int64) for size in shape]
    for split, parts, index, extent in cuts:
        positions = held[split.dim]
        if not positions.size:
            continue
        start, count = Split(split.dim, split.outer, extent).part(index, parts)
        grid = positions.reshape(split.outer, extent, -1)
        held[split.dim] = grid[:, start : start + count].reshape(-1)
    return held


def _intervals(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Maximal runs of consecutive positions as rows of (start, stop)."""
    if not positions.size:
        return np.zeros((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(positions) != 1)
    starts = np.concatenate(([0], breaks + 1))
    stops = np.concatenate((breaks, [positions.size - 1]))
    return np.stack((positions[starts], positions[stops] + 1), axis=1)
