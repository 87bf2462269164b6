"""Improvement at op level: the best layout of every op of a small Program by itself.

Groups of dims that are cut alike are too coarse where one op would better be cut in another
way than what it belongs to. Here the oracle's integer program (`oracle`, `oracle_solve`) is
asked over one axis of all devices. What it finds becomes decisions on single ops, is lowered
and simulated like any other candidate, and is taken where the simulator says that it is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from meshwright.cluster.mesh import Mesh
from meshwright.errors import MeshwrightError, StrategyError
from meshwright.layout.assignment import assign
from meshwright.layout.groups import Analysis
from meshwright.layout.types import REPLICATED, Layout
from meshwright.plan.types import Choice as Chosen
from meshwright.plan.types import Decision, ParameterPlan, Prediction
from meshwright.search.axis_name import axis_name, renamed
from meshwright.search.constraint_texts import REPLICATED as PINNED_WHOLE
from meshwright.search.constraints import Constraints, check, refuse, resolve
from meshwright.search.costing import Costing
from meshwright.search.named import as_stored
from meshwright.search.oracle import Choice, Problem, Storing
from meshwright.search.types import Candidate, Evaluated

if TYPE_CHECKING:
    from meshwright.search.search import Found

__all__ = ["MOST_OPS", "ByOp", "LayByOp", "Laying", "restricted"]

MOST_OPS = 600  # of a Program: more take longer than a search has
FIRST_OPS = 250  # so many are looked at before the tree, which may take all the time
AXIS = "data"  # the one axis, until it is called by what most values are cut along
_SHARE, _LAST_SHARE = 0.75, 0.95  # of the time that is left
# What it takes at least, on a machine with nothing else to do: to load the solver, and an op.
_LEAST_S, _OP_S = 0.5, 0.008
_MOST_S = 6.0  # of the solver
_TOLERANCE = 2e-3
_NODES = 400  # of the solver's tree, so that the answer is the same on any machine
_LEAST_GAIN = 1e-3  # for less than that a plan by groups, which is easier to read, is kept


class Laying(Protocol):
    """The layouts that the ops of a Program can have on one mesh."""

    def problem(self) -> Problem: ...

    def decided(
        self, choice: Choice, problem: Problem
    ) -> tuple[tuple[Decision, ...], dict[str, ParameterPlan]]:
        """A choice as decisions and parameters, of which `assign` makes an equal plan."""


LayByOp = Callable[[Analysis, Mesh], Laying]
"""Raises UsageError for a Program whose ops can't be looked at one by one."""


@dataclass
class ByOp:
    """The stage of one search.

    best: what it found; why_not: why there is nothing. cut_off: for lack of time, so that a faster
    machine may find another.
    """

    lay: LayByOp
    stands_for: Mapping[str, int]
    best: Evaluated | None = None
    why_not: str = ""
    cut_off: bool = field(default=False, init=False)
    _done: bool = field(default=False, init=False)

    def run(self, costing: Costing, devices: int, last: bool = False) -> None:
        """Solve for all devices on one axis, where the strategy leaves that open; once.

        last: there is no other use for the time that is left.
        """
        space, strategy = costing.space, costing.space.strategy
        analysis = space.first
        count = len(analysis.program.ops)
        if self._done or (count > FIRST_OPS and not last):
            return
        self._done = True
        share = _LAST_SHARE if last else _SHARE
        if costing.goal.kind == "memory":
            self.why_not = "least memory is asked for"
        elif strategy.axes or strategy.zero is not None or strategy.attention:
            self.why_not = "the strategy names axes or what is stored"
        elif strategy.microbatches not in (None, 1) or strategy.recompute != "none":
            self.why_not = "the strategy names microbatches or recomputation"
        elif count > MOST_OPS:
            self.why_not = f"{count} ops are more than {MOST_OPS}"
        elif devices < 2:
            self.why_not = "one device cuts nothing"
        elif self.stands_for:
            self.why_not = "blocks stand for others"
        elif _LEAST_S + _OP_S * count > share * (costing.deadline - costing.clock()):
            self.why_not, self.cut_off = "too little time is left", True
        if self.why_not:
            return
        try:
            self.best = self._best(costing, analysis, Mesh(((AXIS, devices),)), share)
        except (MeshwrightError, AssertionError) as error:
            self.why_not = str(error)

    def _best(self, costing: Costing, analysis: Analysis, mesh: Mesh, share: float) -> Evaluated:
        # The solver is imported where it is needed: that takes longer than a small search.
        from meshwright.search.oracle_solve import solve

        constraints = costing.space.constraints
        laying = self.lay(analysis, mesh)
        problem = restricted(laying.problem(), constraints, analysis)
        seconds = min(share * (costing.deadline - costing.clock()), _MOST_S)
        self.cut_off = True
        found = solve(problem, seconds=max(seconds, 0.0), tolerance=_TOLERANCE, nodes=_NODES)
        self.cut_off = found.cut_off
        decisions, parameters = laying.decided(found.choice, problem)
        assignment = assign(analysis, mesh, decisions, parameters)
        check(constraints, analysis, assignment)
        stored = assignment.parameters
        parts = any(item.storage != item.compute for item in stored.values())
        made = Candidate(
            f"{AXIS}={mesh.size}; each op by itself", mesh, int(parts), 1, decisions,
            {path: as_stored(plan, stored[path]) for path, plan in parameters.items()},
        )  # fmt: skip
        if costing.estimator is not None:
            name = axis_name(costing.space, costing.estimator, assignment, AXIS)
            made = renamed(made, AXIS, name)
        refuse(constraints, made.mesh, made.decisions, made.parameters)
        forbidden = costing.space.forbidden(made)
        if forbidden:
            raise MeshwrightError(f"'{forbidden}' forbids it")
        found_out = costing.evaluate(made)
        said = found_out if isinstance(found_out, Prediction) else found_out.prediction
        fits = costing.goal.fits(said.step_time_s, said.peak_memory_bytes, costing.memory_bytes)
        return Evaluated(made, said, fits)

    def taken(self, costing: Costing, found: Found) -> Found:
        """`found`, with the plan by ops as its best where that is quicker."""
        best = self.best
        if best is None or not best.fits or not self._better(costing, best, found.best):
            return found
        said, before = best.prediction, found.best.prediction
        quicker = 1 - said.step_time_s / before.step_time_s
        choice = Chosen(
            subject="layout of single ops",
            chosen="each op by itself",
            second=f"by groups, {found.best.candidate.name}",
            slower_s=before.step_time_s - said.step_time_s,
            more_bytes=before.peak_memory_bytes - said.peak_memory_bytes,
            why="the best with that is what the search by groups found",
        )
        share = f"{quicker:.1%}" if quicker >= 0.001 else "less than 0.1%"
        return replace(
            found,
            best=best,
            others=(found.best, *found.others),
            why=f"{best.candidate.name} is predicted fastest: where each op may be cut in its own "
            f"way, a step takes {share} less than by groups of dims that are cut alike. Of those, "
            f"{found.why}",
            choices=(choice,),
            evaluated=found.evaluated + 1,
        )

    def _better(self, costing: Costing, one: Evaluated, other: Evaluated) -> bool:
        if not other.fits:
            return True
        aims = [
            costing.goal.objective(item.prediction.step_time_s, item.prediction.peak_memory_bytes)
            for item in (one, other)
        ]
        return aims[0] < aims[1] * (1 - _LEAST_GAIN)


def restricted(problem: Problem, constraints: Constraints, analysis: Analysis) -> Problem:
    """`problem` without what the user's constraints on values and parameters rule out.

    Raises StrategyError where a constraint can't be held so.
    """
    if not constraints:
        return problem
    resolved = resolve(constraints, analysis)
    (axis,) = problem.axes

    def obeys(value: str, layout: Layout) -> bool:
        asked = resolved.cuts.get(value, {}).get(axis)
        if asked is not None:
            return layout.split(axis) == asked[0]
        return not resolved.is_whole(value, axis) or layout == REPLICATED

    def kept(path: str, value: str, option: Storing) -> bool:
        how = resolved.residency.get(path)
        always = option.storage == option.compute
        if how is not None and always != (how[0] == PINNED_WHOLE):
            return False
        if how is not None and not always and option.residency != how[0]:
            return False
        stored = not resolved.is_whole(value, axis) or option.storage == REPLICATED
        return stored and obeys(value, option.compute)

    ops = tuple(
        replace(op, forms=tuple(f for f in op.forms if all(obeys(*made) for made in f.results)))
        for op in problem.ops
    )
    inputs = {
        name: tuple(layout for layout in layouts if obeys(name, layout))
        for name, layouts in problem.inputs.items()
    }
    parameters = tuple(
        replace(item, options=tuple(o for o in item.options if kept(item.path, item.value, o)))
        for item in problem.parameters
    )
    every = [
        *(op.forms for op in ops), *inputs.values(), *(item.options for item in parameters)
    ]  # fmt: skip
    if not all(every):
        raise StrategyError("What was asked for leaves an op or a parameter no layout.")
    return replace(problem, ops=ops, inputs=inputs, parameters=parameters)
