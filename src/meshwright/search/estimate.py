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

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from meshwright.cost.memory import optimizer_cost
from meshwright.cost.table import CostTable
from meshwright.plan.types import BUCKET_BYTES
from meshwright.search import tables as lookups
from meshwright.search.bound import (
    Decided,
    MemoryBound,
    TimeBound,
    lower_bound,
    memory_lower_bound,
)
from meshwright.search.facts import Facts
from meshwright.search.space import (
    IDLE,
    STAGE,
    STORABLE,
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
class _Held:
    """Bytes of a device: parameters and optimizer state, throughout; parameters that it steps
    (and how many tensors those are); what gradients take beside these while microbatches are
    added up; whole parameters that are gathered for the step."""

    always: float
    stepped: int
    stepped_bytes: float
    gradients: float
    gathered: float


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A class of parameters by its number, with what a guess asks of it.

    path: of the first. nbytes: of one. count: how many there are in the whole model. stepped:
    the optimizer steps them. own: axes that cut them as they are computed with, at every point.
    """

    number: int
    path: str
    nbytes: int
    count: int
    trainable: bool
    stepped: bool
    own: frozenset[str]


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


class Estimator(Facts):
    """Estimates of points of one space on one cluster."""

    def __init__(
        self,
        space: Space,
        costs: CostTable,
        optimizer: str,
        weights: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__(space, costs, weights)
        self.optimizer = optimizer_cost(optimizer)
        self.optimizer_name = optimizer
        accelerators = any(profile.device != "cpu" for profile in costs.profiles)
        # What an accelerator's allocator holds beside what is in use, as a share of it.
        self._unused = costs.constants.memory_fragmentation if accelerators else 0.0
        # By how much compute beside collectives takes longer; None where they are in line.
        self._slowdown = costs.constants.overlap_slowdown if accelerators else None
        self._bounds: dict[int, TimeBound] = {}
        self._memory_bounds: dict[int, MemoryBound] = {}
        self._seen: dict[Point, Estimate] = {}

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

    # One point

    def _estimate(self, point: Point) -> Estimate:
        sizes = {axis: size for axis, size in point.mesh if size > 1}
        count = point.microbatches
        scale = self.microbatches / count  # of what the Program holds
        share = np.ones(len(self.ops))
        for axis in _SUMMED:
            if axis in sizes:
                share[self.mask(axis)] /= sizes[axis]
        tensor_s = 0.0
        tensor_cuts: dict[str, int] = {}
        if "tensor" in sizes:
            tensor_s, tensor_cuts = self._tensor(point, share, sizes)
        tables_s = self._tables(point, share, sizes) if point.beside else 0.0
        before = share.copy()
        if point.sequence and sizes.get("tensor", 1) > 1:
            batch = prod(sizes.get(axis, 1) for axis in _SUMMED)
            share[self.mask("sequence") & (share >= 0.99 / batch)] /= sizes["tensor"]
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
                    self.lives.peak(share)
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
            facts = self.class_of(point.sizes.get("tensor", 1), key)
            if facts is not None:
                found.update(facts.wholes)
        return float(sum(nbytes * (before[op] - share[op]) for op, nbytes in found.items()))

    def _gathered_keys(self, point: Point, sizes: Mapping[str, int]) -> float:
        """Keys and values that attention over a cut sequence keeps whole."""
        parts = sizes.get("context", 1)
        if parts == 1 or point.attention is not None:
            return 0.0
        others = prod(size for axis, size in sizes.items() if axis in ("data", "replica"))
        values = self.moved("context")[1].items()
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
            facts = self.class_of(parts, key)
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

    def _gradients(
        self, point: Point, sizes: Mapping[str, int], cuts: Mapping[str, int]
    ) -> tuple[_Moves, float]:
        """Gradients' reductions and gathers of parameters, and the least they take."""
        axes = [axis for axis in _SUMMED if axis in sizes]
        seconds = dict.fromkeys(("gather", "reduce", "each"), 0.0)
        floors = [0.0]  # of each axis: its collectives run one after another
        stored = [axis for axis in axes if axis in point.stored]
        for axis in axes:
            least = 0.0
            stride, parts = _stride(point, axis), sizes[axis]
            volumes: dict[tuple[str, int], list[float]] = {}
            tensors: dict[tuple[str, int], int] = {}
            for item in self._weighed:
                if not item.trainable:
                    continue
                own = self._own(point, item)
                if axis in own:
                    continue  # each device makes the gradient of its part
                nbytes = item.nbytes / max(cuts.get(item.path, 1), 1)
                for over in own:
                    nbytes /= sizes.get(over, 1)
                number = item.count
                stage = point.residency(item.number)
                held = [other for other in stored if other not in own]
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

    def _own(self, point: Point, item: _Weighed) -> frozenset[str]:
        """Axes that cut a parameter as it is computed with, beside `tensor`: nothing of it is
        reduced over these or stored over them once more."""
        if not point.beside:
            return item.own
        return item.own.union(axis for axis, key in point.beside if key[0] == item.path)

    @cached_property
    def _weighed(self) -> tuple[_Weighed, ...]:
        gradients_of = self.space.first.program.gradients
        return tuple(
            _Weighed(
                item.number,
                item.items[0].path,
                item.nbytes,
                sum(self.weight_of.get(one.path, 1) for one in item.items),
                item.trainable,
                item.trainable and gradients_of.get(item.items[0].path) is not None,
                frozenset({"expert"} if item.items[0].value in self.experts else ()),
            )
            for item in self.space.parameters
        )

    def _exchange(
        self, axis: str, sizes: Mapping[str, int], count: int, scale: float, point: Point
    ) -> float:
        """What an axis that cuts more than the batch moves, for all microbatches."""
        parts, stride = sizes[axis], _stride(point, axis)
        others = prod(sizes.get(other, 1) for other in ("data", "replica"))
        pending, ends = self.moved(axis)
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

    def _memory(self, point: Point, sizes: Mapping[str, int], cuts: Mapping[str, int]) -> _Held:
        always = stepped_bytes = gradients = gathered = 0.0
        stepped = 0
        stored = [axis for axis in sizes if axis in point.stored]
        for item in self._weighed:
            own = self._own(point, item)
            held = prod(sizes[axis] for axis in stored if axis not in own)
            computed = item.nbytes * item.count / max(cuts.get(item.path, 1), 1)
            for axis in own:
                computed /= sizes.get(axis, 1)
            stage = point.residency(item.number)
            if not item.trainable and stage < 3:
                stage = 0
            mine = computed / held if stage else computed
            always += mine
            if not item.stepped:
                continue
            always += mine * self.optimizer.states
            stepped += item.count
            stepped_bytes += mine
            if stage == 1:
                gradients += computed - mine
            if stage in (1, 2) and held > 1:
                gathered += computed
        return _Held(always, stepped, stepped_bytes, gradients, gathered)

    def _collective(self, kind: str, parts: int, stride: int, nbytes: float) -> float:
        return self.costs.collective(kind, parts, stride, max(1, ceil(nbytes)))


def _stride(point: Point, axis: str) -> int:
    stride = 1
    for name, size in reversed(point.mesh):
        if name == axis:
            return stride
        stride *= size
    raise KeyError(axis)
