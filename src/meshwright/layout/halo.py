"""Rows of one dim that devices exchange: who holds which range, and who needs which.

A range is (first, past), counted in rows of the whole dim; it may reach beyond
the dim's ends, where nobody holds anything, and may be empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    return max(
        sum(count(overlap(held, wanted)) for j, wanted in enumerate(target) if j != i)
        for i, held in enumerate(source)
    )


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
