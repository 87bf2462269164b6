"""Gathers of parameters beside compute: each is asked for before it is needed.

In a lowered program a parameter is gathered right before the first op that computes with
it. Here the gather moves up, so that it runs while ops before still compute, and what it
gives is waited for by `mesh.arrive`, where it stood. Collectives of parameters keep their
order, so that all devices of an axis run them in one.

How far up is bounded, since what was asked for is in memory. In `forward` and `backward`,
when the parameters of a gather arrive, the next ones are asked for, as long as

- they belong to the same repeated block or to the next one, and
- what was asked for and has not arrived, they included, is no more than `AHEAD_BYTES`, nor
  than the parameters of the larger of these two blocks; or nothing else is on its way.

So a block's parameters are asked for while the block before it computes, as PyTorch's FSDP
does it (Zhao et al. 2023), but one after another, each when one before it arrives. All that
was gathered belongs to two blocks, and beside what is in use there is little: links that take
longer than compute for that much take longer for any more. What is gathered once a step is
held for all of the step, so all of it is asked for at once, and waited for in the first
forward.

Devices of an axis make the same choices although their parts may be of different sizes: what
counts here are whole tensors, divided by the extents of the axes that still cut them.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace

from meshwright.layout.buckets import blocks_of
from meshwright.layout.lowered import GATHERING, LoweredProgram, Section
from meshwright.layout.merge import ARRIVE, GATHER, whole_bytes
from meshwright.program.types import Op, Ref, Value, renamed

AHEAD_BYTES = 512 << 20
"""Most that is asked for ahead, where that is more than one gather."""

HERE = ".here"  # after a gathered parameter's name, where it is known to have arrived

# As long as the program that it was made of lives.
_kept: dict[int, tuple[weakref.ref[LoweredProgram], LoweredProgram]] = {}


def ahead(lowered: LoweredProgram) -> LoweredProgram:
    """Of a merged program: its gathers of parameters marked `later` and moved up."""
    key = id(lowered)
    found = _kept.get(key)
    if found is None or found[0]() is not lowered:
        reference = weakref.ref(lowered, lambda _: _kept.pop(key, None))
        found = _kept[key] = (reference, _Ahead(lowered).run())
    return found[1]


def is_later(op: Op) -> bool:
    """Whether the gather may be started and left to run."""
    return op.target == GATHER and ("later", True) in op.kwargs


@dataclass
class _Gather:
    """unit: the block that it is for, counted along the section. sources: gathers whose results
    it gathers further. nbytes: of its results. lets_go: of what is no longer on its way once
    it has arrived."""

    op: Op
    unit: int
    nbytes: int
    sources: tuple[int, ...]
    lets_go: int = 0

    @property
    def results(self) -> list[str]:
        return [name for name in self.op.results if name is not None]


class _Ahead:
    def __init__(self, lowered: LoweredProgram) -> None:
        self.lowered = lowered
        self.values: dict[str, Value] = dict(lowered.values)
        self.layouts = dict(lowered.layouts)
        self.roots = {item.value: item.path for item in lowered.parameters}
        self.shapes = {item.path: item.shape for item in lowered.parameters}
        self.block = blocks_of(self.shapes)
        self.waited: set[str] = set()  # names of arrivals, which sections may share

    def run(self) -> LoweredProgram:
        lowered = self.lowered
        gather, on_way = self._section("gather", lowered.gather, set(), early=False)
        forward, on_way = self._section("forward", lowered.forward, on_way, early=True)
        backward, _ = self._section("backward", lowered.backward, on_way, early=True)
        return replace(
            lowered, gather=gather, forward=forward, backward=backward,
            values=self.values, layouts=self.layouts,
        )  # fmt: skip

    def _gathers(self, section: Section) -> list[_Gather]:
        """Those that need nothing but what is there from the start, or others of them."""
        there = set(section.inputs)
        maker: dict[str, int] = {}
        found: list[_Gather] = []
        block = None
        for op in section.ops:
            operands = list(op.operands())
            if op.source.module != GATHERING or not operands or operands[0] not in self.roots:
                continue
            results = [name for name in op.results if name is not None]
            paths = [self.roots[name] for name in operands if name in self.roots]
            self.roots.update(zip(results, paths, strict=False))
            alone = self.lowered.mesh.extent(str(dict(op.kwargs).get("axis", ""))) == 1
            free = all(name in there or name in maker for name in operands)
            if op.target != GATHER or alone or not free or len(paths) != len(results):
                continue
            if not found or self.block[paths[0]] != block:
                block = self.block[paths[0]]
                unit = found[-1].unit + 1 if found else 0
            nbytes = sum(
                whole_bytes(self.lowered, path, name, self.shapes)
                for path, name in zip(paths, results, strict=True)
            )
            sources = tuple(dict.fromkeys(maker[name] for name in operands if name in maker))
            maker.update(dict.fromkeys(results, len(found)))
            found.append(_Gather(op, unit, nbytes, sources, nbytes))
        return found

    def _section(
        self, label: str, section: Section, on_way: set[str], early: bool
    ) -> tuple[Section, set[str]]:
        """The section, and what is still on its way at its end. on_way: at its start."""
        gathers = self._gathers(section)
        on_way = set(on_way)
        if not gathers and on_way.isdisjoint(section.inputs):
            return section, on_way
        number = {gather.op.name: index for index, gather in enumerate(gathers)}
        maker = {name: index for index, gather in enumerate(gathers) for name in gather.results}
        arrives: dict[int, list[int]] = {}  # by the op that needs them
        needed: dict[int, list[str]] = {}
        seen: set[int | str] = set()
        for index, op in enumerate(section.ops):
            if op.name in number:
                continue
            for name in op.operands():
                made = maker.get(name, name)
                if made in seen or (isinstance(made, str) and made not in on_way):
                    continue
                seen.add(made)
                if isinstance(made, int):
                    arrives.setdefault(index, []).append(made)
                else:
                    needed.setdefault(index, []).append(made)
        for gather in gathers:
            for source in gather.sources:
                if source not in seen:
                    seen.add(source)
                    gather.lets_go += gathers[source].lets_go
        window = self._windows(gathers)
        names: dict[str, str] = {}
        ops: list[Op] = []
        asked = waiting = 0

        def ask() -> None:
            nonlocal asked, waiting
            op = gathers[asked].op
            ops.append(replace(op, kwargs=(*op.kwargs, ("later", True))))
            waiting += gathers[asked].nbytes
            asked += 1

        for index, op in enumerate(section.ops):
            if op.name in number:
                while asked <= number[op.name]:
                    ask()
                continue
            for found in sorted(arrives.get(index, ())):
                arrived = gathers[found]
                ops.append(self._arrival(f"{arrived.op.name}.arrive", arrived.op, names))
                waiting -= arrived.lets_go
                while early and asked < len(gathers):
                    following = gathers[asked]
                    fits = waiting + following.nbytes <= window[arrived.unit]
                    if following.unit > arrived.unit + 1 or (waiting > 0 and not fits):
                        break
                    ask()
            for name in needed.get(index, ()):
                where = replace(op.source, module=GATHERING)
                one = replace(op, results=(name,), returns_tuple=False, source=where)
                ops.append(self._arrival(f"{name}.arrive.{label}", one, names))
                on_way.discard(name)
            ops.append(renamed(op, names))
        on_way.update(
            name
            for index, gather in enumerate(gathers)
            if index not in seen
            for name in gather.results
        )
        return replace(section, ops=tuple(ops)), on_way

    def _windows(self, gathers: list[_Gather]) -> list[int]:
        """Bytes that may be on their way, by the unit of what arrived last."""
        sums = [0] * (gathers[-1].unit + 1 if gathers else 0)
        for gather in gathers:
            sums[gather.unit] += gather.nbytes
        return [min(max(sums[unit : unit + 2]), AHEAD_BYTES) for unit in range(len(sums))]

    def _arrival(self, name: str, gather: Op, names: dict[str, str]) -> Op:
        """Of all results of a gather, which ops from here on use by other names."""
        results: list[str] = []
        for result in gather.results:
            assert result is not None
            here = names[result] = result + HERE
            value = self.values[result]
            self.values[here] = replace(value, name=here)
            self.layouts[here] = self.layouts[result]
            results.append(here)
        assert name not in self.waited
        self.waited.add(name)
        operands = tuple(Ref(item) for item in gather.results if item is not None)
        several = gather.returns_tuple
        return Op(
            name, ARRIVE, (operands,) if several else operands, (), tuple(results), several,
            gather.phase, gather.source,
        )  # fmt: skip
