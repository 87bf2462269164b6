"""The named strategies of a search: each costed, or ruled out by a bound, before it may end.

So what `auto` finds is never worse than the best of them, however good the guesses are.
Guesses only say in which order: those that are reckoned to be close come first, then tree
and improvement, then the rest. Strategies that differ by how parameters are stored alone
compute alike, so that one of them that was costed bounds the others (`Costing.hopeless`):
of the rest the one that stores them whole comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meshwright.cluster.types import Cluster
from meshwright.search import catalogue
from meshwright.search.costing import Costing, computed_alike
from meshwright.search.named import IDLE
from meshwright.search.space import Point
from meshwright.search.strategy import parse_strategy

__all__ = ["Names"]

_NEAR = 1.03  # of the least guess: all devices alike are costed where theirs is below that
_HOST = 8  # devices of one, where there is no cluster


@dataclass
class Names:
    costing: Costing
    cluster: Cluster | None
    meshes: Sequence[tuple[tuple[str, int], ...]]  # that the search may use
    _open: list[Point] = field(init=False)

    def __post_init__(self) -> None:
        space = self.costing.space
        host = self.cluster.groups[0].devices if self.cluster is not None else _HOST
        count = space.strategy.microbatches or 1
        self._open = [
            catalogue.point_of(parse_strategy(text), space, count)
            for text in catalogue.texts(space, host)
            if catalogue.compatible(text, space.strategy, space.devices)
        ]

    def likely(self) -> None:
        """Those that are not reckoned to be behind, the quickest as reckoned first.

        Before them where all devices compute the same, if that is reckoned to be about as quick:
        where it is, hardly anything is left of what a bound leaves open.
        """
        costing = self.costing
        score = costing.reckoning.score
        if costing.estimator is not None and self._open:
            same = Point(((IDLE, costing.space.devices),), self._open[0].microbatches)
            if same.mesh in self.meshes and score(same) <= _NEAR * min(map(score, self._open)):
                costing.cost(same)
        here = list(self._open)
        while here:
            point = min(here, key=score)
            here.remove(point)
            best = costing.best.result if costing.best is not None else None
            if not costing.hopeless(point):
                if costing.reckoning.knows(point) and costing.reckoning.behind(point, best):
                    continue
                costing.cost(point)
            self._open.remove(point)

    def rest(self) -> None:
        """All others that no bound rules out."""
        costing = self.costing
        families: dict[Point, list[Point]] = {}
        for point in self._open:
            families.setdefault(computed_alike(point), []).append(point)
        score = costing.reckoning.score
        for alike in sorted(families.values(), key=lambda some: min(map(score, some))):
            for point in sorted(alike, key=lambda point: point.zero):
                if not costing.hopeless(point):
                    costing.reopen(point)
                    costing.cost(point)
                self._open.remove(point)

    def unknown(self) -> None:
        """Say of each that is left that no time was left for it."""
        for point in sorted(self._open, key=self.costing.reckoning.score):
            self.costing.reopen(point)
            if not self.costing.known(point) and not self.costing.hopeless(point):
                name = self.costing.space.name(point)
                self.costing.left_out[name] = "the time was over before it was costed"
                self.costing.uncosted.append(name)
