"""The oracle: the best layout of every op by itself, found as a linear program in whole numbers.

The search decides over groups of dims that are cut alike. The oracle decides for each op
of a small Program along which factor each axis cuts it, in which layout each value is
made, and where it is converted, as Alpa (Zheng et al. 2022) and PyTorch's AutoParallel do.
How far the search's plan is above the oracle's says what deciding over groups costs.

Its costs are those of the simulator, op by op and collective by collective: a `Problem`
holds, for each op, the forms that lowering can give it with what they take, and prices
conversions between layouts. `objective` of the choices that a plan makes is the step time
that the simulator gives that plan, which a test holds it to.

The program. A binary variable for each form of each op, each layout of an input, each way
to store a parameter. For each value and each use of it a transport from the layout that it
is made in to the one that the use needs; for each value and each layout on the way of a
conversion one variable that any use of it raises, since lowering makes a conversion once
and keeps it. All but the binary ones are continuous: with the binary ones fixed, their best
values are whole by themselves. Pending sums pass through linear ops in lowering without
being asked; constraints say so, so that each solution is a plan that can be lowered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from meshwright.errors import MeshwrightError
from meshwright.layout.buckets import Packing
from meshwright.layout.types import Layout
from meshwright.plan.types import Residency
from meshwright.program.types import Phase
from meshwright.rules.types import FactorCut


class Cost(NamedTuple):
    """Seconds on the device, and of the host's thread at the same time; see `OpTime`."""

    seconds: float
    host_s: float

    def plus(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.host_s + other.host_s)


FREE = Cost(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to run an op.

    cuts: by axis. asked: the layout asked of its first result, which some special lowerings
    reduce into. needs: for each value it uses, the layouts it needs it in. results: the
    layouts that it makes values in. inside: conversions of what it uses, beyond what it
    needs: value, layout it is had in, layout wanted. passes: axes over which pending sums
    pass. unsplit: values that must be made without a cut over an axis.
    """

    cuts: tuple[tuple[str, FactorCut], ...]
    asked: Layout
    needs: tuple[tuple[str, Layout], ...]
    results: tuple[tuple[str, Layout], ...]
    cost: Cost
    inside: tuple[tuple[str, Layout, Layout], ...] = ()
    passes: frozenset[str] = frozenset()
    unsplit: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Choosing:
    """An op with its forms. linear: operands whose pending sums pass through it where all
    are pending. defers: it is an addition that lets its sum wait where one operand does.
    parameter: whose view its result is, by value."""

    name: str
    phase: Phase
    forms: tuple[Form, ...]
    linear: tuple[str, ...] = ()
    defers: bool = False
    parameter: str | None = None


@dataclass(frozen=True, slots=True)
class Storing:
    """One way to hold a parameter: as it is computed with, as it is stored, and until when."""

    compute: Layout
    storage: Layout
    residency: Residency


@dataclass(frozen=True, slots=True)
class Kept:
    """A parameter: its value, the value of its gradient if it has one, and how it may be held."""

    path: str
    value: str
    gradient: str | None
    options: tuple[Storing, ...]


class Piece(NamedTuple):
    """A collective that shares buckets with others of its `key`, in bytes.

    payload: what it moves, as the cost model counts. packed: what fills the bucket.
    """

    key: tuple[str, str, str]  # kind, axis, dtype
    payload: int
    packed: int


class Step(NamedTuple):
    """One step of a conversion: what it leaves, and what it takes by itself."""

    after: Layout
    cost: Cost
    piece: Piece | None = None


@dataclass(frozen=True)
class Merging:
    """How collectives of gradients and parameters are merged once a step (`layout.merge`).

    seconds: of one collective of kind, axis and dtype with so many bytes.
    """

    bucket_bytes: int
    seconds: Callable[[tuple[str, str, str], int], float]


@dataclass
class Problem:
    """A Program on a mesh, as choices with costs.

    inputs: layouts that batch, buffers and constants may lie in. ends: values that are
    needed in a layout at the end. updates: the value that a buffer's input is updated to,
    and that input. steps: the layouts on the way of a conversion with their costs, None where
    there is none. once: seconds once a step, given how each parameter is stored and how
    each input lies: the optimizer's step, what the step loop takes, the fetching of the batch.
    """

    ops: tuple[Choosing, ...]
    inputs: Mapping[str, tuple[Layout, ...]]
    parameters: tuple[Kept, ...]
    ends: tuple[tuple[str, Layout], ...]
    updates: tuple[tuple[str, str], ...]
    steps: Callable[[str, Layout, Layout], tuple[Step, ...] | None]
    once: Callable[[Mapping[str, Layout], Mapping[str, Layout]], float]
    axes: tuple[str, ...]
    merging: Merging
    users: Mapping[str, tuple[int, ...]] = field(init=False)
    parameters_by_gradient: tuple[Kept, ...] = field(init=False)  # first made first

    def __post_init__(self) -> None:
        made = [name for op in self.ops for name, _ in op.forms[0].results]
        order = {name: number for number, name in enumerate(made)}
        self.parameters_by_gradient = tuple(
            sorted(self.parameters, key=lambda item: order.get(item.gradient or "", len(order)))
        )
        users: dict[str, list[int]] = {}
        for number, op in enumerate(self.ops):
            for name in dict.fromkeys(name for form in op.forms for name, _ in form.needs):
                users.setdefault(name, []).append(number)
        self.users = {name: tuple(found) for name, found in users.items()}


@dataclass(frozen=True)
class Choice:
    """What is chosen: a form for each op, a layout for each input, a way to hold each parameter."""

    forms: Mapping[str, Form]
    inputs: Mapping[str, Layout]
    parameters: Mapping[str, Storing]


@dataclass(frozen=True)
class Solution:
    """seconds: the objective of `choice`. bound: below which no choice is; equal to it up to
    `tolerance` where `proved`."""

    choice: Choice
    seconds: float
    bound: float
    proved: bool


def objective(problem: Problem, choice: Choice) -> float:
    """Seconds of one step of one microbatch under `choice`."""
    made = dict(choice.inputs)
    total = {"forward": FREE, "backward": FREE, "once": FREE}
    gathered_again: dict[str, Storing] = {}
    limit = problem.merging.bucket_bytes
    gathers, reductions = Packing[int](limit), Packing[int](limit)
    for item in problem.parameters:
        how = choice.parameters[item.path]
        made[item.value] = how.compute
        if how.storage == how.compute or not problem.users.get(item.value):
            continue
        steps = _known(problem.steps(item.value, how.storage, how.compute))
        if how.residency != "step":
            total["forward"] = total["forward"].plus(_total(steps))
        for number, step in enumerate(steps if how.residency == "step" else ()):
            total["once"] = total["once"].plus(_packed(step, number, gathers))
        if how.residency == "use":
            gathered_again[item.value] = how
    for op in problem.ops:
        made.update(choice.forms[op.name].results)
    again = _again(problem, gathered_again)
    for op in problem.ops:
        total[op.phase] = total[op.phase].plus(choice.forms[op.name].cost)
        if op.name in again:
            total["backward"] = total["backward"].plus(choice.forms[op.name].cost)
    for item in problem.parameters:
        if item.value in again:
            how = gathered_again[item.value]
            steps = _known(problem.steps(item.value, how.storage, how.compute))
            total["backward"] = total["backward"].plus(_total(steps))
    for phase, number, step in _conversions(problem, choice, made, again):
        cost = _packed(step, number, reductions) if phase == "once" else step.cost
        total[phase] = total[phase].plus(cost)
    for packing in (gathers, reductions):
        for bucket in packing.buckets:
            kind, axis, dtype, _ = cast(tuple[str, str, str, int], bucket.key)
            seconds = problem.merging.seconds((kind, axis, dtype), sum(bucket.members))
            total["once"] = total["once"].plus(Cost(seconds, 0.0))
    stored = {item.value: choice.parameters[item.path].storage for item in problem.parameters}
    seconds = sum(max(cost.seconds, cost.host_s) for cost in total.values())
    return seconds + problem.once(stored, choice.inputs)


def _known(steps: tuple[Step, ...] | None) -> tuple[Step, ...]:
    if steps is None:
        raise AssertionError("a conversion that there is none of")
    return steps


def _total(steps: Iterable[Step]) -> Cost:
    total = FREE
    for step in steps:
        total = total.plus(step.cost)
    return total


def _packed(step: Step, number: int, packing: Packing[int]) -> Cost:
    """Puts the `number`th step of a conversion into a bucket; its cost where it has none."""
    if step.piece is None:
        return step.cost
    packing.add((*step.piece.key, number), step.piece.payload, step.piece.packed)
    return FREE


def _again(problem: Problem, parameters: Mapping[str, Storing]) -> set[str]:
    """Of parameters that each use gathers: their values where the backward computes with them,
    and the ops that make those views of them again that it uses."""
    if not parameters:
        return set()
    found: set[str] = set()
    wanted: set[str] = set()
    for op in reversed(problem.ops):
        views = op.parameter in parameters and op.phase == "forward"
        made = {name for form in op.forms for name, _ in form.results}
        if op.phase == "backward" or (views and made & wanted):
            wanted.update(name for form in op.forms for name, _ in form.needs)
            if views:
                found.add(op.name)
    return found | (wanted & parameters.keys())


def _conversions(
    problem: Problem, choice: Choice, made: Mapping[str, Layout], again: set[str]
) -> Iterable[tuple[str, int, Step]]:
    """Each step of a conversion once: the phase that pays for it, which step it is, the step."""
    remade = {
        name for op in problem.ops if op.name in again for name, _ in choice.forms[op.name].results
    } | again
    done: set[tuple[str, str, Layout, Layout]] = set()

    def bring(
        value: str, source: Layout, target: Layout, phase: str
    ) -> Iterable[tuple[str, int, Step]]:
        epoch = phase if value in remade else ""
        for number, step in enumerate(problem.steps(value, source, target) or ()):
            if (epoch, value, source, step.after) not in done:
                done.add((epoch, value, source, step.after))
                yield phase, number, step

    for op in problem.ops:
        form = choice.forms[op.name]
        phases = [op.phase, *(["backward"] if op.name in again else [])]
        for phase in phases:
            for value, layout in form.needs:
                yield from bring(value, made[value], layout, phase)
            for value, have, layout in form.inside:
                yield from bring(value, have, layout, phase)
    for value, layout in problem.ends:
        yield from bring(value, made[value], layout, "forward")
    for value, source in problem.updates:
        yield from bring(value, made[value], choice.inputs[source], "forward")
    for item in problem.parameters_by_gradient:
        if item.gradient is not None:
            how = choice.parameters[item.path]
            late = how.residency in ("always", "step")
            phase = "once" if late else "backward"
            yield from bring(item.gradient, made[item.gradient], how.storage, phase)


class OracleError(MeshwrightError):
    """The program has no solution, or none was found in time."""


def solve(problem: Problem, *, seconds: float = 60.0, tolerance: float = 1e-4) -> Solution:
    """The choice whose step takes least, within `tolerance` of it.

    What a bucket of merged collectives takes is no straight line of its bytes: it is taken
    as one near the bytes that are reached, which is tried again where these turn out
    others. seconds: after which the best choice found is taken, unproved. Raises
    OracleError where none was found.
    """
    best: Solution | None = None
    reached: dict[object, int] = {}
    for _ in range(_ROUNDS):
        started = time.monotonic()
        found, now = _Model(problem, reached).solve(seconds, tolerance)
        if best is None or found.seconds < best.seconds:
            best = found
        seconds -= time.monotonic() - started
        if seconds <= 0 or all(_near(now.get(key, 0), reached.get(key, 0)) for key in now):
            break
        reached = now
    assert best is not None
    return best


def _near(one: int, other: int) -> bool:
    return abs(one - other) <= 0.25 * max(one, other)


Variable = int

_ROUNDS = 3
_MICRO = 1e6  # costs are in microseconds, near 1 where the solver's tolerances are


def _uncut(axis: str, layout: Layout) -> bool:
    return layout.split(axis) is None


def _pending(axis: str, layout: Layout) -> bool:
    return layout.reduction(axis) == "sum"


class _Model:
    """The linear program: variables with costs, and rows of constraints."""

    def __init__(self, problem: Problem, reached: Mapping[object, int]) -> None:
        """reached: bytes of each kind of bucket, near which its cost is taken as straight."""
        self.problem = problem
        self.costs: list[float] = []
        self.whole: list[bool] = []
        self.upper: list[float] = []
        self.rows: list[tuple[list[Variable], list[float], float, float]] = []
        self.phases = {name: self._variable(1.0, whole=False, upper=np.inf)
                       for name in ("forward", "backward", "once")}  # fmt: skip
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
        self.pieces: dict[tuple[str, str, str, int], list[tuple[Variable, int]]] = {}
        self._choose()
        self._store()
        self._flow()
        self._fill(reached)
        for name, variable in self.phases.items():
            for part in self.spent[name]:
                terms = [(v, c) for v, c in part.items() if c]
                if terms:
                    self._row([*terms, (variable, -1.0)], upper=0.0)

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
        self.fixed = start
        for item, variables in zip(self.problem.parameters, self.holding, strict=True):
            for option, variable in zip(item.options, variables, strict=True):
                stored = {**base, item.value: option.storage}
                self._spend("once", variable, Cost(self.problem.once(stored, lies) - start, 0.0))
                if option.storage != option.compute and self.problem.users.get(item.value):
                    if option.residency == "use":
                        raise AssertionError("parameters gathered at each use are not solved for")
                    steps = self.problem.steps(item.value, option.storage, option.compute)
                    for number, step in enumerate(_known(steps)):
                        self._pay("once", variable, step, number)
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
            self._transport(item.gradient, needs, "once")

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
        if phase != "once" or step.piece is None:
            self._spend(phase, variable, step.cost)
            return
        key = (*step.piece.key, number)
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
            self._spend("once", first, Cost(max(near_s - slope * near, 0.0), 0.0))
            for variable, payload in parts:
                self._spend("once", variable, Cost(slope * payload, 0.0))
                self._row([(variable, 1.0), (first, -1.0)], upper=0.0)

    def reached(self, x: np.ndarray) -> dict[object, int]:
        """Bytes of each kind of bucket in a solution."""
        return {
            key: int(sum(payload * round(x[variable], 3) for variable, payload in parts))
            for key, parts in self.pieces.items()
        }

    # The answer.

    def solve(self, seconds: float, tolerance: float) -> tuple[Solution, dict[object, int]]:
        starts = np.cumsum([0, *(len(row[0]) for row in self.rows)])
        columns = np.concatenate([np.array(row[0], dtype=np.int64) for row in self.rows])
        factors = np.concatenate([np.array(row[1]) for row in self.rows])
        matrix = csr_array((factors, columns, starts), shape=(len(self.rows), len(self.costs)))
        found = milp(
            c=np.array(self.costs),
            constraints=LinearConstraint(
                matrix, [row[2] for row in self.rows], [row[3] for row in self.rows]
            ),
            integrality=np.array(self.whole, dtype=int),
            bounds=Bounds(self._lower(), np.array(self.upper)),
            options={"time_limit": seconds, "mip_rel_gap": tolerance},
        )
        if found.x is None:
            raise OracleError(
                f"The oracle has no solution: {found.message}",
                "Give it more seconds, or a smaller program.",
            )
        choice = self._choice(found.x)
        bound = found.mip_dual_bound if found.mip_dual_bound is not None else 0.0
        spent = objective(self.problem, choice)
        solution = Solution(choice, spent, bound / _MICRO + self.fixed, found.status == 0)
        return solution, self.reached(found.x)

    def _lower(self) -> np.ndarray:
        lower = np.zeros(len(self.costs))
        lower[self.phases["once"]] = -np.inf  # beside the fixed part, which may be saved on
        return lower

    def _choice(self, x: np.ndarray) -> Choice:
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
