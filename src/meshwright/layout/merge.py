"""Merges collectives of a lowered program: what its step really runs.

Reductions of gradients and gathers of parameters of one kind, axis and dtype become one
collective for each bucket (`buckets.py`), with a list of operands and a list of results. A
reduction waits for the last of its bucket, a gather comes with the first.

Once a step (`gather`, `reduce`, `clip`) buckets run through the whole model. In `forward` and
`backward` they end where a repeated block does, so that no more than a block's parameters are
gathered for it, and its gradients let go of with it.

The devices of an axis must run the same collectives in the same order, although what lies
between may differ, as on a device that a cut leaves nothing. So every choice here depends on
the order of collectives, on whole tensors' shapes and on how many devices they are cut over,
never on what this device holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from math import prod

from meshwright.layout.buckets import Bucket, Packing, blocks_of
from meshwright.layout.lowered import GATHERING, REDUCTION, LoweredProgram, Section
from meshwright.program.types import ITEM_BYTES, Argument, Op, Ref, Value

_REDUCTIONS = ("mesh.all_reduce", "mesh.reduce_scatter")
GATHER = "mesh.all_gather"
ARRIVE = "mesh.arrive"  # waits for what a gather gives; see `meshwright.layout.ahead`
_MERGED = (*_REDUCTIONS, GATHER, ARRIVE)
_CUT = ("dim", "outer", "extent", "minor", "shift")
# What buckets hold: no backend adds the others, and they are rare.
_FLOATS = ("float64", "float32", "float16", "bfloat16")

# As long as the program that it was made of lives.
_kept: dict[tuple[int, bool], tuple[weakref.ref[LoweredProgram], LoweredProgram]] = {}


def merge(lowered: LoweredProgram, whole_step: bool = True) -> LoweredProgram:
    """The program with collectives merged into buckets of its `bucket_bytes`.

    whole_step: also those of once a step; a simulation in which a block stands for several
    puts these together for the blocks that there really are.
    """
    if not lowered.bucket_bytes:
        return lowered
    key = (id(lowered), whole_step)
    found = _kept.get(key)
    if found is None or found[0]() is not lowered:
        reference = weakref.ref(lowered, lambda _: _kept.pop(key, None))
        found = _kept[key] = (reference, _Merging(lowered).run(whole_step))
    return found[1]


def tensors_of(op: Op) -> int:
    """How many tensors a collective is for: as many collectives there were without merging."""
    first = op.args[0] if op.args and op.target in _MERGED else None
    return len(first) if isinstance(first, tuple) else 1


def cuts_of(op: Op) -> tuple[tuple[int, int, int, int, int], ...]:
    """(dim, outer, extent, minor, shift) for each tensor of a reduce_scatter or all_gather."""
    kwargs = dict(op.kwargs)
    many = kwargs.get("cuts")
    if isinstance(many, tuple):
        return tuple(_numbers(dict(zip(_CUT, cut, strict=True))) for cut in many)  # type: ignore[arg-type]
    return (_numbers(kwargs),)


def _numbers(kwargs: Mapping[str, Argument]) -> tuple[int, int, int, int, int]:
    defaults = {"dim": 0, "outer": 1, "extent": 1, "minor": 1, "shift": 0}
    found = [kwargs.get(name, defaults[name]) for name in _CUT]
    assert all(isinstance(number, int) for number in found)
    return tuple(found)  # type: ignore[return-value]


def whole_bytes(
    lowered: LoweredProgram, path: str, value: str, shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Of a value made of a parameter or its gradient, the same on every device.

    shapes: of whole parameters, by path.
    """
    cut = prod(lowered.mesh.extent(axis) for axis, _ in lowered.layouts[value].shards)
    return prod(shapes[path]) * ITEM_BYTES[lowered.values[value].dtype] // cut


class _Merging:
    def __init__(self, lowered: LoweredProgram) -> None:
        self.lowered = lowered
        self.values: dict[str, Value] = dict(lowered.values)
        self.shapes = {item.path: item.shape for item in lowered.parameters}
        self.block = blocks_of(self.shapes)
        self.moved: dict[str, str] = {}  # values that now lie in a bucket's memory

    def run(self, whole_step: bool) -> LoweredProgram:
        lowered = self.lowered
        gather, reduce = lowered.gather, lowered.reduce
        ends = {item.path: item.gradient for item in lowered.parameters if item.gradient}
        in_backward = {
            path: name for path, name in lowered.accumulated.items() if path in lowered.unshared
        }
        if whole_step:
            gather = self._gathers(gather, by_block=False)
            reduce = self._reductions(reduce, ends, by_block=False)
        backward = self._gathers(lowered.backward, by_block=True)
        backward = self._reductions(backward, in_backward, by_block=True)
        if self.moved:
            for name, value in lowered.values.items():
                if value.storage in self.moved:
                    self.values[name] = replace(value, storage=self.moved[value.storage])
        return replace(
            lowered,
            gather=gather,
            forward=self._gathers(lowered.forward, by_block=True),
            backward=backward,
            reduce=reduce,
            clip=self._sums(lowered.clip),
            values=self.values,
            bucket_bytes=0 if whole_step else lowered.bucket_bytes,
        )

    def _nbytes(self, path: str, value: str) -> int:
        return whole_bytes(self.lowered, path, value, self.shapes)

    def _alone(self, op: Op) -> bool:
        """Whether the collective has nobody to talk to."""
        return self.lowered.mesh.extent(str(dict(op.kwargs)["axis"])) == 1

    # Reductions: each waits for the last of its bucket.

    def _reductions(self, section: Section, ends: Mapping[str, str], by_block: bool) -> Section:
        """Merge the reductions that lead to `ends`, values by parameter path."""
        made_by = {
            op.results[0]: op
            for op in section.ops
            if op.source.module == REDUCTION and len(op.results) == 1
        }
        path_of: dict[str, str] = {}
        depth: dict[str, int] = {}
        for path, name in ends.items():
            chain: list[Op] = []
            reached: str | None = name
            while (op := made_by.get(reached)) is not None and op.name not in path_of:
                path_of[op.name] = path
                chain.append(op)
                reached = next(op.operands(), None)
            for number, op in enumerate(reversed(chain)):
                depth[op.name] = number
        packing = Packing[Op](self.lowered.bucket_bytes)
        block = ""
        for op in section.ops:
            owner = path_of.get(op.name)
            if owner is None or op.target not in _REDUCTIONS:
                continue
            operand = next(op.operands())
            if self.values[operand].dtype not in _FLOATS or self._alone(op):
                continue
            if by_block and self.block[owner] != block:
                packing.close()
                block = self.block[owner]
            kwargs = dict(op.kwargs)
            # The steps of one gradient never share a bucket, nor wait for each other in a circle.
            key = (op.target, kwargs["axis"], kwargs.get("reduce"), self.values[operand].dtype,
                   depth[op.name])  # fmt: skip
            packing.add(key, op, self._nbytes(owner, operand))
        return self._delayed(section, packing.buckets)

    def _sums(self, section: Section) -> Section:
        """The norm's sums of squares, one for each way in which gradients are cut."""
        packing = Packing[Op](self.lowered.bucket_bytes)
        depth: dict[str, int] = {}
        for op in section.ops:
            below = max((depth.get(name, 0) for name in op.operands()), default=0)
            merges = op.target == "mesh.all_reduce" and not self._alone(op)
            depth.update((name, below + merges) for name in op.results if name is not None)
            if merges:
                kwargs = dict(op.kwargs)
                key = (op.target, kwargs["axis"], kwargs.get("reduce"), below)
                packing.add(key, op, 1)
        return self._delayed(section, packing.buckets)

    def _delayed(self, section: Section, buckets: Sequence[Bucket[Op]]) -> Section:
        of = {op.name: bucket for bucket in buckets for op in bucket.members}
        if len(of) == len(buckets):
            return section
        left = {id(bucket): len(bucket.members) for bucket in buckets}
        missing: set[str] = set()  # results of ops that wait
        waiting: list[Op] = []
        ops: list[Op] = []
        for op in section.ops:
            missing.update(name for name in op.results if name is not None)
            bucket = of.get(op.name)
            if bucket is None:
                waiting.append(op)
            else:
                left[id(bucket)] -= 1
                if left[id(bucket)]:
                    continue
                waiting.append(self._merged(bucket.members))
            ready = True
            while ready:
                ready = False
                for item in waiting:
                    if missing.isdisjoint(item.operands()):
                        ops.append(item)
                        waiting.remove(item)
                        missing.difference_update(name for name in item.results if name)
                        ready = True
                        break
        assert not waiting, "collectives wait for each other in a circle"
        return replace(section, ops=tuple(ops))

    # Gathers: all of a bucket come with its first.

    def _gathers(self, section: Section, by_block: bool) -> Section:
        roots = {item.value: item.path for item in self.lowered.parameters}
        at: dict[str, int] = dict.fromkeys(section.inputs, -1)  # since when a value is there
        packing = Packing[Op](self.lowered.bucket_bytes)
        start: dict[int, int] = {}  # where each bucket's first op stands
        of: dict[str, Bucket[Op]] = {}
        block = ""
        for index, op in enumerate(section.ops):
            operand = next(op.operands(), "")
            path = roots.get(operand)
            if op.source.module != GATHERING or path is None:
                at.update((name, index) for name in op.results if name is not None)
                continue
            result = op.results[0]
            assert result is not None
            roots[result] = path
            if op.target != GATHER or self._alone(op):
                at[result] = index
                continue
            if by_block and self.block[path] != block:
                packing.close()
                block = self.block[path]
            nbytes, dtype = self._nbytes(path, result), self.values[result].dtype
            key: Hashable = (dict(op.kwargs)["axis"], dtype)
            opened = packing.open(key, nbytes)
            if opened is not None and at[operand] >= start[id(opened)]:
                packing.close(key)  # what is gathered here is not there yet
            bucket = packing.add(key, op, nbytes)
            at[result] = start.setdefault(id(bucket), index)
            of[op.name] = bucket
        if len(of) == len(packing.buckets):
            return section
        ops: list[Op] = []
        for op in section.ops:
            found = of.get(op.name)
            if found is None:
                ops.append(op)
            elif found.members[0] is op:
                ops.append(self._merged(found.members))
        return replace(section, ops=tuple(ops))

    # The merged op

    def _merged(self, members: Sequence[Op]) -> Op:
        first = members[0]
        if len(members) == 1:
            return first
        operands = [next(op.operands()) for op in members]
        results = tuple(op.results[0] for op in members)
        assert first.results[0] is not None
        name = f"{first.results[0]}.bucket"
        kwargs = dict(first.kwargs)
        shared: list[tuple[str, Argument]] = [("axis", kwargs["axis"])]
        if "reduce" in kwargs:
            shared.append(("reduce", kwargs["reduce"]))
        if first.target != "mesh.all_reduce":
            shared.append(("cuts", tuple(cuts_of(op)[0] for op in members)))
        if first.target != GATHER:
            self._in_one(name, first, members, operands)
        return Op(
            name, first.target, (tuple(Ref(item) for item in operands),), tuple(shared), results,
            True, first.phase, first.source,
        )  # fmt: skip

    def _in_one(self, name: str, first: Op, members: Sequence[Op], operands: Sequence[str]) -> None:
        """Reduced tensors are views of one flat tensor, long enough for any device's parts."""
        sizes = [self.values[item].numel for item in operands]
        length = sum(sizes)
        if first.target == "mesh.reduce_scatter":
            extent = self.lowered.mesh.extent(str(dict(first.kwargs)["axis"]))
            cuts = [cuts_of(op)[0] for op in members]
            length = row_length(sizes, cuts, extent)
        dtype = self.values[operands[0]].dtype
        self.values[name] = Value(name, (length,), dtype, name)
        for op in members:
            result = op.results[0]
            assert result is not None
            self.moved[result] = name


def row_length(
    sizes: Sequence[int], cuts: Sequence[tuple[int, int, int, int, int]], parts: int
) -> int:
    """Elements of the longest of the rows that devices hold of tensors of `sizes` elements."""
    longest = 0
    for device in range(parts):
        row = 0
        for size, (_, _, extent, _, shift) in zip(sizes, cuts, strict=True):
            step = -(-extent // parts)
            start = min((device - shift) % parts * step, extent)
            row += size // max(extent, 1) * min(step, extent - start)
        longest = max(longest, row)
    return longest
