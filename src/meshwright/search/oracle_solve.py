"""Solves the oracle's problem: the best choice for a Program's ops, by HiGHS."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from meshwright.search.oracle import Choice, Problem, objective
from meshwright.search.oracle_model import LinearProgram, OracleError

__all__ = ["OracleError", "Solution", "solve"]

_ROUNDS = 3
_LEAST_S = 0.01


@dataclass(frozen=True)
class Solution:
    """seconds: the objective of `choice`. bound: below which no choice is; equal to it up to
    `tolerance` where `proved`. cut_off: the time was over, so that more of it may find another."""

    choice: Choice
    seconds: float
    bound: float
    proved: bool
    cut_off: bool = False


def solve(
    problem: Problem,
    *,
    seconds: float = 60.0,
    tolerance: float = 1e-4,
    nodes: int | None = None,
) -> Solution:
    """The choice whose step takes least, within `tolerance` of it.

    What a bucket of merged collectives takes is no straight line of its bytes: it is taken
    as one near the bytes that are reached, which is tried again where these turn out
    others. seconds, nodes: after which the best choice found is taken, unproved; a bound in
    nodes of the solver's tree gives the same answer on any machine. Raises OracleError where
    none was found.
    """
    best: Solution | None = None
    reached: dict[object, int] = {}
    ends = time.monotonic() + seconds
    program = LinearProgram(problem)
    for _ in range(_ROUNDS):
        left_s = max(ends - time.monotonic(), _LEAST_S)
        try:
            found = program.solve(reached, left_s, tolerance, nodes)
        except OracleError:
            if best is None:
                raise
            break
        choice = program.choice(found.taken)
        spent_s = objective(problem, choice)
        if best is None or spent_s < best.seconds:
            best = Solution(choice, spent_s, found.bound, found.proved)
        now = program.reached(found.taken)
        straight = abs(found.seconds - spent_s) <= tolerance * spent_s
        near = all(_near(now.get(key, 0), reached.get(key, 0)) for key in now)
        if straight or near or time.monotonic() >= ends:
            break
        reached = now
    assert best is not None
    return replace(best, cut_off=time.monotonic() >= ends)


def _near(one: int, other: int) -> bool:
    return abs(one - other) <= 0.25 * max(one, other)
