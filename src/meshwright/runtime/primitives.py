"""Cutting and joining one dim of a local tensor: the data movement around a collective.

Every function views the dim as [outer, extent, minor] and works on `extent`,
whose parts follow `torch.chunk`: parts of ceil(extent / n), the last ones
shorter or empty. Backends want blocks of one size, so a short part is padded
with zeros before a collective and trimmed after it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Cut(NamedTuple):
    """A dim viewed as [outer, extent, minor], to be divided along `extent`.

    `extent` is what this very cut divides: when another axis has cut the same
    dim before, it is what that axis left to this device.
    """

    dim: int
    outer: int
    extent: int
    minor: int
    shift: int = 0  # the device that has the first part

    def number(self, index: int, parts: int) -> int:
        """Which part device `index` has."""
        return (index - self.shift) % parts

    def step(self, parts: int) -> int:
        """Length of a full part."""
        return -(-self.extent // parts)

    def part(self, index: int, parts: int) -> tuple[int, int]:
        """First index and count, within `extent`, of part `index` of `parts`."""
        step = self.step(parts)
        start = min(index * step, self.extent)
        return start, min(step, self.extent - start)

    def size(self, count: int) -> int:
        """Size of the dim when `count` of the extent is there."""
        return self.outer * count * self.minor


def _opened(x: Tensor, cut: Cut, count: int) -> Tensor:
    """`x` as [before, outer, count, minor * after]."""
    shape = x.shape
    assert shape[cut.dim] == cut.size(count), (tuple(shape), cut, count)
    before = math.prod(shape[: cut.dim])
    after = math.prod(shape[cut.dim + 1 :])
    return x.reshape(before, cut.outer, count, cut.minor * after)


def _with_dim(shape: torch.Size, dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def shard(x: Tensor, cut: Cut, index: int, parts: int) -> Tensor:
    """Part `index` of `x`, as a contiguous tensor with memory of its own."""
    start, count = cut.part(index, parts)
    part = _opened(x, cut, cut.extent)[:, :, start : start + count]
    shape = _with_dim(x.shape, cut.dim, cut.size(count))
    return part.clone(memory_format=torch.contiguous_format).view(shape)


def part_of(x: Tensor, cut: Cut, index: int, parts: int) -> Tensor:
    """Part `index` of `x` as [before, outer, count, minor * after]; of a contiguous one, a view."""
    start, count = cut.part(index, parts)
    before = math.prod(x.shape[: cut.dim])
    after = math.prod(x.shape[cut.dim + 1 :])
    assert x.shape[cut.dim] == cut.size(cut.extent), (tuple(x.shape), cut)
    opened = x.reshape(before, cut.outer, cut.extent, cut.minor * after)
    return opened[:, :, start : start + count]


def _resized(x: Tensor, cut: Cut, count: int, wanted: int) -> Tensor:
    """`x` with `count` along the extent padded with zeros, or trimmed, to `wanted`."""
    if count == wanted:
        return x
    opened = _opened(x, cut, count)
    if wanted < count:
        resized = opened[:, :, :wanted].clone(memory_format=torch.contiguous_format)
    else:
        resized = opened.new_zeros(opened.shape[0], cut.outer, wanted, opened.shape[3])
        resized[:, :, :count] = opened
    return resized.reshape(_with_dim(x.shape, cut.dim, cut.size(wanted)))


def pad_part(x: Tensor, cut: Cut, index: int, parts: int) -> Tensor:
    """Local part `index`, padded to a full part."""
    return _resized(x, cut, cut.part(index, parts)[1], cut.step(parts))


def trim_part(x: Tensor, cut: Cut, index: int, parts: int) -> Tensor:
    """A full part trimmed to what part `index` holds."""
    return _resized(x, cut, cut.step(parts), cut.part(index, parts)[1])


def scatter_blocks(x: Tensor, cut: Cut, parts: int) -> Tensor:
    """`x` cut into padded parts: [parts, *part shape], contiguous; a view where it can be."""
    step = cut.step(parts)
    padded = _resized(x, cut, cut.extent, parts * step)
    opened = _opened(padded, cut, parts * step)
    before, outer, _, rest = opened.shape
    blocks = opened.reshape(before, outer, parts, step, rest).permute(2, 0, 1, 3, 4)
    return blocks.contiguous().view(parts, *_with_dim(x.shape, cut.dim, cut.size(step)))


def gather_blocks(blocks: Tensor, cut: Cut) -> Tensor:
    """Inverse of `scatter_blocks`: [parts, *part shape] joined along the cut and trimmed.

    Contiguous, as a fresh tensor of plain PyTorch is: parts of one row could be joined by
    a view, but kernels such as fused attention take for granted that a row lies together.
    """
    parts, shape = blocks.shape[0], blocks.shape[1:]
    step = cut.step(parts)
    before = math.prod(shape[: cut.dim])
    rest = cut.minor * math.prod(shape[cut.dim + 1 :])
    opened = blocks.reshape(parts, before, cut.outer, step, rest)
    whole = _with_dim(shape, cut.dim, cut.size(cut.extent))
    if parts * step == cut.extent:
        return opened.permute(1, 2, 0, 3, 4).reshape(whole).contiguous()
    counts = [cut.part(index, parts)[1] for index in range(parts)]
    return torch.cat(
        [opened[index][:, :, :count] for index, count in enumerate(counts)], dim=2
    ).reshape(whole)


def positions(cut: Cut, index: int, parts: int) -> Tensor:
    """Positions in the whole dim of what part `index` holds, in the part's own order."""
    start, count = cut.part(index, parts)
    grid = torch.arange(cut.size(cut.extent)).view(cut.outer, cut.extent, cut.minor)
    return grid[:, start : start + count].reshape(-1)
