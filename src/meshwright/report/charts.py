"""Data of the charts, as JSON that `report.js` draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from meshwright.report.data import LossPoint, MemoryPoint, ReportData

MOST_PARTS = 8  # as many colours as can be told apart
OTHER = "other"


def chart_data(data: ReportData) -> dict[str, Any]:
    parts = part_names(data)
    timed = all(p.at_s is not None for p in (*data.memory_curve, *data.measured_memory_curve))
    return {
        "losses": _losses(data.losses),
        "reference": _losses(data.reference_losses),
        "memory": {
            "timed": timed,
            "parts": parts,
            "predicted": _curve(data.memory_curve, parts, timed),
            "measured": _curve(data.measured_memory_curve, [], timed),
            "limit": data.memory_limit_bytes,
        },
    }


def part_names(data: ReportData) -> list[str]:
    """Parts of memory in the order of their colours: as first met, the smallest as `other`."""
    largest: dict[str, int] = {}
    for parts in (data.plan.predicted.memory, *(point.parts for point in data.memory_curve)):
        for name, size in parts.items():
            largest[name] = max(size, largest.get(name, 0))
    if len(largest) <= MOST_PARTS:
        return list(largest)
    kept = set(sorted(largest, key=lambda name: -largest[name])[: MOST_PARTS - 1])
    return [name for name in largest if name in kept and name != OTHER] + [OTHER]


def folded(parts: dict[str, int], names: Sequence[str]) -> list[int]:
    """Sizes of `parts` in the order of `names`; what has no place there counts as `other`."""
    sizes = dict.fromkeys(names, 0)
    for name, size in parts.items():
        sizes[name if name in sizes else OTHER] += size
    return list(sizes.values())


def _curve(
    points: Sequence[MemoryPoint], names: Sequence[str], timed: bool
) -> list[dict[str, Any]]:
    last = max(len(points) - 1, 1)
    return [
        {
            "x": point.at_s if timed else 100 * index / last,
            "y": point.bytes,
            "label": point.label,
            "parts": folded(point.parts, names) if names else [],
        }
        for index, point in enumerate(points)
    ]


def _losses(points: Iterable[LossPoint]) -> list[dict[str, float | None]]:
    # JSON has no NaN; a gap in the line is the right picture of one.
    return [{"x": step, "y": loss if math.isfinite(loss) else None} for step, loss in points]
