"""Rows of one dim that devices exchange: who holds which range, and who needs which.

A range is (first, past), counted in rows of the whole dim; it may reach beyond
the dim's ends, where nobody holds anything, and may be empty.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import cast

from meshwright.layout.types import Split
from meshwright.program.types import ITEM_BYTES, Op, Value

Range = tuple[int, int]


def chunks(size: int, parts: int) -> tuple[Range, ...]:
    """The range of each of `parts` devices when a dim is cut as `torch.chunk` cuts it."""
    found = []
    for index in range(parts):
        first, count = Split(0, 1, size).part(index, parts)
        found.append((first, first + count))
    return tuple(found)


def overlap(one: Range, other: Range) -> Range:
    """Rows in both, an empty range when there are none."""
    first, past = max(one[0], other[0]), min(one[1], other[1])
    return (first, past) if first < past else (first, first)


def count(rows: Range) -> int:
    return rows[1] - rows[0]


def rows_sent(source: Sequence[Range], target: Sequence[Range]) -> int:
    """Rows that the device which sends most sends to others.

    Device i holds `source[i]` and device j ends with `target[j]`: i sends j
    what the two have in common.
    """
    wanted = [rows for rows in target if count(rows) > 0]
    before = _rows_before(sorted(rows[0] for rows in wanted))
    over = _rows_before(sorted(rows[1] for rows in wanted))
    most = 0
    for held, own in zip(source, target, strict=True):
        if count(held) <= 0:
            continue
        first, past = held
        everybody = before(past) - over(past) - before(first) + over(first)
        most = max(most, everybody - count(overlap(held, own)))
    return most


def _rows_before(ends: Sequence[int]) -> Callable[[int], int]:
    """How many rows lie between each of `ends`, in order, and a place after it, all together."""
    sums = list(accumulate(ends, initial=0))

    def rows(place: int) -> int:
        passed = bisect_left(ends, place)
        return passed * place - sums[passed]

    return rows


def sent_bytes(op: Op, values: Mapping[str, Value]) -> int:
    """Payload of a lowered `mesh.halo`: what the device that sends most sends."""
    options = dict(op.kwargs)
    value = values[next(op.operands())]
    dim = cast(int, options["dim"])
    rows = rows_sent(
        cast(Sequence[Range], options["source"]), cast(Sequence[Range], options["target"])
    )
    rest = prod(size for position, size in enumerate(value.shape) if position != dim)
    return rows * rest * ITEM_BYTES[value.dtype]
