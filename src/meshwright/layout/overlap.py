"""The end of a step whose gradients are reduced beside its last backward.

The last microbatch's backward and the reductions of once a step become one section: a bucket
is reduced as soon as the backward has made, and added to those of the microbatches before, the
last gradient in it. Reductions keep their order, so that all devices of an axis run them in
one. They are marked `later`: a device may start them and go on, and waits for them at
`mesh.settle`, or when the step loop calls `Communicator.settle`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from meshwright.layout.lowered import REDUCTION, LoweredProgram, Section
from meshwright.program.types import Op, Ref, Source, Value, renamed

_LATER = frozenset({"mesh.all_reduce", "mesh.reduce_scatter"})
_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
TOTAL = ".total"  # after a gradient's name: its sum over the microbatches before
_ADDING = Source("adding up gradients")


@dataclass(frozen=True)
class Ending:
    section: Section
    values: Mapping[str, Value]


def started(section: Section, values: Mapping[str, Value]) -> Section:
    """The section with its reductions of gradients marked `later`, but for those whose results
    other ops of it use than further ones of these."""
    marked = _later(section.ops, values)
    if not marked:
        return section
    ops = tuple(
        replace(op, kwargs=(*op.kwargs, ("later", True))) if op.name in marked else op
        for op in section.ops
    )
    return replace(section, ops=ops)


def ending(lowered: LoweredProgram, adds: bool) -> Ending:
    """Of a merged program. adds: there were microbatches before, whose sums are further inputs
    called `NAME.total`."""
    values = dict(lowered.values)
    backward = started(lowered.backward, values)
    gradients = tuple(dict.fromkeys(lowered.accumulated.values()))
    under_way = {
        name
        for op in backward.ops
        if ("later", True) in op.kwargs
        for name in op.results
        if name is not None
    }
    unsettled = {name for name in gradients if name in under_way}
    waiting = {True: list[Op](), False: list[Op]()}  # whether for what is only there at the end
    late = set(unsettled)
    for op in lowered.reduce.ops:
        at_end = not late.isdisjoint(op.operands())
        late.update(name for name in op.results if name is not None and at_end)
        waiting[at_end].append(op)

    summed: dict[str, str] = {}
    here = set(lowered.reduce.inputs) - set(gradients)
    ops: list[Op] = []

    def made(name: str, queue: list[Op]) -> None:
        """A gradient of this microbatch is complete: add it up, reduce what waited for it."""
        if adds:
            total, added = name + TOTAL, name + ".sum"
            values[total] = replace(values[name], name=total, storage=total)
            values[added] = replace(values[name], name=added, storage=total)
            args = (Ref(total), Ref(name))
            ops.append(
                Op(added, "aten.add_.Tensor", args, (), (added,), False, "backward", _ADDING)
            )
            summed[name] = added
        here.add(name)
        while queue and here.issuperset(queue[0].operands()):
            op = queue.pop(0)
            ops.append(renamed(op, summed))
            here.update(item for item in op.results if item is not None)

    left = dict.fromkeys(gradients)
    for name in [name for name in left if name in backward.inputs]:
        del left[name]
        made(name, waiting[False])
    for op in backward.ops:
        ops.append(op)
        for result in op.results:
            if result in left and result not in unsettled:
                del left[result]
                made(result, waiting[False])
    if left:
        ops.append(Op("settle", "mesh.settle", (), (), (None,), False, "backward", _ADDING))
        for name in left:
            made(name, waiting[True])
    assert not waiting[False] and not waiting[True], "a gradient that nothing makes"
    totals = [name + TOTAL for name in gradients] if adds else []
    others = [name for name in lowered.reduce.inputs if name not in gradients]
    inputs = tuple(dict.fromkeys((*backward.inputs, *totals, *others)))
    outputs = tuple(dict.fromkeys(summed.get(name, name) for name in lowered.reduce.outputs))
    return Ending(started(Section(inputs, tuple(ops), outputs), values), values)


def _later(ops: Sequence[Op], values: Mapping[str, Value]) -> set[str]:
    users: dict[str, list[tuple[int, Op]]] = {}
    end = next((index for index, op in enumerate(ops) if op.target == "mesh.settle"), len(ops))
    for index, op in enumerate(ops):
        for name in op.operands():
            users.setdefault(name, []).append((index, op))
    found: set[str] = set()
    for index in range(len(ops) - 1, -1, -1):
        op = ops[index]
        if op.target not in _LATER or op.source.module != REDUCTION:
            continue
        if ("later", True) in op.kwargs or values[next(op.operands())].dtype not in _FLOATS:
            continue
        uses = [item for name in op.results if name for item in users.get(name, ())]
        if all(use.name in found or index < end < at for at, use in uses):
            found.add(op.name)
    return found
