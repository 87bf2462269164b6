"""Where a plan's collectives come from: which module, in which part of the step."""

from __future__ import annotations

from collections.abc import Callable

from meshwright.layout.halo import sent_bytes
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.merge import merge
from meshwright.plan.types import CollectiveOrigin

_GATHERED = "all_gather"  # the collective whose payload is its result


def origins(
    lowered: LoweredProgram,
    microbatches: int,
    seconds_of: Callable[[str, int, int, int], float] | None = None,
) -> tuple[CollectiveOrigin, ...]:
    """Collectives by part of the step and module, modules alike but for a number together.

    Counts, bytes and seconds are per device and step, those of forward and backward over
    all microbatches; together they are the plan's collectives.
    seconds_of: what one takes, by kind, extent and stride of the axis, and bytes.
    """
    mesh = lowered.mesh
    lowered = merge(lowered)
    parts = (
        ("gather", lowered.gather, 1),
        ("forward", lowered.forward, microbatches),
        ("backward", lowered.backward, microbatches),
        ("reduce", lowered.reduce, 1),
        ("clip", lowered.clip, 1),
    )
    found: dict[tuple[str, str, str, str], tuple[int, int, float]] = {}
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
            count, nbytes, spent = found.get(key, (0, 0, 0.0))
            if seconds_of is not None:
                one = seconds_of(kind, mesh.extent(key[2]), mesh.stride(key[2]), moved)
                spent += times * one
            found[key] = (count + times, nbytes + times * moved, spent)
    return tuple(
        CollectiveOrigin(
            part=part, kind=kind, axis=axis, module=module, count=count, bytes=nbytes,
            seconds=spent if seconds_of is not None else None,
        )
        for (part, kind, axis, module), (count, nbytes, spent) in found.items()
    )  # fmt: skip


def _stem(module: str) -> str:
    return ".".join("*" if name.isdecimal() else name for name in module.split("."))
