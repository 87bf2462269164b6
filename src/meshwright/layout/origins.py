"""Where a plan's collectives come from: which module, in which part of the step."""

from __future__ import annotations

from meshwright.layout.halo import sent_bytes
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.merge import merge
from meshwright.plan.types import CollectiveOrigin

_GATHERED = "all_gather"  # the collective whose payload is its result


def origins(lowered: LoweredProgram, microbatches: int) -> tuple[CollectiveOrigin, ...]:
    """Collectives by part of the step and module, modules alike but for a number together.

    Counts and bytes are per device and step, those of forward and backward over
    all microbatches; together they are the plan's collectives.
    """
    lowered = merge(lowered)
    parts = (
        ("gather", lowered.gather, 1),
        ("forward", lowered.forward, microbatches),
        ("backward", lowered.backward, microbatches),
        ("reduce", lowered.reduce, 1),
        ("clip", lowered.clip, 1),
    )
    found: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    for part, section, times in parts:
        for op in section.ops:
            kind = op.target.removeprefix("mesh.")
            axis = dict(op.kwargs).get("axis")
            if kind == op.target or axis is None or kind == "shard":
                continue
            payload = op.results if kind == _GATHERED else op.operands()
            values = lowered.values
            moved = (
                sent_bytes(op, values)
                if kind == "halo"
                else sum(values[name].nbytes for name in payload if name)
            )
            key = (part, kind, str(axis), _stem(op.source.module))
            count, nbytes = found.get(key, (0, 0))
            found[key] = (count + times, nbytes + times * moved)
    return tuple(
        CollectiveOrigin(part=part, kind=kind, axis=axis, module=module, count=count, bytes=nbytes)
        for (part, kind, axis, module), (count, nbytes) in found.items()
    )


def _stem(module: str) -> str:
    return ".".join("*" if name.isdecimal() else name for name in module.split("."))
