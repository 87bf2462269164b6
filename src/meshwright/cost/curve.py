"""Reading measured curves."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

from meshwright.cluster.types import Point


def interpolate(points: Sequence[Point], x: float) -> float:
    """Seconds at `x`: log-log between points, constant below the first, linear above the last.

    Below the first point fixed costs rule; above the last the rate has settled.
    """
    first, last = points[0], points[-1]
    if x <= first.x:
        return first.seconds
    if x >= last.x:
        return last.seconds * (x / last.x)
    low, high = 0, len(points) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if points[middle].x <= x:
            low = middle
        else:
            high = middle
    a, b = points[low], points[high]
    share = log(x / a.x) / log(b.x / a.x)
    return exp(log(a.seconds) + share * log(b.seconds / a.seconds))
