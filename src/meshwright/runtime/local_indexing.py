"""Indexing where this device holds part of what is indexed: rows of a dim from `start` on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Held = Sequence[Sequence[int]]  # (which index, start, count, size of the whole dim), for each


def _local(index: Tensor, start: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Positions counted from `start`, and which of them are among the `count` held here."""
    local = torch.where(index < 0, index + size, index) - start
    return local, (local >= 0) & (local < count)


def take_held(x: Tensor, indices: Sequence[Tensor | None], held: Held) -> Tensor:
    """`x[indices]` where this device holds what is asked for, zeros elsewhere.

    `held` tells of the indexed dims that are cut.
    """
    found, present = _all_held(list(indices), held)
    if any(count == 0 for _, _, count, _ in held):
        x = _with_one_more(x, [position for position, *_ in held])
    made: Tensor = torch.ops.aten.index.Tensor(x, found)
    return made.masked_fill_(~_spread(present, made, found), 0)


def put_held(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool, held: Held
) -> Tensor:
    """`x.index_put(indices, values)` of the positions that this device holds."""
    found, present = _all_held(list(indices), held)
    first, _, count, _ = held[0]
    # What belongs to others goes into one more row, which is dropped again.
    index = found[first]
    assert index is not None
    found[first] = torch.where(present, index, count)
    larger = _with_one_more(x, [first])
    empty = [position for position, _, size, _ in held[1:] if size == 0]
    larger = _with_one_more(larger, empty)
    made: Tensor = torch.ops.aten.index_put.default(larger, found, values, accumulate)
    for position in (first, *empty):
        made = made.narrow(position, 0, x.shape[position])
    return made.contiguous()


def gather_held(x: Tensor, dim: int, index: Tensor, held: Sequence[int]) -> Tensor:
    """`x.gather(dim, index)` where this device holds what is asked for, zeros elsewhere."""
    local, present = _local(index, *held)
    if held[1] == 0:
        return x.new_zeros(index.shape)
    made = torch.gather(x, dim, local.masked_fill_(~present, 0))
    return made.masked_fill_(~present, 0)


def select_held(x: Tensor, dim: int, index: Tensor, held: Sequence[int]) -> Tensor:
    """`x.index_select(dim, index)` where this device holds the rows, zeros elsewhere."""
    local, present = _local(index, *held)
    if held[1] == 0:
        shape = list(x.shape)
        shape[dim] = index.numel()
        return x.new_zeros(shape)
    made = torch.index_select(x, dim, local.masked_fill_(~present, 0))
    shape = [1] * x.dim()
    shape[dim] = -1
    return made.masked_fill_(~present.view(shape), 0)


def scatter_held(x: Tensor, dim: int, index: Tensor, *rest: Any, op: str, held: Sequence[int],
                 **options: Any) -> Tensor:  # fmt: skip
    """An op that writes along `dim` at `index`, of the positions that this device holds."""
    local, present = _local(index, *held)
    local = torch.where(present, local, held[1])
    _, name, overload = op.split(".")
    function = getattr(getattr(torch.ops.aten, name), overload)
    made: Tensor = function(_with_one_more(x, [dim]), dim, local, *rest, **options)
    return made.narrow(dim, 0, x.shape[dim]).contiguous()


def extreme(x: Tensor, dim: int, largest: bool) -> Tensor:
    """The largest or smallest along `dim`, which is kept; the neutral one where there is none."""
    if x.shape[dim]:
        return x.amax(dim, keepdim=True) if largest else x.amin(dim, keepdim=True)
    shape = list(x.shape)
    shape[dim] = 1
    if x.dtype is torch.bool:
        return x.new_full(shape, not largest)
    limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
    if x.is_floating_point():
        return x.new_full(shape, -torch.inf if largest else torch.inf)
    return x.new_full(shape, limits.min if largest else limits.max)


def extreme_position(x: Tensor, top: Tensor, dim: int, start: int, size: int) -> Tensor:
    """The first position along `dim` that holds `top`, counted in the whole dim of `size`.

    The last position where no element here does, which the minimum over devices drops.
    """
    if not x.shape[dim]:
        shape = list(x.shape)
        shape[dim] = 1
        return torch.full(shape, size - 1, dtype=torch.int64, device=x.device)
    found = x == top
    first = found.to(torch.uint8).argmax(dim, keepdim=True) + start
    return torch.where(found.any(dim, keepdim=True), first, size - 1)


def _all_held(indices: list[Tensor | None], held: Held) -> tuple[list[Tensor | None], Tensor]:
    """Local indices, and which positions of all of them together are held."""
    present: Tensor | None = None
    for position, start, count, size in held:
        index = indices[position]
        assert index is not None
        local, here = _local(index, start, count, size)
        indices[position] = local.clamp_(0, max(count - 1, 0))
        present = here if present is None else present & here
    assert present is not None
    return indices, present


def _spread(present: Tensor, made: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """`present` as it stands in the result of indexing."""
    given = [position for position, index in enumerate(indices) if index is not None]
    rank = max(index.dim() for index in indices if index is not None)
    neighbours = given == list(range(given[0], given[-1] + 1))
    before = given[0] if neighbours else 0
    present = present.view((1,) * (rank - present.dim()) + tuple(present.shape))
    after = made.dim() - before - rank
    return present.view((1,) * before + tuple(present.shape) + (1,) * after)


def _with_one_more(x: Tensor, dims: Sequence[int]) -> Tensor:
    """`x` with one more row along each of `dims`."""
    if not dims:
        return x
    shape = list(x.shape)
    for dim in dims:
        shape[dim] += 1
    made = x.new_zeros(shape)
    inner = made
    for dim in dims:
        inner = inner.narrow(dim, 0, x.shape[dim])
    inner.copy_(x)
    return made


OPS: dict[str, Callable[..., Any]] = {
    "mesh.take_held": take_held,
    "mesh.put_held": put_held,
    "mesh.gather_held": gather_held,
    "mesh.select_held": select_held,
    "mesh.scatter_held": scatter_held,
    "mesh.extreme": extreme,
    "mesh.extreme_position": extreme_position,
}
