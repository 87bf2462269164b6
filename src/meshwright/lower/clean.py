"""From a list of local ops to a section: dead ops dropped, inputs found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from meshwright.layout.lowered import Section
from meshwright.program.types import Op, Value

COLLECTIVES = frozenset(
    {
        "mesh.all_reduce",
        "mesh.all_gather",
        "mesh.reduce_scatter",
        "mesh.all_to_all",
        "mesh.halo",
        "mesh.ring_shift",
    }
)


def section(ops: Sequence[Op], outputs: tuple[str, ...]) -> Section:
    """The ops that `outputs` depend on, in order, and the values they take from outside.

    Collectives always stay: a device that a cut leaves nothing to compute may not need
    what one gives, while the others wait for its part.
    """
    needed = set(outputs)
    kept: list[Op] = []
    for op in reversed(ops):
        if op.target in COLLECTIVES or any(result in needed for result in op.results):
            kept.append(op)
            needed.update(op.operands())
    kept.reverse()
    made = {name for op in kept for name in op.results}
    inputs: dict[str, None] = {}
    for op in kept:
        for name in op.operands():
            if name not in made:
                inputs[name] = None
    for name in outputs:
        if name not in made:
            inputs[name] = None
    return Section(tuple(inputs), tuple(kept), outputs)


def used_by(
    values: Mapping[str, Value], inputs: Iterable[str], sections: Iterable[Section]
) -> list[str]:
    """The inputs and what some section names, with the values that own their storage."""
    names: dict[str, None] = dict.fromkeys(inputs)
    for part in sections:
        for name in part.inputs:
            names[name] = None
        for op in part.ops:
            for result in op.results:
                if result is not None:
                    names[result] = None
    for name in list(names):
        names[values[name].storage] = None
    return [name for name in values if name in names]
