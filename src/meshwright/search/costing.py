"""What a search knows so far: every candidate costed once, the best, what was left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

from meshwright.errors import MeshwrightError
from meshwright.search.estimate import Estimate, Estimator
from meshwright.search.goals import Goal
from meshwright.search.reckoning import Reckoning
from meshwright.search.space import Point, Space
from meshwright.search.types import Candidate, Cost, Costs, Evaluated

__all__ = [
    "BudgetOver",
    "Costed",
    "Costing",
    "EffortOver",
    "Progress",
    "SearchProgress",
    "computed_alike",
]


_KEPT_REASONS = 200  # of points that were left out
_GUESS = 2.0  # ops that a guess is as much work as
_EQUAL = 1e-4  # of the time: what can be better by no more is no better


class EffortOver(Exception):
    """A stage of the search has done all the work that it may do; raised before an evaluation."""


class BudgetOver(Exception):
    """The search's time is over; raised before an evaluation, never in it."""


@dataclass(frozen=True)
class SearchProgress:
    """evaluations so far, the best's name and step time, seconds that are left."""

    evaluations: int
    best: str | None
    best_s: float | None
    seconds_left: float


Progress = Callable[[SearchProgress], None]


@dataclass(frozen=True)
class Costed:
    point: Point
    result: Evaluated


@dataclass
class Costing:
    """Costs points for one search.

    Costs each candidate once, however many points lead to it. Where the time is over,
    raises BudgetOver instead; at least `least` candidates are costed before that. Where the
    work so far is `limit`, raises EffortOver instead.
    """

    space: Space
    evaluate: Cost
    memory_bytes: int
    goal: Goal
    estimator: Estimator | None
    deadline: float
    progress: Progress | None = None
    least: int = 1
    limit: float = float("inf")
    clock: Callable[[], float] = time.perf_counter
    costed: list[Costed] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    uncosted: list[str] = field(default_factory=list)  # named strategies, the likeliest first
    best: Costed | None = None
    ruled_out: int = 0  # points that a bound showed to be no better
    reckoning: Reckoning = field(init=False)
    _work: float = 0.0
    _guessed: set[Point] = field(default_factory=set)  # left out for what they are reckoned
    _kept_s: dict[Point, float] = field(default_factory=dict)  # by what computes alike
    _by_point: dict[Point, Costed | None] = field(default_factory=dict)
    _by_key: dict[Hashable, Costed] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reckoning = Reckoning(self.estimator, self.goal, self.memory_bytes)

    @property
    def one(self) -> int:
        """Work that a candidate is: ops that are looked at."""
        return len(self.space.first.program.ops)

    @property
    def effort(self) -> float:
        """Work so far, the same on any machine."""
        guesses = self.estimator.guesses if self.estimator is not None else 0
        return self._work + _GUESS * guesses

    def known(self, point: Point) -> bool:
        """Whether the point was costed, or found to be impossible."""
        return point in self._by_point

    def skip(self, point: Point) -> None:
        """Take the point as known without costing it."""
        self._by_point.setdefault(point, None)

    def forget(self, point: Point) -> None:
        """A point that was taken as known without being costed is open again."""
        if self._by_point.get(point, self) is None:
            del self._by_point[point]

    def reopen(self, point: Point) -> None:
        """A point that guesses left out is open again."""
        if point in self._guessed:
            self._guessed.remove(point)
            self.forget(point)
            self.left_out.pop(self.space.name(point), None)

    def cost(self, point: Point) -> Costed | None:
        """None for a point that can't be laid out; the reason is kept."""
        if point in self._by_point:
            return self._by_point[point]
        found = self._cost(point)
        self._by_point[point] = found
        return found

    def _cost(self, point: Point) -> Costed | None:
        name = self.space.name(point)
        if len(self.costed) >= self.least and self.clock() > self.deadline:
            raise BudgetOver
        if self.effort >= self.limit and self.best is not None and self.best.result.fits:
            raise EffortOver
        self._work += self.one
        try:
            made = self.space.candidate(point, name)
        except MeshwrightError as error:
            self.left_out.setdefault(name, error.message)
            return None
        forbidden = self.space.forbidden(made)
        if forbidden:
            self.left_out.setdefault(name, f"'{forbidden}' forbids it")
            return None
        key = self.space.key(made)
        known = self._by_key.get(key)
        if known is not None:
            return known
        try:
            result = self._evaluated(point, self._named_once(made))
        except (MeshwrightError, AssertionError) as error:
            reason = error.message if isinstance(error, MeshwrightError) else str(error)
            self.left_out.setdefault(name, f"it could not be lowered: {reason}")
            return None
        found = self._by_key[key] = Costed(point, result)
        self.costed.append(found)
        self.reckoning.learn(point, result)
        if self.best is None or self.goal.rank(result) < self.goal.rank(self.best.result):
            self.best = found
        self._report()
        return found

    def _evaluated(self, point: Point, made: Candidate) -> Evaluated:
        said = self.evaluate(made)
        if isinstance(said, Costs):
            prediction = said.prediction
            if not point.kept and point.zero < 2:
                self._kept_s[computed_alike(point)] = said.kept_s
        else:
            prediction = said
        fits = self.goal.fits(
            prediction.step_time_s, prediction.peak_memory_bytes, self.memory_bytes
        )
        return Evaluated(made, prediction, fits)

    def _named_once(self, made: Candidate) -> Candidate:
        """Two candidates of one search never have the same name."""
        seen = self._names[made.name] = self._names.get(made.name, 0) + 1
        return made if seen == 1 else replace(made, name=f"{made.name} ({seen})")

    def _report(self) -> None:
        if self.progress is None:
            return
        best = self.best.result if self.best is not None and self.best.result.fits else None
        self.progress(
            SearchProgress(
                len(self.costed),
                best.candidate.name if best else None,
                best.prediction.step_time_s if best else None,
                max(0.0, self.deadline - self.clock()),
            )
        )

    # What analysis says

    def guess(self, point: Point) -> Estimate | None:
        return self.estimator(point) if self.estimator is not None else None

    def hopeless(self, point: Point) -> bool:
        """Whether a bound shows that the point does not fit, or is no better than the best."""
        guess = self.guess(point)
        if guess is None or self.known(point):
            return False
        why = ""
        limit = self.goal.max_step_time_s
        floor_s = max(guess.floor_s, self._sibling_s(point))
        if guess.floor_bytes > self.memory_bytes:
            why = f"it needs at least {guess.floor_bytes / 2**30:.1f} GiB"
        elif limit is not None and floor_s > limit:
            why = f"it takes at least {floor_s:.3g} s"
        elif self.best is not None and self.best.result.fits:
            said = self.best.result.prediction
            best = self.goal.objective(said.step_time_s, said.peak_memory_bytes)
            if self.goal.objective(floor_s, guess.floor_bytes) >= best * (1 - _EQUAL):
                why = "a bound shows that it is no better"
        if why:
            self.ruled_out += 1
            if len(self.left_out) < _KEPT_REASONS:
                self.left_out.setdefault(self.space.name(point), why)
        return bool(why)

    def _sibling_s(self, point: Point) -> float:
        """At least what a costed point takes that stores parameters otherwise, for the rest."""
        kept_s = self._kept_s.get(computed_alike(point), 0.0)
        if not kept_s or self.estimator is None or point.microbatches > 1:
            return 0.0
        return kept_s + self.estimator.optimizer_bound_s()

    def behind(self, point: Point) -> bool:
        """Whether what was costed shows that the point is not worth costing."""
        if self.known(point):
            return False
        why = self.reckoning.behind(point, self.best.result if self.best is not None else None)
        if why:
            self._guessed.add(point)
        if why and len(self.left_out) < _KEPT_REASONS:
            self.left_out.setdefault(self.space.name(point), why)
        return bool(why)


def computed_alike(point: Point) -> Point:
    """The point but for how parameters are stored, which changes no op of a microbatch."""
    return replace(point, zero=0, stored=("data",), kept=())
