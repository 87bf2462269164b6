"""What no plan can go below: bounds on a step's time and on a device's memory.

A bound is worked out from the Program alone, without lowering or simulating, so
that a search can leave out whole parts of its space, and every plan can say how
far from the best it may be. It holds for what the project's simulator says of
any plan on so many devices, whatever it cuts over which axes:

Compute. Each op of the Program runs on every device of its stage, in each microbatch,
on no less than its share (`cost.floor`). Lowering adds ops and never takes one away
that another needs. Stages divide the ops between them, and the slowest takes at least
their mean. Where experts are dealt out to devices, whole ops are as well: the device
that is simulated has at least its share of each kind, launches included, which is why
ops over lists of rows count without their fixed costs.

Batch. Accelerators fetch it before anything runs: each at least its share.

Optimizer. Each device steps its part of every parameter of its stage.

Collectives. None is counted unless what is decided makes it certain: any op can be
computed by replicas without one.

Memory. Parameters, their gradients and the optimizer's state lie cut over no more
devices than there are, and so does what the forward saves for the backward. At the end
of the first microbatch's forward all that is saved is there; at the optimizer's step,
all gradients.

What is decided already (`Decided`) makes a bound tighter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType

from meshwright.cost.families import family_of
from meshwright.cost.floor import floor_time
from meshwright.cost.memory import optimizer_cost
from meshwright.cost.table import CostTable
from meshwright.layout.groups import Analysis
from meshwright.layout.lowered import StoredParameter
from meshwright.layout.types import REPLICATED
from meshwright.plan.types import Recompute, Residency
from meshwright.program.types import Input, Op, Program, Value
from meshwright.rules.factory import SHAPE_ALONE


@dataclass(frozen=True)
class Decided:
    """What of a plan is settled; what is None, or left as it is, takes whatever is best.

    stages: that the model is cut into. cut, stored: over how many devices a parameter
    may be cut at most while it is computed with, and as it is stored: the product of
    the extents of the axes that may cut it. residency: of all trainable parameters.
    """

    stages: int = 1
    cut: int | None = None
    stored: int | None = None
    residency: Residency | None = None
    recompute: Recompute = "none"


OPEN = Decided()
_ROUNDED = 1 - 1e-9  # the simulator adds up in another order


@dataclass(frozen=True)
class TimeBound:
    """`step_s` is the bound; the others are what it is made of, beside fetching the batch."""

    step_s: float
    compute_s: float
    optimizer_s: float


@dataclass(frozen=True)
class MemoryBound:
    """`peak` is the bound, in bytes; `persistent` is held between steps, `saved` by one
    microbatch from its forward to its backward."""

    peak: int
    persistent: int
    gradients: int
    gathered: int
    saved: int


def lower_bound(
    analysis: Analysis,
    costs: CostTable,
    *,
    devices: int,
    microbatches: int,
    optimizer: str = "adamw",
    decided: Decided = OPEN,
    stands_for: Mapping[str, int] = MappingProxyType({}),
) -> TimeBound:
    """Seconds that a step takes at least, on any plan over `devices` devices.

    analysis: of one microbatch's Program; `microbatches` of them make the step.
    stands_for: modules that stand for so many equal ones, as in `simulate`.
    """
    program, stages = analysis.program, decided.stages
    ways = max(devices // stages, 1)
    weigh = _Weights(stands_for)
    device_s = {"forward": 0.0, "backward": 0.0}
    host_s = dict(device_s)
    known: dict[tuple[object, ...], tuple[float, float]] = {}
    for op in program.ops:
        key = (_signature(op, program.values), special := _changes(analysis, op))
        dealt = op.name in analysis.lists.touches
        found = known.get((*key, dealt))
        if found is None:
            times = [
                floor_time(
                    op, program.values, ways, profile, costs.constants, costs.kernels,
                    changes=special, dealt=dealt,
                )
                for profile in costs.profiles
            ]  # fmt: skip
            found = max(item.seconds for item in times), max(item.host_s for item in times)
            known[*key, dealt] = found
        count = weigh(op.source.module)
        device_s[op.phase] += count * found[0]
        host_s[op.phase] += count * found[1]
    once_s = sum(max(device_s[phase], host_s[phase]) for phase in device_s)
    trained = _trained(program)
    part = (decided.cut if decided.residency == "always" else decided.stored) or ways
    stored = {item.value: _part(program.values[item.value], part) for item in trained}
    grown = [item for item in trained for _ in range(weigh(item.path))]
    optimizer_s = costs.optimizer([_stored(item) for item in grown], stored, optimizer)
    added = sum(stored[item.value].nbytes for item in grown)
    accumulate_s = costs.streaming(3 * added) if microbatches > 1 else 0.0
    compute_s = (microbatches * once_s + (microbatches - 1) * accumulate_s) / stages
    compute_s += costs.step_overhead(microbatches)
    fetch_s = _fetched_s(analysis, costs, microbatches, ways) if stages == 1 else 0.0
    step_s = (fetch_s + compute_s + optimizer_s / stages) * _ROUNDED
    return TimeBound(step_s, compute_s, optimizer_s / stages)


def memory_lower_bound(
    analysis: Analysis,
    *,
    devices: int,
    microbatches: int,
    optimizer: str = "adamw",
    decided: Decided = OPEN,
    stands_for: Mapping[str, int] = MappingProxyType({}),
) -> MemoryBound:
    """Bytes that the fullest device holds at least, on any plan over `devices` devices."""
    program, stages = analysis.program, decided.stages
    values, weigh = program.values, _Weights(stands_for)
    ways = max(devices // stages, 1)
    cut, stored_ways = decided.cut or ways, decided.stored or ways
    residency = decided.residency
    if residency == "always":
        stored_ways = cut
    cost = optimizer_cost(optimizer)
    trained = {item.value for item in _trained(program)}
    stored = gradients = accumulated = gathered = state = 0.0
    needed = _needed_again(program)
    for item in program.inputs_of("parameter"):
        nbytes = values[item.value].nbytes * weigh(item.path)
        stored += nbytes / stored_ways
        if item.value in trained:
            state += nbytes * cost.states / stored_ways
            gradients += nbytes / stored_ways
            whole = cut if residency in ("always", "step") else stored_ways
            accumulated += nbytes / whole
        kept = residency == "step" or (residency == "microbatch" and item.value in needed)
        if kept and cut < stored_ways:
            gathered += nbytes / cut
    buffers = sum(
        values[item.value].nbytes * weigh(item.path) for item in program.inputs_of("buffer")
    )
    batch = microbatches * sum(values[item.value].nbytes for item in program.inputs_of("batch"))
    persistent = stored + state + (buffers + batch) / ways
    saved = 0.0 if decided.recompute != "none" else _saved(analysis, weigh) / ways
    held = accumulated if microbatches > 1 else 0.0
    peak = persistent + max(gathered + saved + held, gradients, accumulated)
    parts = (peak, persistent, gradients, gathered, saved)
    return MemoryBound(*(int(item / stages) for item in parts))


def _fetched_s(analysis: Analysis, costs: CostTable, microbatches: int, ways: int) -> float:
    """Of a step's batch, what ops use."""
    tiers = [{tier.name for tier in profile.lower_tiers} for profile in costs.profiles]
    if all(profile.device == "cpu" for profile in costs.profiles) or not all(
        "host" in names for names in tiers
    ):
        return 0.0
    used = {
        name
        for op in analysis.program.ops
        if op.target not in SHAPE_ALONE
        for name in analysis.operands[op.name]
    }
    leaves = [item.value for item in analysis.program.inputs_of("batch") if item.value in used]
    nbytes = sum(analysis.program.values[name].nbytes for name in leaves) * microbatches
    return costs.tier(nbytes / ways, "host", "read") if nbytes else 0.0


class _Weights:
    """How many equal modules what belongs to a module stands for."""

    def __init__(self, stands_for: Mapping[str, int]) -> None:
        self._counts = dict(stands_for)
        self._known: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        found = self._known.get(name)
        if found is None:
            found = 1
            for module, count in self._counts.items():
                if name == module or name.startswith(module + "."):
                    found *= count
            self._known[name] = found
        return found


def _signature(op: Op, values: Mapping[str, Value]) -> tuple[object, ...]:
    """What an op's cost depends on: equal for ops that cost the same."""
    parts: list[object] = [op.target, len(set(op.operands()))]
    for name in (*op.operands(), *op.results):
        if name is None:
            parts.append(None)
            continue
        value = values[name]
        owner = values.get(value.storage, value)
        parts += value.shape, value.dtype, value.is_view, owner.shape
    flags = tuple(item if isinstance(item, bool) else None for item in op.args)
    return (*parts, flags, dict(op.kwargs).get("is_causal"))


def _changes(analysis: Analysis, op: Op) -> bool:
    """Whether lowering may put other ops in the place of this one."""
    rule = analysis.rules[op.name]
    random = family_of(op.target) == "random"
    return random or any(factor.special for factor in rule.factors)


def _trained(program: Program) -> list[Input]:
    return [
        item
        for item in program.inputs_of("parameter")
        if item.trainable and program.gradients.get(item.path) is not None
    ]


def _part(value: Value, ways: int) -> Value:
    return Value(value.name, (ceil(value.numel / ways),), value.dtype, value.name)


def _stored(item: Input) -> StoredParameter:
    return StoredParameter(item.path, (), "", REPLICATED, item.value, item.trainable, item.value)


def _needed_again(program: Program) -> set[str]:
    """Parameters that the backward computes with, be it by way of a view."""
    return {
        program.values[name].storage
        for op in program.phase_ops("backward")
        if op.target not in SHAPE_ALONE
        for name in op.operands()
    }


def _saved(analysis: Analysis, weigh: _Weights) -> float:
    """Bytes of the whole tensors that the forward makes and the backward needs.

    By storage; of one that only views of it are needed of, the largest of those.
    """
    program = analysis.program
    values = program.values
    made: dict[str, Op] = {}
    for op in program.phase_ops("forward"):
        for result in op.results:
            if result is not None:
                made.setdefault(values[result].storage, op)
    inputs = {values[item.value].storage for item in program.inputs}
    lists = {name for name, dims in program.ragged.items() if any(dims)}
    needed: dict[str, int] = {}
    for op in program.phase_ops("backward"):
        if op.target in SHAPE_ALONE:
            continue
        for name in op.operands():
            storage = values[name].storage
            if storage in made and storage not in inputs and not {name, storage} & lists:
                owner = values.get(storage, values[name])
                size = min(values[name].nbytes, owner.nbytes)
                needed[storage] = max(needed.get(storage, 0), size)
    return sum(size * weigh(made[storage].source.module) for storage, size in needed.items())
