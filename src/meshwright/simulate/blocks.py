"""What each segment of a lowered program costs: tasks, memory, what it hands on.

Costed once and kept with the lowered program, so that another cut, schedule or
number of microbatches is simulated from a few figures for each segment.

The walk through a segment is the one of `section.py`: a storage is allocated by the
op that makes it and freed after the last use of any of its views. Figures are
relative to the memory held when the segment starts, hence add up over segments.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from meshwright.cost.families import Family, family_of
from meshwright.cost.fusion import Fused, fuse
from meshwright.cost.scratch import needs_scratch, scratch_bytes
from meshwright.cost.table import CostTable
from meshwright.layout.ahead import is_later
from meshwright.layout.halo import sent_bytes
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.merge import ARRIVE, tensors_of
from meshwright.program.types import ITEM_BYTES, Op
from meshwright.simulate.attention_core import attention_cores
from meshwright.simulate.beside import hidden_seconds
from meshwright.simulate.block import Allocation, Block, Footprint, Task, Work
from meshwright.simulate.section import ACTIVATIONS, GATHERED, GRADIENTS
from meshwright.simulate.segments import GATHERING, REDUCTION, Segments, segments
from meshwright.simulate.traffic import Traffic, traffic

_COUNT_RESULTS = frozenset({"all_gather", "broadcast"})
_CARRIES_PARAMETER = frozenset({"view", "copy", "collective"})
_KEPT = 8
_STRUCTURES_KEPT = 64


@dataclass(frozen=True)
class Costed:
    """`clip`: tasks of the global norm, and whether each reads the gradients."""

    lowered: LoweredProgram
    costs: CostTable
    segments: Segments
    blocks: tuple[Block, ...]
    traffic: Traffic
    clip: tuple[tuple[Task, bool], ...]


_kept: OrderedDict[tuple[object, ...], tuple[weakref.ref[LoweredProgram], Costed]] = OrderedDict()
_structures: OrderedDict[
    tuple[object, ...], tuple[weakref.ref[LoweredProgram], Segments, Traffic]
] = OrderedDict()


def _structure(lowered: LoweredProgram, starts: frozenset[str]) -> tuple[Segments, Traffic]:
    """What does not depend on costs; kept for those that are simulated with several."""
    key = (id(lowered), starts)
    found = _structures.get(key)
    if found is None or found[0]() is not lowered:
        parts = segments(lowered, starts)
        found = _structures[key] = (weakref.ref(lowered), parts, traffic(lowered, parts))
    _structures.move_to_end(key)
    while len(_structures) > _STRUCTURES_KEPT:
        _structures.popitem(last=False)
    return found[1], found[2]


def costed(
    lowered: LoweredProgram,
    costs: CostTable,
    starts: frozenset[str] = frozenset(),
    compiled: bool = False,
) -> Costed:
    """The blocks of a lowered program on a cluster; the few asked for last are kept.

    starts: modules to start a block at, beside those found. compiled: pointwise ops of
    a block run as fused kernels.
    """
    key = (id(lowered), id(costs), starts, compiled)
    found = _kept.get(key)
    if found is None or found[0]() is not lowered or found[1].costs is not costs:
        made = _Costing(lowered, costs, *_structure(lowered, starts), compiled).run()
        found = _kept[key] = (weakref.ref(lowered), made)
    _kept.move_to_end(key)
    while len(_kept) > _KEPT:
        _kept.popitem(last=False)
    return found[1]


class _Costing:
    def __init__(
        self,
        lowered: LoweredProgram,
        costs: CostTable,
        parts: Segments,
        passed: Traffic,
        compiled: bool,
    ) -> None:
        self.lowered, self.costs, self.parts = lowered, costs, parts
        self.operands = parts.operands
        self.op_s: dict[str, float] = {}
        self.keys, self.after = self._keyed()
        self.kernels = self._fuse() if compiled else {}
        self.values = lowered.values
        self.blocks = [
            Block(name, repeated)
            for name, repeated in zip(parts.names, parts.repeated, strict=True)
        ]
        self.traffic = passed
        self.stored = {self.values[item.value].storage for item in lowered.parameters}

    def run(self) -> Costed:
        lowered, values = self.lowered, self.values
        saved = self._storages(lowered.saved)
        keep = self._storages(lowered.forward.outputs) | saved
        self._walk(self.parts.forward, keep, forward=True)
        accumulated = self._storages(lowered.accumulated.values())
        self._walk(
            self.parts.backward,
            self._storages(lowered.backward.outputs) | accumulated,
            forward=False,
        )
        for number, block in enumerate(self.blocks):
            kept: list[int] = [0, 0, 0]
            for item in self.traffic.private[number]:
                kept[GATHERED if item.derived else ACTIVATIONS] += item.nbytes
            block.saved = (kept[0], kept[1], kept[2])
            block.hidden_s = self._hidden(number)
            core, inner = attention_cores(self.parts.forward[number])
            for op in core:
                self._add(block.core, op)
            dropped = {values[name].storage for name in inner}
            block.regathered = self._regathered(number, dropped)
            block.core_saved = sum(
                item.nbytes for item in self.traffic.private[number] if item.storage in dropped
            )
        self._once_a_step()
        clip = []
        for op in lowered.clip.ops:
            alone = Work()
            self._add(alone, op)
            clip.append((alone.tasks[0], op.target == "mesh.sum_of_squares"))
        return Costed(
            lowered, self.costs, self.parts, tuple(self.blocks), self.traffic, tuple(clip)
        )

    def _walk(
        self,
        groups: Sequence[Sequence[Op]],
        keep: Collection[str],
        *,
        forward: bool,
    ) -> None:
        """Run each segment's ops; the forward's from first to last, the backward's reversed."""
        values = self.values
        order = range(len(groups)) if forward else range(len(groups) - 1, -1, -1)
        last: dict[str, str] = {}
        for number in order:
            for op in groups[number]:
                for name in (*self.operands[op.name], *(r for r in op.results if r is not None)):
                    last[values[name].storage] = op.name
        kinds: dict[str, int] = {}
        held: dict[str, int] = {}
        for name in () if forward else self.lowered.saved:
            storage = values[name].storage
            held[storage] = values.get(storage, values[name]).nbytes
            kinds[storage] = GATHERED if storage in self.traffic.derived else ACTIVATIONS
        gradients = self._storages(self.lowered.accumulated.values())
        derived = self.stored | self.traffic.derived
        section = self.lowered.forward if forward else self.lowered.backward
        known = {values[name].storage for name in section.inputs} | held.keys()
        for number in order:
            block = self.blocks[number]
            live, peak = [0, 0, 0], 0
            memory = Footprint()
            for op in groups[number]:
                names = self.operands[op.name]
                work = block.forward
                if not forward:
                    leads = op.name in self.traffic.to_weights
                    work = block.weights if leads else block.inputs
                family = self._add(work, op)
                carries = (
                    family in _CARRIES_PARAMETER
                    and (len(names) == 1 or tensors_of(op) == len(names))
                    and all(values[name].storage in derived for name in names)
                )
                for result in op.results:
                    if result is None or values[result].storage in known:
                        continue
                    storage = values[result].storage
                    known.add(storage)
                    nbytes = values.get(storage, values[result]).nbytes
                    kind = ACTIVATIONS
                    if not forward and storage in gradients:
                        kind = GRADIENTS
                    elif carries:
                        kind = GATHERED
                        derived.add(storage)
                        if family == "collective" and forward:
                            block.gathered_bytes += nbytes
                    held[storage], kinds[storage] = nbytes, kind
                    live[kind] += nbytes
                scratch = self._scratch(op)
                if is_later(op):  # works with memory of its own stream's
                    block.beside_bytes, scratch = max(block.beside_bytes, scratch), 0
                if (total := sum(live) + scratch) > peak:
                    peak = total
                    memory.peak = (live[0] + scratch, live[1], live[2])
                    memory.peak_op = op
                for name in (*names, *(r for r in op.results if r is not None)):
                    storage = values[name].storage
                    if last[storage] == op.name and storage not in keep and storage in held:
                        live[kinds[storage]] -= held.pop(storage)
            memory.net = (live[0], live[1], live[2])
            if forward:
                block.forward_memory = memory
            else:
                block.backward_memory = memory

    def _keyed(self) -> tuple[dict[str, str], dict[str, str]]:
        """By op, the keys of gathers that are asked for ahead and of the waits for them, and the
        keys of those that others gather further."""
        keys: dict[str, str] = {}
        after: dict[str, str] = {}
        for groups in (self.parts.forward, self.parts.backward):
            maker = {
                name: op for group in groups for op in group if is_later(op)
                for name in op.results
            }  # fmt: skip
            for group in groups:
                count = 0
                for op in group:
                    found = maker.get(self.operands[op.name][0]) if op.target == ARRIVE else None
                    if found is None:
                        continue
                    key = keys[op.name] = keys.setdefault(found.name, str(count))
                    count += 1
                    while (source := maker.get(self.operands[found.name][0])) is not None:
                        key = after[found.name] = keys.setdefault(source.name, f"before {key}")
                        found = source
        return keys, after

    def _fuse(self) -> dict[str, Fused]:
        """Each op's part of a fused kernel, block by block."""
        groups = (*self.parts.forward, *self.parts.backward)
        users: dict[str, set[int]] = {}
        for number, group in enumerate(groups):
            for op in group:
                for name in self.operands[op.name]:
                    users.setdefault(name, set()).add(number)
        ends = {*self.lowered.forward.outputs, *self.lowered.backward.outputs}
        found: dict[str, Fused] = {}
        for number, group in enumerate(groups):
            made = (name for op in group for name in op.results if name is not None)
            outlives = {n for n in made if n in ends or users.get(n, set()) - {number}}
            for op, kernel in zip(group, fuse(group, self.lowered.values, outlives), strict=True):
                if kernel is not None:
                    found[op.name] = kernel
        return found

    def _hidden(self, number: int) -> float:
        apart = (GATHERING, REDUCTION)
        ops = [op for op in self.parts.backward[number] if op.source.module not in apart]
        collectives = {op.name for op in ops if family_of(op.target) == "collective"}
        if not collectives:
            return 0.0
        leads = self.traffic.to_weights
        return hidden_seconds(ops, self.operands, self.op_s, collectives, leads)

    def _regathered(self, number: int, apart: Collection[str]) -> int:
        """Bytes of what the backward keeps of gathered activations beside a device's own part."""
        gathered: dict[str, int] = {}
        for op in self.parts.forward[number]:
            if op.target == "mesh.all_gather" and op.source.module != GATHERING:
                extent = self.lowered.mesh.extent(str(dict(op.kwargs)["axis"]))
                for name in op.results:
                    if name is not None:
                        gathered[self.values[name].storage] = extent
        return sum(
            item.nbytes - item.nbytes // gathered[item.storage]
            for item in self.traffic.private[number]
            if item.storage in gathered and item.storage not in apart and not item.derived
        )

    def _once_a_step(self) -> None:
        """Gathers and reductions of once a step, with the block of their parameter."""
        lowered, values = self.lowered, self.values
        users = self.traffic.users
        for index, parameter in enumerate(lowered.parameters):
            for number in users.get(parameter.value, (0,)):
                self.blocks[number].parameters.append(index)
        for buffer in lowered.buffers:
            number = min(users.get(buffer.value, (0,)))
            self.blocks[number].buffer_bytes += values[buffer.value].nbytes
        for number, group in enumerate(self.parts.forward):
            used = {name for op in group for name in self.operands[op.name]}
            self.blocks[number].batch.update(used & set(lowered.batch.values()))
        where = {item.value: min(users.get(item.value, (0,))) for item in lowered.parameters}
        outputs = self._storages(lowered.gather.outputs)
        counted: set[str] = set()
        for op in lowered.gather.ops:
            number = min(
                (where[name] for name in self.operands[op.name] if name in where), default=0
            )
            where.update((name, number) for name in op.results if name is not None)
            self._add(self.blocks[number].gather, op, role="gather")
            if is_later(op):
                block = self.blocks[number]
                block.beside_bytes = max(block.beside_bytes, self._scratch(op))
            for storage in self._storages(name for name in op.results if name is not None):
                if storage in outputs and storage not in counted:
                    counted.add(storage)
                    self.blocks[number].gather_bytes += values[storage].nbytes
        for name in dict.fromkeys(lowered.accumulated.values()):
            number = self.parts.segment_of.get(name, 0)
            storage = values[name].storage
            size = values.get(storage, values[name])
            self.blocks[number].accumulated[storage] = size.nbytes, ITEM_BYTES[size.dtype]
        segment = dict(self.parts.segment_of)
        last: dict[str, str] = {}
        for op in lowered.reduce.ops:
            for name in self.operands[op.name]:
                last[values[name].storage] = op.name
        keep = self._storages(lowered.reduce.outputs)
        known = self._storages(lowered.reduce.inputs)
        for op in lowered.reduce.ops:
            number = min(
                (segment[name] for name in self.operands[op.name] if name in segment), default=0
            )
            segment.update((name, number) for name in op.results if name is not None)
            self._add(self.blocks[number].reduce, op, role="reduce")
            results = {values[r].storage for r in op.results if r is not None}
            made = sum(values[storage].nbytes for storage in results - known)
            known |= results
            freed = sum(
                values[storage].nbytes
                for storage in self._storages(self.operands[op.name])
                if last[storage] == op.name and storage not in keep
            )
            task = self.blocks[number].reduce.tasks[-1]
            self.blocks[number].reduce_allocates.append(
                Allocation(made, freed, self._scratch(op), task if task.kind else None)
            )

    def _scratch(self, op: Op) -> int:
        """Bytes that live inside the op alone."""
        if not needs_scratch(op):
            return 0
        axis = dict(op.kwargs).get("axis")
        extent = self.lowered.mesh.extent(axis) if isinstance(axis, str) else 1
        return scratch_bytes(op, self.values, extent, self.costs.profiles[0].device == "cpu")

    def _add(self, work: Work, op: Op, role: str = "") -> Family:
        """Cost one op into `work`; returns its family."""
        names = self.operands[op.name]
        if op.target == ARRIVE:
            if op.name in self.keys:
                work.add(Task("arrive", 0.0, key=self.keys[op.name]))
            return "view"
        if op.target.startswith("mesh.") and family_of(op.target) == "collective":
            last = work.tasks[-1] if work.tasks else None
            worked_s = last.seconds if last and last.role == "compute" else 0.0
            task = self._collective(op, names, role, worked_s)
            work.add(task)
            self.op_s[op.name] = task.seconds
            return "collective"
        plain = self.costs.op(op, names, self.values)
        kernel = self.kernels.get(op.name)
        cost = plain if kernel is None else self.costs.fused(kernel)
        work.add(Task("compute", cost.seconds), plain.flops, cost.host_s)
        self.op_s[op.name] = cost.seconds
        return plain.family

    def _collective(self, op: Op, names: tuple[str, ...], role: str, worked_s: float) -> Task:
        values, mesh = self.values, self.lowered.mesh
        kind = op.target.split(".")[1]
        axis = str(dict(op.kwargs)["axis"])
        payload = [item for item in op.results if item] if kind in _COUNT_RESULTS else list(names)
        nbytes = (
            sent_bytes(op, values)
            if kind == "halo"
            else sum(values[name].nbytes for name in payload)
        )
        extent = mesh.extent(axis)
        seconds = self.costs.collective(kind, extent, mesh.stride(axis), nbytes, worked_s)
        seconds += self.costs.rearranging(op, values, extent)
        source = op.source.module
        role = role or {GATHERING: "gather", REDUCTION: "reduce"}.get(source, "sync")
        itemsize = ITEM_BYTES[values[payload[0]].dtype]
        return Task(
            role, seconds, axis, kind, nbytes, itemsize, tensors_of(op),
            self.keys.get(op.name, ""), self.after.get(op.name, ""),
        )  # fmt: skip

    def _storages(self, names: Iterable[str]) -> set[str]:
        return {self.values[name].storage for name in names}
