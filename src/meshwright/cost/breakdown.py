"""A step's predicted time by op family and collective, to hold beside a traced step's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from meshwright.cluster.types import Cluster
from meshwright.cost.families import family_of
from meshwright.cost.table import CostTable, table_for
from meshwright.cost.waiting import Since
from meshwright.layout.halo import sent_bytes
from meshwright.layout.lowered import LoweredProgram, Section
from meshwright.layout.merge import merge
from meshwright.program.types import Op

OPTIMIZER = "optimizer"
# What a step takes beyond its ops and the optimizer: the generated code itself, freeing
# memory, cutting the batch, adding up the gradients of microbatches.
BETWEEN = "between ops"

# The payload of these is what comes out; of the others, what goes in.
_COUNT_RESULTS = frozenset({"all_gather", "broadcast"})


class Spent(NamedTuple):
    """How often something ran in a step, and the seconds of all of it."""

    times: int
    seconds: float


def row_of(target: str, axis: str | None) -> str:
    """What an op's time is shown as: its family and direction, or its collective and axis."""
    family = family_of(target)
    if family == "collective":
        return f"{target.split('.')[1]} over {axis}"
    return f"{family} backward" if "_backward" in target else family


def breakdown(
    lowered: LoweredProgram,
    cluster: Cluster,
    *,
    microbatches: int,
    optimizer: str,
    step_time_s: float,
) -> dict[str, Spent]:
    """Count and seconds by `row_of`, of one step of one device.

    The rest of `step_time_s` is `BETWEEN`; where work overlaps there is none.
    """
    costs, lowered = table_for(cluster), merge(lowered)
    found: dict[str, Spent] = {}
    since = Since(costs.optimizer(lowered.parameters, lowered.values, optimizer))
    for section, times in sections(lowered, microbatches):
        for op in section.ops:
            row = row_of(op.target, _axis(op))
            before = found.get(row, Spent(0, 0.0))
            seconds = op_time(op, lowered, costs, since) * times
            found[row] = Spent(before.times + times, before.seconds + seconds)
    spent = costs.optimizer(lowered.parameters, lowered.values, optimizer)
    found[OPTIMIZER] = Spent(1, spent)
    rest = step_time_s - sum(item.seconds for item in found.values())
    return found | {BETWEEN: Spent(1, max(rest, 0.0))}


def sections(lowered: LoweredProgram, microbatches: int) -> Iterable[tuple[Section, int]]:
    """Each section, and how often a step runs it."""
    return (
        (lowered.gather, 1),
        (lowered.forward, microbatches),
        (lowered.backward, microbatches),
        (lowered.reduce, 1),
        (lowered.clip, 1),
    )


def op_time(op: Op, lowered: LoweredProgram, costs: CostTable, since: Since) -> float:
    """Seconds of one op or collective of a lowered program; `since` counts work between those."""
    values = lowered.values
    if family_of(op.target) != "collective":
        seconds = costs.op(op, list(op.operands()), values).seconds
        since.worked(seconds)
        return seconds
    kind = op.target.split(".")[1]
    names: Iterable[str] = (
        [item for item in op.results if item] if kind in _COUNT_RESULTS else op.operands()
    )
    nbytes = (
        sent_bytes(op, values) if kind == "halo" else sum(values[name].nbytes for name in names)
    )
    axis = str(_axis(op))
    extent = lowered.mesh.extent(axis)
    moving_s = costs.rearranging(op, values, extent)
    stride = lowered.mesh.stride(axis)
    return moving_s + costs.collective(kind, extent, stride, nbytes, since.met())


def _axis(op: Op) -> str | None:
    axis = dict(op.kwargs).get("axis")
    return None if axis is None else str(axis)


def worst_rows(
    predicted: Mapping[str, Spent], measured: Mapping[str, Spent]
) -> list[tuple[str, float, float]]:
    """(row, predicted seconds, measured seconds), what is furthest off in seconds first."""
    rows = [
        (row, predicted.get(row, Spent(0, 0.0)).seconds, measured.get(row, Spent(0, 0.0)).seconds)
        for row in {*predicted, *measured}
    ]
    return sorted(rows, key=lambda item: (-abs(item[2] - item[1]), item[0]))
