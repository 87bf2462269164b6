"""The oracle's problem: a small Program as the best layout of every op by itself.

The search decides over groups of dims that are cut alike. The oracle decides for each op
of a small Program along which factor each axis cuts it, in which layout each value is
made, and where it is converted, as Alpa (Zheng et al. 2022) and PyTorch's AutoParallel do.
How far the search's plan is above the oracle's says what deciding over groups costs.

Its costs are those of the simulator, op by op and collective by collective: a `Problem`
holds, for each op, the forms that lowering can give it with what they take, and prices
conversions between layouts. `objective` of the choices that a plan makes is the step time
that the simulator gives that plan, which a test holds it to. `oracle_solve` finds the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

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

BESIDE = {"gather": "forward", "reduce": "backward"}
"""What runs beside the ops of which phase on accelerators."""


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
    and that input. beside: parameters are gathered once a step while the host already
    issues the forward, and gradients reduced while it still issues the backward; those of a
    small Program share a bucket, which the first use of one waits for, and which is begun when
    the last is made. steps: the layouts on the way of a conversion with their costs, None
    where there is none. once: seconds once a step, given how each parameter is stored and how
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
    beside: bool = False
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


def objective(problem: Problem, choice: Choice) -> float:
    """Seconds of one step of one microbatch under `choice`."""
    made = dict(choice.inputs)
    total = {"gather": FREE, "forward": FREE, "backward": FREE, "reduce": FREE}
    gathered_again: dict[str, Storing] = {}
    limit = problem.merging.bucket_bytes
    gathers, reductions = Packing[int](limit), Packing[int](limit)
    for item in problem.parameters:
        how = choice.parameters[item.path]
        made[item.value] = how.compute
        if how.storage == how.compute or not problem.users.get(item.value):
            continue
        steps = known_steps(problem.steps(item.value, how.storage, how.compute))
        if how.residency != "step":
            total["forward"] = total["forward"].plus(_total(steps))
        for number, step in enumerate(steps if how.residency == "step" else ()):
            total["gather"] = total["gather"].plus(_packed(step, number, gathers))
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
            steps = known_steps(problem.steps(item.value, how.storage, how.compute))
            total["backward"] = total["backward"].plus(_total(steps))
    for phase, number, step in _conversions(problem, choice, made, again):
        cost = _packed(step, number, reductions) if phase == "reduce" else step.cost
        total[phase] = total[phase].plus(cost)
    for packing, part in ((gathers, "gather"), (reductions, "reduce")):
        for bucket in packing.buckets:
            kind, axis, dtype, _ = cast(tuple[str, str, str, int], bucket.key)
            seconds = problem.merging.seconds((kind, axis, dtype), sum(bucket.members))
            total[part] = total[part].plus(Cost(seconds, 0.0))
    stored = {item.value: choice.parameters[item.path].storage for item in problem.parameters}
    for part, beside in BESIDE.items() if problem.beside else ():
        total[beside] = total[beside].plus(Cost(total.pop(part).seconds, 0.0))
    seconds = sum(max(cost.seconds, cost.host_s) for cost in total.values())
    return seconds + problem.once(stored, choice.inputs)


def known_steps(steps: tuple[Step, ...] | None) -> tuple[Step, ...]:
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
            phase = "reduce" if late else "backward"
            yield from bring(item.gradient, made[item.gradient], how.storage, phase)
