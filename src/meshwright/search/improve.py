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

_LEAST_GAIN = 1e-4  # of the time: for less the search does not go on
# A change is left out that is reckoned to need so much more than there is, or to take so much
# longer than before it.
_OVER = 1.02
_WORSE = 1.01


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
    for point in _promising(costing, here, tried, cluster):
        tried.add(point)
        if costing.hopeless(point) or costing.behind(point):
            continue
        found = costing.cost(point)
        if found is not None and is_better(costing, found, here):
            return found
    return None


def _promising(
    costing: Costing, here: Costed, tried: set[Point], cluster: Cluster | None
) -> list[Point]:
    """Single changes, best first, without those that are reckoned to help in no way.

    A change is reckoned from what was simulated before it: what both have in common
    is known then, and little is left to guess.
    """
    points = [point for _, point in moves.changed(costing.space, here.point, cluster)]
    points = [point for point in dict.fromkeys(points) if point not in tried]
    before = costing.guess(here.point)
    if before is None:
        return points
    said = here.result.prediction
    slow = said.step_time_s / max(before.seconds, 1e-12)
    large = said.peak_memory_bytes / max(before.bytes, 1.0)
    aim = costing.goal.objective(said.step_time_s, said.peak_memory_bytes)
    ranked = []
    for place, point in enumerate(points):
        guess = costing.guess(point)
        assert guess is not None
        seconds, nbytes = guess.seconds * slow, guess.bytes * large
        expected = costing.goal.objective(seconds, nbytes)
        over = max(1.0, nbytes / costing.memory_bytes)
        if here.result.fits and (over > _OVER or expected > _WORSE * aim):
            continue
        ranked.append((expected * over**2, place, point))
    return [point for _, _, point in sorted(ranked, key=lambda item: item[:2])]


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
