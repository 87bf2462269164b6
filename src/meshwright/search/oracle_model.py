"""The oracle's problem as a linear program in whole numbers, for HiGHS.

A binary variable for each form of each op, each layout of an input, each way
to store a parameter. For each value and each use of it a transport from the layout that it
is made in to the one that the use needs; for each value and each layout on the way of a
conversion one variable that any use of it raises, since lowering makes a conversion once
and keeps it. All but the binary ones are continuous: with the binary ones fixed, their best
values are whole by themselves. Pending sums pass through linear ops in lowering without
being asked; constraints say so, so that each solution is a plan that can be lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from meshwright.errors import MeshwrightError
from meshwright.layout.types import Layout
from meshwright.search.oracle import (
    BESIDE,
    Choice,
    Choosing,
    Cost,
    Problem,
    Step,
    known_steps,
)
from meshwright.search.solver_output import no_prints


class OracleError(MeshwrightError):
    """The program has no solution, or none was found in time."""


Variable = int

_MICRO = 1e6  # costs are in microseconds, near 1 where the solver's tolerances are


def _uncut(axis: str, layout: Layout) -> bool:
    return layout.split(axis) is None


def _pending(axis: str, layout: Layout) -> bool:
    return layout.reduction(axis) == "sum"


class Optimum(NamedTuple):
    """taken: of each variable. seconds: of that, with buckets' costs as straight lines; bound:
    below which nothing is; they are equal up to the tolerance where `proved`."""

    taken: np.ndarray
    seconds: float
    bound: float
    proved: bool


class LinearProgram:
    """The linear program: variables with costs, and rows of constraints."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.costs: list[float] = []
        self.whole: list[bool] = []
        self.upper: list[float] = []
        self.rows: list[tuple[list[Variable], list[float], float, float]] = []
        self.phases = {name: self._variable(1.0, whole=False, upper=np.inf)
                       for name in ("gather", "forward", "backward", "reduce", "once")}  # fmt: skip
        self.spent: dict[str, tuple[dict[Variable, float], dict[Variable, float]]] = {
            name: ({}, {}) for name in self.phases
        }
        self.made: dict[str, dict[Layout, list[Variable]]] = {}
        self.forms = [[self._variable(0.0) for _ in op.forms] for op in problem.ops]
        self.inputs = {
            name: {layout: self._variable(0.0) for layout in layouts}
            for name, layouts in problem.inputs.items()
        }
        self.holding = [[self._variable(0.0) for _ in item.options] for item in problem.parameters]
        self.ways: dict[tuple[str, Layout, Layout], Variable] = {}
        self.pieces: dict[tuple[str, str, str, int, str], list[tuple[Variable, int]]] = {}
        self._choose()
        self._store()
        self._flow()

    # Variables and rows.

    def _variable(self, cost: float, whole: bool = True, upper: float = 1.0) -> Variable:
        self.costs.append(cost)
        self.whole.append(whole)
        self.upper.append(upper)
        return len(self.costs) - 1

    def _row(
        self,
        terms: Iterable[tuple[Variable, float]],
        lower: float = -np.inf,
        upper: float = np.inf,
    ) -> None:
        summed: dict[Variable, float] = {}
        for variable, factor in terms:
            summed[variable] = summed.get(variable, 0.0) + factor
        self.rows.append((list(summed), list(summed.values()), lower, upper))

    def _one(self, variables: Iterable[Variable]) -> None:
        self._row([(variable, 1.0) for variable in variables], lower=1.0, upper=1.0)

    def _spend(self, phase: str, variable: Variable, cost: Cost) -> None:
        if phase in BESIDE and self.problem.beside:
            phase, cost = BESIDE[phase], Cost(cost.seconds, 0.0)
        for part, amount in zip(self.spent[phase], cost, strict=True):
            part[variable] = part.get(variable, 0.0) + amount * _MICRO

    # What is chosen.

    def _choose(self) -> None:
        for name, layouts in self.inputs.items():
            self._one(layouts.values())
            for layout, variable in layouts.items():
                self.made.setdefault(name, {}).setdefault(layout, []).append(variable)
        for item, variables in zip(self.problem.parameters, self.holding, strict=True):
            self._one(variables)
            for option, variable in zip(item.options, variables, strict=True):
                made = self.made.setdefault(item.value, {})
                made.setdefault(option.compute, []).append(variable)
        for op, variables in zip(self.problem.ops, self.forms, strict=True):
            self._one(variables)
            for form, variable in zip(op.forms, variables, strict=True):
                self._spend(op.phase, variable, form.cost)
                for name, layout in form.results:
                    self.made.setdefault(name, {}).setdefault(layout, []).append(variable)
        for op, variables in zip(self.problem.ops, self.forms, strict=True):
            self._pending(op, variables)

    def _pending(self, op: Choosing, variables: Sequence[Variable]) -> None:
        """Where sums would pass through an op by themselves, forms that do not are shut."""
        for form, variable in zip(op.forms, variables, strict=True):
            for name, axis in form.unsplit:
                made = self._made(name, partial(_uncut, axis))
                self._row([*((v, -1.0) for v in made), (variable, 1.0)], upper=0.0)
        for axis in self.problem.axes if op.linear else ():
            still = [
                (variable, 1.0)
                for form, variable in zip(op.forms, variables, strict=True)
                if axis not in dict(form.cuts) and axis not in form.passes
            ]
            if not still:
                continue
            pending = {
                name: self._made(name, partial(_pending, axis)) for name in dict.fromkeys(op.linear)
            }
            if all(pending.values()):
                found = [(v, 1.0) for some in pending.values() for v in some]
                self._row([*still, *found], upper=float(len(pending)))
            if not op.defers or len(pending) != 2:
                continue
            for one, other in (tuple(pending), tuple(pending)[::-1]):
                if not pending[one]:
                    continue
                bare = self._made(other, partial(_uncut, axis))
                found = [(v, 1.0) for v in (*pending[one], *bare)]
                self._row([*still, *found], upper=2.0)

    def _made(self, name: str, holds: Callable[[Layout], bool]) -> list[Variable]:
        return [
            variable
            for layout, variables in self.made.get(name, {}).items()
            if holds(layout)
            for variable in variables
        ]

    def _store(self) -> None:
        """Gathering once a step, and the optimizer: what each option adds to doing without."""
        base = {item.value: item.options[0].storage for item in self.problem.parameters}
        lies = {name: layouts[0] for name, layouts in self.problem.inputs.items()}
        start = self.problem.once(base, lies)
        self.start = self._variable(start * _MICRO, whole=False)  # so that gaps are of the step
        for item, variables in zip(self.problem.parameters, self.holding, strict=True):
            for option, variable in zip(item.options, variables, strict=True):
                stored = {**base, item.value: option.storage}
                self._spend("once", variable, Cost(self.problem.once(stored, lies) - start, 0.0))
                if option.storage != option.compute and self.problem.users.get(item.value):
                    if option.residency == "use":
                        raise AssertionError("parameters gathered at each use are not solved for")
                    steps = self.problem.steps(item.value, option.storage, option.compute)
                    for number, step in enumerate(known_steps(steps)):
                        self._pay("gather", variable, step, number)
        for name, layouts in self.inputs.items():
            for layout, variable in layouts.items():
                seconds = self.problem.once(base, {**lies, name: layout}) - start
                self._spend("once", variable, Cost(seconds, 0.0))

    # Conversions.

    def _flow(self) -> None:
        for value, users in self.problem.users.items():
            for number in users:
                op = self.problem.ops[number]
                needs: dict[Layout, list[Variable]] = {}
                count: dict[Variable, int] = {}
                for form, variable in zip(op.forms, self.forms[number], strict=True):
                    layouts = [layout for name, layout in form.needs if name == value]
                    count[variable] = len(layouts)
                    for layout in layouts:
                        needs.setdefault(layout, []).append(variable)
                if max(count.values()) == 1:
                    self._transport(value, needs, op.phase)
                else:  # used in two layouts by one op: each by itself
                    for layout, variables in needs.items():
                        self._transport(value, {layout: variables}, op.phase)
        for op, variables in zip(self.problem.ops, self.forms, strict=True):
            for form, variable in zip(op.forms, variables, strict=True):
                for value, have, layout in form.inside:
                    self._inside(value, have, layout, variable, op.phase)
        for value, layout in self.problem.ends:
            self._transport(value, {layout: []}, "forward", always=True)
        for value, source in self.problem.updates:
            needs = {layout: [v] for layout, v in self.inputs[source].items()}
            self._transport(value, needs, "forward")
        for item, variables in zip(self.problem.parameters, self.holding, strict=True):
            if item.gradient is None:
                continue
            needs = {}
            for option, variable in zip(item.options, variables, strict=True):
                needs.setdefault(option.storage, []).append(variable)
            self._transport(item.gradient, needs, "reduce")

    def _transport(
        self,
        value: str,
        needs: Mapping[Layout, list[Variable]],
        phase: str,
        always: bool = False,
    ) -> None:
        """What is made in some layouts goes to where it is needed in others."""
        sources = self.made[value]
        leaving: dict[Layout, list[Variable]] = {source: [] for source in sources}
        needed_by = []
        for target, variables in needs.items():
            arriving = []
            for source in sources:
                steps = self.problem.steps(value, source, target)
                if steps is None:
                    continue
                moved = self._variable(0.0, whole=False)
                arriving.append(moved)
                leaving[source].append(moved)
                for number, step in enumerate(steps):
                    needed_by.append((source, step, number, moved))
            if always:
                self._one(arriving)
            else:
                asked = [(v, -1.0) for v in variables]
                self._row([*((v, 1.0) for v in arriving), *asked], 0.0, 0.0)
        for source, taken in leaving.items():
            made = [(variable, -1.0) for variable in sources[source]]
            self._row([*((v, 1.0) for v in taken), *made], upper=0.0)
        by_step: dict[tuple[Layout, Layout], list[Variable]] = {}
        price: dict[tuple[Layout, Layout], tuple[Step, int]] = {}
        for source, step, number, user in needed_by:
            by_step.setdefault((source, step.after), []).append(user)
            price[source, step.after] = step, number
        for (source, after), users in by_step.items():
            way = self._way(value, source, *price[source, after], phase)
            self._row([*((v, 1.0) for v in users), (way, -1.0)], upper=0.0)

    def _way(self, value: str, source: Layout, step: Step, number: int, phase: str) -> Variable:
        """The variable of one step of a conversion, which is paid for once."""
        found = self.ways.get((value, source, step.after))
        if found is None:
            found = self.ways[value, source, step.after] = self._variable(0.0, whole=False)
            self._pay(phase, found, step, number)
        return found

    def _pay(self, phase: str, variable: Variable, step: Step, number: int) -> None:
        """What a step takes, by itself or as a part of a bucket."""
        if phase not in BESIDE or step.piece is None:
            self._spend(phase, variable, step.cost)
            return
        key = (*step.piece.key, number, phase)
        self.pieces.setdefault(key, []).append((variable, step.piece.payload))

    def _inside(
        self, value: str, have: Layout, target: Layout, variable: Variable, phase: str
    ) -> None:
        """A conversion that an op makes of what it has: a chain of its own, unless the value
        was made so, when others may share it."""
        for number, step in enumerate(self.problem.steps(value, have, target) or ()):
            after, cost = step.after, step.cost
            as_made = self.made[value].get(have, [])
            if as_made:
                way = self._way(value, have, step, number, phase)
                terms = [(variable, 1.0), (way, -1.0), *((v, 1.0) for v in as_made)]
                self._row(terms, upper=1.0)
            key = (f"{value} as needed", have, after)
            chain = self.ways.get(key)
            if chain is None:
                chain = self.ways[key] = self._variable(0.0, whole=False)
                self._spend(phase, chain, cost)
            self._row([(variable, 1.0), (chain, -1.0), *((v, -1.0) for v in as_made)], upper=0.0)

    def _fill(self, reached: Mapping[object, int]) -> None:
        """Buckets: what the first byte of each kind costs, and what each further one does."""
        limit = self.problem.merging.bucket_bytes
        for key, parts in self.pieces.items():
            near = reached.get(key) or sum(payload for _, payload in parts)
            near = max(min(near, max(limit, 1)), 2)
            near_s = self.problem.merging.seconds(key[:3], near)
            half_s = self.problem.merging.seconds(key[:3], near // 2)
            slope = max((near_s - half_s) / (near - near // 2), 0.0)
            first = self._variable(0.0, whole=False)
            self._spend(key[4], first, Cost(max(near_s - slope * near, 0.0), 0.0))
            for variable, payload in parts:
                self._spend(key[4], variable, Cost(slope * payload, 0.0))
                self._row([(variable, 1.0), (first, -1.0)], upper=0.0)

    def reached(self, x: np.ndarray) -> dict[object, int]:
        """Bytes of each kind of bucket in a solution."""
        return {
            key: int(sum(payload * round(x[variable], 3) for variable, payload in parts))
            for key, parts in self.pieces.items()
        }

    # The answer.

    def solve(
        self,
        reached: Mapping[object, int],
        seconds: float,
        tolerance: float,
        nodes: int | None,
    ) -> Optimum:
        """reached: bytes of each kind of bucket, near which its cost is taken as straight.

        seconds, nodes: of the solver, after which it takes what it has. Raises OracleError where
        that is nothing.
        """
        variables, rows, spent = len(self.costs), len(self.rows), self.spent
        self.spent = {name: (dict(one), dict(two)) for name, (one, two) in spent.items()}
        self._fill(reached)
        for name, variable in self.phases.items():
            for number, part in enumerate(self.spent[name]):
                terms = [(v, c) for v, c in part.items() if c]
                # Nothing else holds `once` from below, of which the host has no part.
                if terms or (name == "once" and number == 0):
                    self._row([*terms, (variable, -1.0)], upper=0.0)
        try:
            return self._solved(seconds, tolerance, nodes)
        finally:
            self.spent = spent
            for listed in (self.costs, self.whole, self.upper):
                del listed[variables:]
            del self.rows[rows:]

    def _solved(self, seconds: float, tolerance: float, nodes: int | None) -> Optimum:
        starts = np.cumsum([0, *(len(row[0]) for row in self.rows)])
        columns = np.concatenate([np.array(row[0], dtype=np.int64) for row in self.rows])
        factors = np.concatenate([np.array(row[1]) for row in self.rows])
        matrix = csr_array((factors, columns, starts), shape=(len(self.rows), len(self.costs)))
        options: dict[str, float] = {"time_limit": seconds, "mip_rel_gap": tolerance}
        if nodes is not None:
            options["node_limit"] = nodes
        with no_prints():
            found = milp(
                c=np.array(self.costs),
                constraints=LinearConstraint(
                    matrix, [row[2] for row in self.rows], [row[3] for row in self.rows]
                ),
                integrality=np.array(self.whole, dtype=int),
                bounds=Bounds(self._lower(), np.array(self.upper)),
                options=options,
            )
        if found.x is None:
            raise OracleError(
                f"The oracle has no solution: {found.message}",
                "Give it more seconds, or a smaller program.",
            )
        bound = found.mip_dual_bound if found.mip_dual_bound is not None else 0.0
        return Optimum(
            found.x, found.fun / _MICRO, bound / _MICRO, found.status == 0
        )  # fmt: skip

    def _lower(self) -> np.ndarray:
        lower = np.zeros(len(self.costs))
        lower[self.start] = 1.0
        lower[self.phases["once"]] = -np.inf  # beside the fixed part, which may be saved on
        return lower

    def choice(self, x: np.ndarray) -> Choice:
        """What the binary variables choose."""

        def taken(variables: Sequence[Variable]) -> int:
            return int(np.argmax([x[variable] for variable in variables]))

        forms = {
            op.name: op.forms[taken(variables)]
            for op, variables in zip(self.problem.ops, self.forms, strict=True)
        }
        inputs = {
            name: list(layouts)[taken(list(layouts.values()))]
            for name, layouts in self.inputs.items()
        }
        parameters = {
            item.path: item.options[taken(variables)]
            for item, variables in zip(self.problem.parameters, self.holding, strict=True)
        }
        return Choice(forms, inputs, parameters)
