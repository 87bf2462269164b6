"""Rows of one dim brought from ranges that devices hold to ranges that they need."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from meshwright.layout.halo import Range, count, overlap

Piece = tuple[Range, Tensor]  # rows of the whole dim, and what they hold


def pieces_to_send(
    x: Tensor, dim: int, me: int, source: Sequence[Range], target: Sequence[Range]
) -> list[Tensor]:
    """For each device the rows of `x` that it needs, contiguous; empty for this one."""
    found = []
    for index, wanted in enumerate(target):
        _, piece = own_rows(x, dim, source[me], wanted)
        found.append(piece.contiguous() if index != me else x.narrow(dim, 0, 0))
    return found


def places_to_receive(
    x: Tensor, dim: int, me: int, source: Sequence[Range], target: Sequence[Range]
) -> list[Tensor]:
    """For each device an uninitialised tensor for what it sends; empty for this one."""
    found = []
    for index, held in enumerate(source):
        rows = count(overlap(held, target[me])) if index != me else 0
        found.append(x.new_empty((*x.shape[:dim], rows, *x.shape[dim + 1 :])))
    return found


def put_together(
    like: Tensor, dim: int, target: Range, pieces: Sequence[Piece], fill: float
) -> Tensor:
    """The rows of `target`: those of several pieces are added up, those of none are `fill`."""
    pieces = [(rows, x) for rows, x in pieces if count(rows)]
    shape = (*like.shape[:dim], count(target), *like.shape[dim + 1 :])
    ordered = sorted(rows for rows, _ in pieces)
    disjoint = all(a[1] <= b[0] for a, b in pairwise(ordered))
    if not disjoint:
        assert fill == 0, "rows that are added up have no other filling than zero"
        made = like.new_zeros(shape)
        for rows, x in pieces:
            made.narrow(dim, rows[0] - target[0], count(rows)).add_(x)
        return made
    full = sum(count(rows) for rows, _ in pieces) == count(target)
    made = like.new_empty(shape) if full else like.new_full(shape, fill)
    for rows, x in pieces:
        made.narrow(dim, rows[0] - target[0], count(rows)).copy_(x)
    return made


def own_rows(x: Tensor, dim: int, source: Range, target: Range) -> Piece:
    """The rows of `target` that `x`, which holds `source`, has; no copy."""
    first, past = overlap(source, target)
    if first == past:
        return (first, first), x.narrow(dim, 0, 0)
    return (first, past), x.narrow(dim, first - source[0], past - first)


def rows(x: Tensor, dim: int, source: Range, target: Range, fill: float = 0) -> Tensor:
    """Rows `target` of a dim of which `x` holds `source`, without communication."""
    target = (target[0], target[1])
    return put_together(x, dim, target, [own_rows(x, dim, source, target)], fill)


__all__ = ["own_rows", "pieces_to_send", "places_to_receive", "put_together", "rows"]
