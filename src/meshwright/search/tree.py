"""Monte Carlo tree search over sequences of moves.

A node has decided the first moves (mesh, then microbatches, groups, conflicts, residency)
and completes the rest by the best guess; costing that completion is its rollout. Its
children decide one thing more. Which node to look at next is PUCT's choice (Kocsis and
Szepesvari 2006 for UCT; the prior as in Rosin 2011): the best that was found below it,
and a bonus for what analysis guesses to be good and was seldom looked at. The best, not
the mean, is handed up, since one plan is wanted and not a policy.

A branch is closed once everything in it was costed, or when a bound shows that nothing
in it fits, or is better than the best so far.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

from meshwright.cluster.types import Cluster
from meshwright.search import moves
from meshwright.search.costing import Costed, Costing
from meshwright.search.space import Point

__all__ = ["End", "Tree"]

_EXPLORE = 0.2  # weight of PUCT's bonus beside values, which are about 1
_STEEP = 8.0  # a plan that takes 9% longer is worth half
_SHARPNESS = 4.0  # how strongly a prior prefers what is guessed to be quicker
_CHANCE = 0.1  # part of descents' steps that go by the prior alone, drawn at random
_WIDE = 1.8  # moves guessed to take so much longer than the best of their kind are left out
_GROUP_OPTIONS = 8
_MESHES = 48  # that a tree begins with at most

End = str  # "closed" or "patience"


@dataclass
class _Node:
    point: Point
    level: int
    prior: float
    expected: float  # value, before it is known
    children: list[_Node] | None = None
    visits: int = 0
    value: float = 0.0
    closed: bool = False


@dataclass
class Tree:
    """patience: evaluations in a row that found nothing better, after which it ends."""

    costing: Costing
    cluster: Cluster | None
    meshes: Sequence[tuple[tuple[str, int], ...]]
    seed: int
    patience: int
    forbidden: Sequence[str] = ()
    reference: float = 0.0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def run(self) -> End:
        """Raises BudgetOver when the time is over."""
        costing = self.costing
        best = costing.best
        self.reference = self._objective(best) if best is not None else 0.0
        root = _Node(Point(()), 0, 1.0, 1.0)
        last, count = costing.best, len(costing.costed)
        while not root.closed:
            self._descend(root)
            if costing.best is not last:
                last, count = costing.best, len(costing.costed)
            if len(costing.costed) - count >= self.patience and last is not None:
                return "patience"
        return "closed"

    # One descent

    def _descend(self, root: _Node) -> None:
        path = [root]
        node = root
        while True:
            if node.level and not self.costing.known(node.point):
                break
            if node.children is None:
                node.children = self._expand(node)
            child = self._pick(node)
            if child is None:
                node.closed = True
                break
            path.append(child)
            node = child
        value = 0.0
        if not node.closed:
            if self.costing.hopeless(node.point) or self.costing.behind(node.point):
                # The completion's bound is that of no other: only a leaf is closed by it.
                self.costing.skip(node.point)
            value = self._value(self.costing.cost(node.point))
        for step in reversed(path):
            step.visits += 1
            step.value = max(step.value, value)
            if (step.children is not None and all(child.closed for child in step.children)) or (
                step.children is None and step.level == _LAST
            ):
                step.closed = True

    def _pick(self, node: _Node) -> _Node | None:
        open_children = [child for child in node.children or () if not child.closed]
        if not open_children:
            return None
        if self._random.random() < _CHANCE:
            return self._random.choices(open_children, [c.prior for c in open_children])[0]
        bonus = _EXPLORE * sqrt(node.visits + 1)
        total = sum(child.prior for child in open_children)

        def score(child: _Node) -> float:
            known = child.value if child.visits else child.expected
            return known + bonus * child.prior / total / (1 + child.visits)

        return max(open_children, key=score)  # the first of equals

    def _expand(self, node: _Node) -> list[_Node]:
        if node.level == _LAST:
            return []
        options = list(dict.fromkeys(self._options(node)))
        if not options:
            return []
        costing = self.costing
        times = [self._time(point) for point in options]
        least = min(times)
        children = []
        for point, seconds in zip(options, times, strict=True):
            if seconds > _WIDE * least and point != node.point:
                costing.ruled_out += 1
                continue
            prior = (least / seconds) ** _SHARPNESS if seconds else 1.0
            expected = self._worth(seconds) if costing.estimator is not None else node.value
            children.append(_Node(point, node.level + 1, max(prior, 1e-6), expected))
        return children

    def _options(self, node: _Node) -> Iterable[Point]:
        space, point = self.costing.space, node.point
        if node.level == 0:
            for mesh in self._likely():
                yield self.complete(mesh)
        elif node.level == 1:
            yield point
            for count in moves.counts(space, point.mesh):
                if count != point.microbatches:
                    yield self._stored(replace(point, microbatches=count))
        elif node.level == 2:
            yield point
            options = list(moves.group_options(space, point))
            guessed = sorted(range(len(options)), key=lambda k: (self._time(options[k]), k))
            yield from (options[k] for k in guessed[:_GROUP_OPTIONS])
        elif node.level == 3:
            yield point
            for option in moves.sequence_options(space, point):
                yield from moves.attention_options(space, option)
        else:
            yield point
            yield from moves.residency_options(space, point)

    def _likely(self) -> list[tuple[tuple[str, int], ...]]:
        """Meshes that are reckoned best, in their own order where nothing is known of them."""
        if self.costing.estimator is None or len(self.meshes) <= _MESHES:
            return list(self.meshes)
        strategy = self.costing.space.strategy
        stages = (0, 3) if strategy.zero is None else (strategy.zero,)

        def score(mesh: tuple[tuple[str, int], ...]) -> float:
            count = moves.counts(self.costing.space, mesh)[0]
            return min(self._time(Point(mesh, microbatches=count, zero=z)) for z in stages)

        ranked = sorted(self.meshes, key=score)
        self.costing.ruled_out += len(ranked) - _MESHES
        return ranked[:_MESHES]

    def _time(self, point: Point) -> float:
        return self.costing.reckoning.score(point)

    # Completions

    def complete(self, mesh: tuple[tuple[str, int], ...]) -> Point:
        """The mesh with the counts, conflicts' sides and residencies that are guessed best."""
        space = self.costing.space
        strategy = space.strategy
        point = Point(mesh, attention=strategy.attention, zero=strategy.zero or 0)
        conflicts = [
            (option.sequence, option.attention)
            for other in moves.sequence_options(space, point)
            for option in moves.attention_options(space, other)
        ]
        best: Point | None = None
        for count in moves.counts(space, mesh):
            sequence, attention = conflicts[0]
            option = self._stored(
                replace(point, microbatches=count, sequence=sequence, attention=attention)
            )
            others = [replace(option, sequence=s, attention=a) for s, a in conflicts]
            likely = min(others, key=self._time)
            if likely != option:
                option = min(self._stored(likely), likely, key=self._time)
            if best is None or self._time(option) < self._time(best):
                best = option
            if self.costing.reckoning.reckon(option)[1] <= 0.9 * self.costing.memory_bytes:
                break  # further microbatches take no less time
        assert best is not None
        return best

    def _stored(self, point: Point) -> Point:
        """The residency that is guessed best, the simplest of equals."""
        options = moves.residency_options(self.costing.space, point)
        return min(options, key=self._time)

    # Values

    def _objective(self, item: Costed) -> float:
        said = item.result.prediction
        aim = self.costing.goal.objective(said.step_time_s, said.peak_memory_bytes)
        over = max(1.0, said.peak_memory_bytes / self.costing.memory_bytes)
        if self.costing.goal.max_step_time_s is not None:
            over *= max(1.0, said.step_time_s / self.costing.goal.max_step_time_s)
        return aim * over**2

    def _value(self, item: Costed | None) -> float:
        return 0.0 if item is None else self._worth(self._objective(item))

    def _worth(self, aim: float) -> float:
        """1 for as good as the best of the named strategies, more for what is better."""
        self.reference = self.reference or aim
        return float(min(4.0, (self.reference / aim) ** _STEEP)) if aim else 1.0


_LAST = 5
