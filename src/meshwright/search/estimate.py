"""A quick reckoning of a point's step time and memory, before it is lowered and simulated.

Two kinds of figure. `seconds` and `bytes` are guesses that put moves in order: each op's
time divided by the axes that cut it, each gradient's reduction, what a tensor axis leaves
pending. `floor_s` and `floor_bytes` are bounds: whatever lowering makes of the point, it
takes no less, so that a point whose floor is above the best, or above the memory, need
not be simulated. A floor counts only
- what `bound.lower_bound` says of all plans over as many devices as do different things;
- each gradient's reduction over the axes that divide the batch, all gradients of an axis
  as one collective, which no number of smaller ones undercuts;
- parameters, optimizer state and the gradients stepped with, as they are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from meshwright.cost.families import family_of
from meshwright.cost.flops import op_flops
from meshwright.cost.memory import optimizer_cost
from meshwright.cost.table import CostTable
from meshwright.errors import MeshwrightError, StrategyError
from meshwright.layout.assignment import own_ops, resolve
from meshwright.layout.groups import Analysis, Group
from meshwright.plan.types import BUCKET_BYTES, Decision
from meshwright.search import axis_context, axis_edge, axis_expert, axis_spatial
from meshwright.search import tables as lookups
from meshwright.search.bound import (
    Decided,
    MemoryBound,
    TimeBound,
    lower_bound,
    memory_lower_bound,
)
from meshwright.search.sequence_groups import token_groups
from meshwright.search.space import (
    IDLE,
    STAGE,
    STORABLE,
    ClassKey,
    ParameterClass,
    Point,
    Space,
)

__all__ = ["Estimate", "Estimator"]

# Axes that divide examples or what is computed of them: gradients are sums over all of these.
_SUMMED = ("replica", *STORABLE)
_SAFE = 0.98  # of a bound, for rounding and for curves that were measured


@dataclass(frozen=True, slots=True)
class Estimate:
    """seconds, bytes: guesses. floor_s, floor_bytes: nothing laid out so is below them."""

    seconds: float
    bytes: float
    floor_s: float
    floor_bytes: float


@dataclass(frozen=True)
class _Class:
    """What cutting one class of groups does: ops that it cuts, sums that it leaves pending
    (how many, and their bytes in all), parameters that it divides, and what its forward ops use
    whole: bytes by the number of the op that makes it."""

    mask: NDArray[np.bool_]
    count: int
    nbytes: int
    paths: tuple[str, ...]
    wholes: Mapping[int, float]


@dataclass(frozen=True)
class _Held:
    """Bytes of a device: parameters and optimizer state, throughout; parameters that it steps
    (and how many tensors those are); what gradients take beside these while microbatches are
    added up; whole parameters that are gathered for the step."""

    always: float
    stepped: int
    stepped_bytes: float
    gradients: float
    gathered: float


@dataclass(frozen=True)
class _Moves:
    """Seconds of parameters' and gradients' collectives: of gathers once a step, of reductions
    once a step, and of those of each microbatch, all microbatches together."""

    gather: float
    reduce: float
    each: float

    def waited_for(self, compute_s: float, count: int, slowdown: float | None) -> float:
        """What a step is longer for them. slowdown: None where they run in line; otherwise
        gathers run beside the first forward, reductions beside the last backward."""
        whole = self.gather + self.reduce + self.each
        if slowdown is None:
            return whole
        once_s = compute_s / count
        hidden = min(self.gather, once_s / 3) + min(self.reduce, once_s * 2 / 3)
        hidden += min(self.each, max(compute_s - hidden, 0.0))
        return whole - hidden * (1 - slowdown)


@dataclass(frozen=True)
class _Lifetimes:
    """Of each value: the op that makes it, the last that uses it, by number, and its bytes."""

    born: NDArray[np.int_]
    gone: NDArray[np.int_]
    nbytes: NDArray[np.float64]

    def peak(self, share: NDArray[np.float64]) -> float:
        """Most bytes that are there at once, where each op makes a share of its results."""
        if not len(self.born):
            return 0.0
        held = self.nbytes * share[self.born]
        count = len(share) + 1
        comes = np.bincount(self.born, held, count)
        goes = np.bincount(self.gone + 1, held, count)
        return float(np.cumsum(comes - goes).max())


class Estimator:
    """Estimates of points of one space on one cluster.

    weights: how many equal ops an op of the Program stands for, by its module, where the
    Program was shortened.
    """

    def __init__(
        self,
        space: Space,
        costs: CostTable,
        optimizer: str,
        weights: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.space = space
        self.weights = weights
        self.costs = costs
        self.optimizer = optimizer_cost(optimizer)
        self.optimizer_name = optimizer
        accelerators = any(profile.device != "cpu" for profile in costs.profiles)
        # What an accelerator's allocator holds beside what is in use, as a share of it.
        self._unused = costs.constants.memory_fragmentation if accelerators else 0.0
        analysis = space.first
        program = analysis.program
        self.microbatches = space.strategy.microbatches or 1  # that the Program is for
        self.ops = [op for op in program.ops if family_of(op.target) != "view"]
        self.number = {op.name: k for k, op in enumerate(self.ops)}
        weight = np.array(
            [weights.get(_top(op.source.module, weights), 1) for op in self.ops], float
        )
        fixed, variable, host = [], [], []
        for op in self.ops:
            seconds, launches, host_s = self._cost(op.name)
            start = min(seconds, costs.streaming(1, launches)) if launches else 0.0
            fixed.append(start)
            variable.append(seconds - start)
            host.append(host_s)
        self.fixed = np.array(fixed) * weight
        self.variable = np.array(variable) * weight
        self.host_s = float((np.array(host) * weight).sum())
        self.weight_of = {
            item.path: weights.get(_top(item.path, weights), 1)
            for item in program.inputs_of("parameter")
        }
        # By how much compute beside collectives takes longer; None where they are in line.
        self._slowdown = costs.constants.overlap_slowdown if accelerators else None
        self._bounds: dict[int, TimeBound] = {}
        self._memory_bounds: dict[int, MemoryBound] = {}
        self._masks: dict[str, NDArray[np.bool_]] = {}
        self._groups: dict[str, tuple[Group, ...]] = {}
        self._class_facts: dict[tuple[int, ClassKey], _Class | None] = {}
        self._exchanged: dict[str, tuple[Counter[int], Counter[int]]] = {}
        self._makers = {
            name: op.name for op in program.ops for name in op.results if name is not None
        }
        self._weight_of_op = {
            op.name: weights.get(_top(op.source.module, weights), 1) for op in program.ops
        }
        self._seen: dict[Point, Estimate] = {}
        self._lives = self._lifetimes(weight)

    def __call__(self, point: Point) -> Estimate:
        found = self._seen.get(point)
        if found is None:
            found = self._seen[point] = self._estimate(point)
        return found

    @property
    def guesses(self) -> int:
        return len(self._seen)

    def smallest(self, point: Point) -> tuple[float, str]:
        """What is guessed to need the least memory first."""
        return self(point).bytes, self.space.name(point)

    def bound_s(self, devices: int) -> float:
        """Seconds of a step at least, of plans over so many devices that do different things."""
        return self._bound(devices).step_s

    def optimizer_bound_s(self) -> float:
        """What the optimizer takes of a step at least."""
        return self._bound(self.space.devices).optimizer_s

    def _bound(self, devices: int) -> TimeBound:
        found = self._bounds.get(devices)
        if found is None:
            strategy = self.space.strategy
            stages = max(strategy.axes.get(STAGE, 1), 1)
            found = self._bounds[devices] = lower_bound(
                self.space.first, self.costs, devices=devices, microbatches=self.microbatches,
                optimizer=self.optimizer_name, stands_for=self.weights,
                decided=Decided(stages=stages, recompute=strategy.recompute),
            )  # fmt: skip
        return found

    def _least_bytes(self, devices: int) -> MemoryBound:
        """What is held at least, in the Program's microbatches."""
        found = self._memory_bounds.get(devices)
        if found is None:
            found = self._memory_bounds[devices] = memory_lower_bound(
                self.space.first, devices=devices, microbatches=self.microbatches,
                optimizer=self.optimizer_name, stands_for=self.weights,
                decided=Decided(recompute=self.space.strategy.recompute),
            )  # fmt: skip
        return found

    def lower_bound_s(self) -> float:
        """No plan on the cluster is faster."""
        return self.bound_s(self.space.devices)

    # Facts

    def _cost(self, name: str) -> tuple[float, int, float]:
        op = self.space.first.by_name[name]
        try:
            cost = self.costs.op(
                op, self.space.first.operands[name], self.space.first.program.values
            )
        except MeshwrightError:
            return 0.0, 0, 0.0
        return cost.seconds, cost.launches, cost.host_s

    def _lifetimes(self, weight: NDArray[np.float64]) -> _Lifetimes:
        """When each value that an op makes comes and goes, parameters' gradients left out."""
        analysis = self.space.first
        program = analysis.program
        makers: dict[str, int] = {}
        last: dict[str, int] = {}
        reach = 0  # number of the op at or before which views are taken
        for op in program.ops:
            number = self.number.get(op.name)
            if number is None:
                number = reach
            else:
                reach = number
                for name in op.results:
                    if name is not None:
                        makers.setdefault(program.values[name].storage, number)
            for name in (*analysis.operands[op.name], *op.results):
                if name is not None:
                    last[program.values[name].storage] = number
        gradients = {program.values[n].storage for n in program.gradients.values() if n}
        given = {program.values[item.value].storage for item in program.inputs}
        backward = [op.phase == "backward" for op in self.ops]
        born, gone, nbytes = [], [], []
        for storage, number in makers.items():
            if storage in gradients or storage in given or storage not in program.values:
                continue
            end = last[storage]
            # What waits for the backward is there in every block that the op stands for.
            times = weight[number] if backward[end] and not backward[number] else 1.0
            born.append(number)
            gone.append(end)
            nbytes.append(program.values[storage].nbytes * times)
        return _Lifetimes(np.array(born, int), np.array(gone, int), np.array(nbytes, float))

    def groups(self, axis: str) -> tuple[Group, ...]:
        """Groups that an axis other than `tensor` cuts."""
        found = self._groups.get(axis)
        if found is None:
            found = self._groups[axis] = tuple(self._find(axis))
        return found

    def _find(self, axis: str) -> Iterable[Group]:
        analysis = self.space.first
        if axis in ("data", "replica"):
            leaves = [
                (item, analysis.program.values[item.value].shape[0])
                for item in analysis.program.inputs_of("batch")
                if analysis.program.values[item.value].shape
            ]
            for item, size in leaves:
                if size > 1 and size == leaves[0][1]:  # as the batch is cut by name
                    decision = Decision(axis=axis, value=item.path, dim=0)
                    yield analysis.group(*resolve(analysis, decision))
            return
        if axis == "sequence":
            yield from (item.group for item in token_groups(analysis))
            return
        decide = {
            "context": axis_context, "spatial": axis_spatial, "edge": axis_edge,
            "expert": axis_expert,
        }[axis]  # fmt: skip
        try:
            decisions = decide.decisions(analysis, 2)
        except StrategyError:
            return
        for decision in decisions:
            value, split = resolve(analysis, decision)
            group = analysis.group(value, split)
            yield _alone(analysis, group, value) if decision.alone else group

    def _mask(self, axis: str) -> NDArray[np.bool_]:
        found = self._masks.get(axis)
        if found is None:
            found = self._masks[axis] = self._of(self.groups(axis))
        return found

    def _of(self, groups: Iterable[Group]) -> NDArray[np.bool_]:
        mask = np.zeros(len(self.ops), bool)
        for group in groups:
            for name in group.cuts:
                number = self.number.get(name)
                if number is not None:
                    mask[number] = True
        return mask

    # One point

    def _estimate(self, point: Point) -> Estimate:
        sizes = {axis: size for axis, size in point.mesh if size > 1}
        count = point.microbatches
        scale = self.microbatches / count  # of what the Program holds
        share = np.ones(len(self.ops))
        for axis in _SUMMED:
            if axis in sizes:
                share[self._mask(axis)] /= sizes[axis]
        tensor_s = 0.0
        tensor_cuts: dict[str, int] = {}
        if "tensor" in sizes:
            tensor_s, tensor_cuts = self._tensor(point, share, sizes)
        tables_s = self._tables(point, share, sizes) if point.beside else 0.0
        before = share.copy()
        if point.sequence and sizes.get("tensor", 1) > 1:
            batch = prod(sizes.get(axis, 1) for axis in _SUMMED)
            share[self._mask("sequence") & (share >= 0.99 / batch)] /= sizes["tensor"]
        active = prod(size for axis, size in sizes.items() if axis != IDLE)
        compute_s = max(
            count * float((self.fixed + self.variable * share * scale).sum()),
            count * self.host_s,
        )
        moves, floor_reduce_s = self._gradients(point, sizes, tensor_cuts)
        reduce_s = moves.waited_for(compute_s, count, self._slowdown)
        others_s = sum(
            self._exchange(axis, sizes, count, scale, point)
            for axis in ("context", "spatial", "edge", "expert")
            if axis in sizes
        )
        held = self._memory(point, sizes, tensor_cuts)
        moved = self.optimizer.passes * held.stepped_bytes
        optimizer_s = self.costs.streaming(moved, self.optimizer.ops) if held.stepped else 0.0
        if sizes.get(STAGE, 1) > 1 or self.space.constraints:
            # How stages divide the model is not known here, nor what constraints change.
            floor_reduce_s = 0.0
        return Estimate(
            max(
                compute_s + (tensor_s + tables_s) * count + reduce_s + others_s + optimizer_s,
                self.bound_s(active),
            ),
            self._bytes(
                held,
                scale
                * (
                    self._lives.peak(share)
                    + self._gathered_keys(point, sizes)
                    + self._regathered(point, share, before)
                ),
                count,
            ),
            max(self.bound_s(active), _SAFE * floor_reduce_s),
            _SAFE * self._floor_bytes(held, sizes, scale),
        )

    def _regathered(
        self, point: Point, share: NDArray[np.float64], before: NDArray[np.float64]
    ) -> float:
        """Values cut along the sequence that products over `tensor` use whole, and keep so.

        before: shares without the sequence cut.
        """
        if not point.sequence:
            return 0.0
        found: dict[int, float] = {}
        for key in self.space.cut(point):
            facts = self._class(point.sizes.get("tensor", 1), key)
            if facts is not None:
                found.update(facts.wholes)
        return float(sum(nbytes * (before[op] - share[op]) for op, nbytes in found.items()))

    def _gathered_keys(self, point: Point, sizes: Mapping[str, int]) -> float:
        """Keys and values that attention over a cut sequence keeps whole."""
        parts = sizes.get("context", 1)
        if parts == 1 or point.attention is not None:
            return 0.0
        others = prod(size for axis, size in sizes.items() if axis in ("data", "replica"))
        values = self._moved("context")[1].items()
        nbytes = (
            sum(each * count for each, count in values) / 2
        )  # the backward's are those of the forward
        return nbytes * (1 - 1 / parts) / others

    def _bytes(self, held: _Held, activations: float, count: int) -> float:
        """At the end of a forward, or when the optimizer steps."""
        added = held.stepped_bytes + held.gradients if count > 1 else 0.0
        scratch = self.optimizer.scratch if self._unused else 0.0
        return held.always + (1 + self._unused) * max(
            held.gathered + activations + added, held.stepped_bytes * (1 + scratch)
        )

    def _floor_bytes(self, held: _Held, sizes: Mapping[str, int], scale: float) -> float:
        """As `_bytes`, of what is certain."""
        general = self._least_bytes(prod(sizes.values()))
        always, gradients = float(general.persistent), float(general.gradients)
        unknown = any(axis in sizes for axis in (STAGE, "spatial", "edge", "context"))
        if not unknown and not self.space.constraints:
            # No axis cuts parameters otherwise than is reckoned with.
            always = max(always, held.always)
            gradients = max(gradients, held.stepped_bytes)
        return always + (1 + self._unused) * max(general.saved * scale, gradients)

    def _tensor(
        self, point: Point, share: NDArray[np.float64], sizes: Mapping[str, int]
    ) -> tuple[float, dict[str, int]]:
        """Seconds of one microbatch's collectives over `tensor`; divides `share` too.

        Also by how much each parameter is divided.
        """
        parts = sizes["tensor"]
        scale = self.microbatches / point.microbatches
        batch = prod(sizes.get(axis, 1) for axis in _SUMMED)
        stride = _stride(point, "tensor")
        seconds = 0.0
        cuts: dict[str, int] = {}
        for key in self.space.cut(point):
            facts = self._class(parts, key)
            if facts is None:
                continue
            share[facts.mask] /= parts
            cuts.update(dict.fromkeys(facts.paths, parts))
            if facts.count:
                mean = facts.nbytes / facts.count * scale / batch
                seconds += facts.count * self._collective("all_reduce", parts, stride, mean)
        return seconds, cuts

    def _tables(self, point: Point, share: NDArray[np.float64], sizes: Mapping[str, int]) -> float:
        """Seconds in which one microbatch's lookups are exchanged; sets their ops' `share`."""
        known = lookups.tables(self.space.first)
        scale = self.microbatches / point.microbatches
        batch = prod(sizes.get(axis, 1) for axis in _SUMMED)
        seconds = 0.0
        narrower: dict[str, int] = {}
        for axis, key in sorted(point.beside, key=lambda item: lookups.AXES.index(item[0])):
            if axis not in sizes:
                continue
            path, dim = key[:2]
            parts, stride = sizes[axis], _stride(point, axis)
            for item in self.space.table_classes[path].items:
                table = known[item.path]
                taken = table.taken * scale * parts / batch / narrower.get(item.path, 1)
                if dim in table.columns:
                    narrower[item.path] = narrower.get(item.path, 1) * parts
                    seconds += 2 * self._collective("all_to_all", parts, stride, taken / parts)
                    continue
                for kind in ("reduce_scatter", "all_gather"):
                    seconds += self._collective(kind, parts, stride, taken)
                for name in table.forward:  # every device looks up for all examples
                    share[self.number[name]] *= parts
        return seconds

    def _class(self, parts: int, key: ClassKey) -> _Class | None:
        if (parts, key) in self._class_facts:
            return self._class_facts[parts, key]
        item = self.space.classes(parts).get(key)
        found = None
        if item is not None:
            program = self.space.first.program
            gradients = {name for name in program.gradients.values() if name}
            count = nbytes = 0
            for group in item.groups:
                for name in group.pending:
                    if name not in gradients:
                        weight = self._weight(name)
                        count += weight
                        nbytes += program.values[name].nbytes * weight
            paths = tuple(
                parameter.path
                for parameter in program.inputs_of("parameter")
                if any(parameter.value in group.members for group in item.groups)
            )
            found = _Class(self._of(item.groups), count, nbytes, paths, self._wholes(item.groups))
        self._class_facts[parts, key] = found
        return found

    def _wholes(self, groups: Iterable[Group]) -> dict[int, float]:
        analysis = self.space.first
        values = analysis.program.values
        found: dict[int, float] = {}
        for group in groups:
            for name in group.cuts:
                if analysis.by_name[name].phase != "forward":
                    continue
                for used in analysis.operands[name]:
                    maker = self._makers.get(values[used].storage)
                    if used in group.members or maker not in self.number:
                        continue
                    found[self.number[maker]] = values[used].nbytes * self._weight_of_op[maker]
        return found

    def _weight(self, value: str) -> int:
        """How many values one of the Program stands for."""
        op = self._makers.get(value)
        return self._weight_of_op[op] if op is not None else 1

    def _gradients(
        self, point: Point, sizes: Mapping[str, int], cuts: Mapping[str, int]
    ) -> tuple[_Moves, float]:
        """Gradients' reductions and gathers of parameters, and the least they take."""
        axes = [axis for axis in _SUMMED if axis in sizes]
        seconds = dict.fromkeys(("gather", "reduce", "each"), 0.0)
        floors = [0.0]  # of each axis: its collectives run one after another
        for axis in axes:
            least = 0.0
            stride, parts = _stride(point, axis), sizes[axis]
            volumes: dict[tuple[str, int], list[float]] = {}
            tensors: dict[tuple[str, int], int] = {}
            for item in self.space.parameters:
                if not item.trainable:
                    continue
                own = self._own(point, item)
                if axis in own:
                    continue  # each device makes the gradient of its part
                nbytes = item.nbytes / max(cuts.get(item.items[0].path, 1), 1)
                nbytes /= prod(sizes.get(over, 1) for over in own)
                number = sum(self.weight_of.get(one.path, 1) for one in item.items)
                stage = point.residency(item.number)
                held = [other for other in axes if other in point.stored and other not in own]
                if not stage or not held:
                    kinds = [("all_reduce", 1)]
                elif axis not in held:
                    kinds = [("all_reduce", 1)]
                    nbytes /= prod(sizes[other] for other in held)
                else:
                    inner = held[: held.index(axis)]
                    nbytes /= prod(sizes[other] for other in inner)
                    again = point.microbatches
                    kinds = {
                        1: [("reduce_scatter", 1), ("all_gather", 1)],
                        2: [("reduce_scatter", again), ("all_gather", again)],
                        3: [("reduce_scatter", again), ("all_gather", 2 * again)],
                    }[stage]
                for kind, times in kinds:
                    volumes.setdefault((kind, times), []).append(nbytes * number)
                    tensors[kind, times] = tensors.get((kind, times), 0) + number
            for (kind, times), found in sorted(volumes.items()):
                volume = sum(found)
                # A bucket has at least one whole tensor.
                merged = max(1, min(tensors[kind, times], ceil(volume / BUCKET_BYTES)))
                once = "gather" if kind == "all_gather" else "reduce"
                part = once if times == 1 and point.microbatches > 1 else "each"
                seconds[part] += (
                    times * merged * self._collective(kind, parts, stride, volume / merged)
                )
                least += times * self._collective(kind, parts, stride, volume)
            floors.append(least)
        # Only axes that certainly divide what each gradient is a sum over count for the bound.
        certain = all(axis in ("data", "replica") for axis in axes) and not point.beside
        least = sum(floors) if self._slowdown is None else max(floors)
        return _Moves(**seconds), least if certain else 0.0

    def _own(self, point: Point, item: ParameterClass) -> set[str]:
        """Axes that cut a parameter as it is computed with, beside `tensor`: nothing of it is
        reduced over these or stored over them once more."""
        first = item.items[0]
        own = {axis for axis, key in point.beside if key[0] == first.path}
        return own | {"expert"} if first.value in self._experts else own

    @cached_property
    def _experts(self) -> frozenset[str]:
        """Values that the axis `expert` cuts."""
        return frozenset(name for group in self.groups("expert") for name in group.members)

    def _exchange(
        self, axis: str, sizes: Mapping[str, int], count: int, scale: float, point: Point
    ) -> float:
        """What an axis that cuts more than the batch moves, for all microbatches."""
        parts, stride = sizes[axis], _stride(point, axis)
        others = prod(sizes.get(other, 1) for other in ("data", "replica"))
        pending, ends = self._moved(axis)
        kind = "all_to_all" if axis == "expert" else "all_gather"
        seconds = 0.0
        for nbytes, times in pending.items():
            if nbytes > 4096:
                each_s = self._collective("all_reduce", parts, stride, nbytes * scale / others)
                seconds += times * each_s
        for nbytes, times in ends.items():
            share = parts if axis == "expert" else 1
            each_s = self._collective(kind, parts, stride, nbytes * scale / others / share)
            seconds += times * each_s
        return seconds * count

    @cached_property
    def _to_gradients(self) -> frozenset[str]:
        """Parameters' gradients, and what views, copies and casts make them of."""
        analysis = self.space.first
        found: set[str] = set()
        stack = [name for name in analysis.program.gradients.values() if name]
        while stack:
            name = stack.pop()
            found.add(name)
            made = analysis.made_by.get(name)
            if made is not None and len(analysis.operands[made.name]) == 1:
                before = analysis.operands[made.name][0]
                if analysis.program.values[before].numel == analysis.program.values[name].numel:
                    stack.append(before)
        return frozenset(found)

    def _moved(self, axis: str) -> tuple[Counter[int], Counter[int]]:
        """Bytes of each sum that an axis leaves pending, and of each value that it gathers.

        With how often there is one of so many.
        """
        found = self._exchanged.get(axis)
        if found is not None:
            return found
        analysis = self.space.first
        values = analysis.program.values
        gradients = self._to_gradients
        # Parameters are not exchanged: those that an axis cuts stay where they are.
        stay = {values[item.value].storage for item in analysis.program.inputs_of("parameter")}
        pending: Counter[int] = Counter()
        ends: Counter[int] = Counter()
        alone = [
            group for group in self.groups(axis) if group.ends and group.ends == (*group.cuts,)
        ]
        for group in self.groups(axis):
            if axis == "context":
                for name in group.cuts:
                    if family_of(analysis.by_name[name].target) == "attention":
                        weight = self._weight_of_op[name]
                        for used in analysis.operands[name][1:3]:
                            ends[values[used].nbytes] += weight
                continue
            for name in group.pending:
                if name not in gradients:
                    pending[values[name].nbytes] += self._weight(name)
            for name in group.ends if group not in alone else ():
                for used in dict.fromkeys(analysis.operands[name]):
                    if used in group.members and values[used].storage not in stay:
                        ends[values[used].nbytes] += self._weight_of_op[name]
        for name in axis_expert.travelling(analysis, alone):
            ends[values[name].nbytes] += self._weight(name)
        self._exchanged[axis] = pending, ends
        return pending, ends

    def _memory(self, point: Point, sizes: Mapping[str, int], cuts: Mapping[str, int]) -> _Held:
        always = stepped_bytes = gradients = gathered = 0.0
        stepped = 0
        gradients_of = self.space.first.program.gradients
        for item in self.space.parameters:
            own = self._own(point, item)
            held = prod(s for axis, s in sizes.items() if axis in point.stored and axis not in own)
            number = sum(self.weight_of.get(one.path, 1) for one in item.items)
            computed = item.nbytes * number / max(cuts.get(item.items[0].path, 1), 1)
            computed /= prod(sizes.get(axis, 1) for axis in own)
            stage = point.residency(item.number)
            if not item.trainable and stage < 3:
                stage = 0
            mine = computed / held if stage else computed
            always += mine
            if not item.trainable or gradients_of.get(item.items[0].path) is None:
                continue
            always += mine * self.optimizer.states
            stepped += number
            stepped_bytes += mine
            if stage == 1:
                gradients += computed - mine
            if stage in (1, 2) and held > 1:
                gathered += computed
        return _Held(always, stepped, stepped_bytes, gradients, gathered)

    def _collective(self, kind: str, parts: int, stride: int, nbytes: float) -> float:
        return self.costs.collective(kind, parts, stride, max(1, ceil(nbytes)))


def _alone(analysis: Analysis, group: Group, value: str) -> Group:
    """A group of which `value` alone is cut: the matrix work that uses it, to which tokens go."""
    cuts = {
        name: cut
        for name, cut in own_ops(analysis, group, value, analysis.gradient_of.get(value)).items()
        if op_flops(analysis.by_name[name], analysis.program.values)
    }
    moved = {
        name: split for name, split in group.members.items()
        if name == value or any(name in analysis.operands[op] for op in cuts)
    }  # fmt: skip
    return Group(group.seed, moved, cuts, (), tuple(cuts))


def _stride(point: Point, axis: str) -> int:
    stride = 1
    for name, size in reversed(point.mesh):
        if name == axis:
            return stride
        stride *= size
    raise KeyError(axis)


def _top(module: str, weights: Mapping[str, int]) -> str:
    """The module of `weights` that `module` lies in."""
    for name in weights:
        if module == name or module.startswith(f"{name}."):
            return name
    return module
