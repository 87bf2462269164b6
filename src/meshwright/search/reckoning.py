"""Guesses put right by what was simulated: in which order to cost points, and which not to.

Points of the same axes err alike. So the least ratio of simulated to guessed time, and of
memory, that was seen among them says how far another of them can be trusted to be off.
"""

from __future__ import annotations

from collections.abc import Hashable

from meshwright.search.estimate import Estimate, Estimator
from meshwright.search.goals import Goal
from meshwright.search.space import Point
from meshwright.search.types import Evaluated

__all__ = ["Reckoning"]

# A point is left out that is reckoned to take so much longer than the best, or to need so much
# more than there is: where none of its kind was costed yet, where one was, where several were.
_BEHIND = (1.25, 1.15, 1.07)
_TOO_LARGE = (1.6, 1.25, 1.05)
_ENOUGH = 3


class Reckoning:
    """Without an estimator it knows nothing and leaves out nothing."""

    def __init__(self, estimator: Estimator | None, goal: Goal, memory_bytes: int) -> None:
        self._estimator = estimator
        self._goal = goal
        self._memory_bytes = memory_bytes
        self._seen: dict[Hashable, list[tuple[float, float]]] = {}
        self._least = 1.0, 1.0  # of all kinds

    def guess(self, point: Point) -> Estimate | None:
        return self._estimator(point) if self._estimator is not None else None

    def learn(self, point: Point, found: Evaluated) -> None:
        guess = self.guess(point)
        if guess is None:
            return
        said = found.prediction
        ratio = (
            said.step_time_s / max(guess.seconds, 1e-12),
            said.peak_memory_bytes / max(guess.bytes, 1.0),
        )
        every = [ratio] if not self._seen else [ratio, self._least]
        self._least = min(r[0] for r in every), min(r[1] for r in every)
        self._seen.setdefault(_kind(point), []).append(ratio)

    def knows(self, point: Point) -> bool:
        """Whether a point of its kind was simulated."""
        return _kind(point) in self._seen

    def reckon(self, point: Point) -> tuple[float, float, int]:
        """Seconds and bytes, at the least that points of its kind suggest; how many those are."""
        guess = self.guess(point)
        if guess is None:
            return 1.0, 1.0, 0
        known = self._seen.get(_kind(point), [])
        slow, large = self._least
        if known:
            slow, large = min(r[0] for r in known), min(r[1] for r in known)
        return guess.seconds * slow, guess.bytes * large, len(known)

    def score(self, point: Point) -> float:
        """What is to be least, larger for what would not fit."""
        seconds, nbytes, _ = self.reckon(point)
        over = max(1.0, nbytes / self._memory_bytes)
        if self._goal.max_step_time_s is not None:
            over *= max(1.0, seconds / self._goal.max_step_time_s)
        return max(self._goal.objective(seconds, nbytes), 1e-12) * over**2

    def quickest(self, point: Point) -> float:
        """Seconds as reckoned, more for what would not fit."""
        seconds, nbytes, _ = self.reckon(point)
        return seconds * max(1.0, nbytes / self._memory_bytes) ** 2

    def behind(self, point: Point, best: Evaluated | None) -> str:
        """Why what was costed makes the point not worth costing, in words; empty where it is."""
        if best is None or not best.fits or self._estimator is None:
            return ""
        seconds, nbytes, known = self.reckon(point)
        grade = 0 if not known else 1 if known < _ENOUGH else 2
        if nbytes > _TOO_LARGE[grade] * self._memory_bytes:
            return f"it is reckoned to need {nbytes / 2**30:.0f} GiB"
        said = best.prediction
        aim = self._goal.objective(seconds, nbytes)
        if aim > _BEHIND[grade] * self._goal.objective(said.step_time_s, said.peak_memory_bytes):
            return f"it is reckoned to take {seconds:.3g} s"
        return ""


def _kind(point: Point) -> Hashable:
    axes = tuple(sorted(axis for axis, _ in point.mesh))
    return axes, point.sequence, point.attention, point.tensor
