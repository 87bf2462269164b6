"""Local improvement: one decision changed at a time, kept where the simulator says it is better.

What the tree decides for whole classes at once (all parameters' residency, all groups of
an axis) is decided here class by class: a table or the norms kept whole while matrices
are sharded, a group that costs more than it divides left whole, a table cut over the
axis that has the batch. It ends when no single change helps.
"""

from __future__ import annotations

from meshwright.cluster.types import Cluster
from meshwright.search import moves
from meshwright.search.costing import Costed, Costing
from meshwright.search.space import Point

__all__ = ["improve"]

_LEAST_GAIN = 1e-5  # of the time: less is the noise of a sum's order


def improve(costing: Costing, start: Costed, cluster: Cluster | None) -> Costed:
    """The best that single changes lead to from `start`. Raises BudgetOver."""
    here = start
    tried: set[Point] = {here.point}
    while True:
        better = _step(costing, here, tried, cluster)
        if better is None:
            return here
        here = better


def _step(
    costing: Costing, here: Costed, tried: set[Point], cluster: Cluster | None
) -> Costed | None:
    """The first change that is better; changes tried before it are not tried again."""
    for _, point in moves.changed(costing.space, here.point, cluster):
        if point in tried:
            continue
        tried.add(point)
        if costing.hopeless(point) or costing.behind(point):
            continue
        found = costing.cost(point)
        if found is not None and is_better(costing, found, here):
            return found
    return None


def is_better(costing: Costing, one: Costed, other: Costed) -> bool:
    if one.result.fits != other.result.fits:
        return one.result.fits
    if not one.result.fits:
        mine, theirs = (item.result.prediction.peak_memory_bytes for item in (one, other))
        return mine < theirs * (1 - _LEAST_GAIN)
    mine_s, theirs_s = (
        costing.goal.objective(
            item.result.prediction.step_time_s, item.result.prediction.peak_memory_bytes
        )
        for item in (one, other)
    )
    return mine_s < theirs_s * (1 - _LEAST_GAIN)
