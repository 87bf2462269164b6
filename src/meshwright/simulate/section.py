"""One section of a lowered program, op by op: its time and what it keeps in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from meshwright.cluster.mesh import Mesh
from meshwright.cost.families import family_of
from meshwright.cost.scratch import needs_scratch, scratch_bytes
from meshwright.cost.table import CostTable
from meshwright.cost.waiting import Since
from meshwright.layout.halo import sent_bytes
from meshwright.layout.lowered import Section
from meshwright.layout.merge import tensors_of
from meshwright.program.types import Op, Ref, Value, refs

# What a live storage counts as. A plain index, since the loop below is hot.
ACTIVATIONS, GATHERED, GRADIENTS = range(3)
KINDS = ("activations", "gathered", "gradients")

# The payload of these is what comes out; of the others, what goes in.
_COUNT_RESULTS = frozenset({"all_gather", "broadcast"})

# What keeps a parameter a parameter: its gathered, cast or copied form.
_CARRIES_PARAMETER = frozenset({"view", "copy", "collective"})


class Task(NamedTuple):
    name: str
    queue: str
    seconds: float
    live_bytes: int  # while it runs


class Held(NamedTuple):
    """A storage that is in memory, and what it counts as."""

    nbytes: int
    kind: int


@dataclass(slots=True)
class SectionRun:
    """`peak` is in bytes by kind, `leaving` what is still held at the end, by storage."""

    compute_s: float = 0.0
    communication_s: float = 0.0
    flops: float = 0.0
    collectives: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    tensors: dict[tuple[str, str], int] = field(default_factory=dict)  # that they are for
    peak: tuple[int, int, int] = (0, 0, 0)
    peak_at: str = ""
    peak_source: str = ""
    leaving: dict[str, Held] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)


def run_section(
    section: Section,
    values: Mapping[str, Value],
    mesh: Mesh,
    costs: CostTable,
    *,
    entering: Mapping[str, Held],
    keep: Collection[str],
    gradients: Collection[str] = (),
    parameters: Collection[str] = (),
    since: Since | None = None,
    detail: bool = False,
) -> SectionRun:
    """Run `section` in order.

    entering: storages that the section finds in memory and may free.
    keep: storages that outlive the section. gradients: storages that count as
    gradients. parameters: storages of stored parameters; what is made of one
    alone by gathering, copying or casting counts as gathered. since: work since the
    last collective, carried from section to section.

    A storage is allocated by the op that makes it and freed after the last use
    of any of its views. Other section inputs are their owner's to count.
    """
    run = SectionRun()
    since = since or Since()
    operands, frees = _last_uses(section, values, keep)
    held = dict(entering)
    known = {values[name].storage for name in section.inputs} | held.keys()
    derived = set(parameters)
    live = [0, 0, 0]
    for item in held.values():
        live[item.kind] += item.nbytes
    total = peak = sum(live)
    run.peak, run.peak_at = (live[0], live[1], live[2]), "start"

    on_cpu = costs.profiles[0].device == "cpu"
    for index, op in enumerate(section.ops):
        names = operands[index]
        if op.target.startswith("mesh.") and family_of(op.target) == "collective":
            family, queue = "collective", "communication"
            seconds = _collective(op, names, values, mesh, costs, run, since)
            run.communication_s += seconds
        else:
            cost = costs.op(op, names, values)
            seconds, flops, family = cost[:3]
            queue = "compute"
            run.compute_s += seconds
            since.worked(seconds)
            run.flops += flops
        carries = (
            family in _CARRIES_PARAMETER
            and (len(names) == 1 or tensors_of(op) == len(names))
            and all(values[name].storage in derived for name in names)
        )
        for result in op.results:
            if result is None:
                continue
            storage = values[result].storage
            if storage in known:
                continue
            known.add(storage)
            nbytes = values.get(storage, values[result]).nbytes
            if storage in gradients:
                kind = GRADIENTS
            elif carries:
                kind = GATHERED
                derived.add(storage)
            else:
                kind = ACTIVATIONS
            held[storage] = Held(nbytes, kind)
            live[kind] += nbytes
            total += nbytes
        scratch = scratch_bytes(op, values, _extent(op, mesh), on_cpu) if needs_scratch(op) else 0
        if total + scratch > peak:
            peak = total + scratch
            run.peak, run.peak_at = (live[0] + scratch, live[1], live[2]), op.name
            run.peak_source = str(op.source)
        if detail:
            run.tasks.append(Task(op.name, queue, seconds, total + scratch))
        for storage in frees[index]:
            gone = held.pop(storage, None)
            if gone is not None:
                live[gone.kind] -= gone.nbytes
                total -= gone.nbytes

    run.leaving = {storage: item for storage, item in held.items() if storage in keep}
    return run


def _last_uses(
    section: Section, values: Mapping[str, Value], keep: Collection[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """Operand names of each op, and the storages to free after it."""
    operands: list[list[str]] = []
    last: dict[str, int] = {}
    for index, op in enumerate(section.ops):
        names: list[str] = []
        for argument in op.args:
            if type(argument) is Ref:
                names.append(argument.name)
            elif type(argument) is tuple:
                names.extend(refs(argument))
        for _, argument in op.kwargs:
            if type(argument) is Ref or type(argument) is tuple:
                names.extend(refs(argument))
        operands.append(names)
        for name in names:
            last[values[name].storage] = index
        for result in op.results:
            if result is not None:
                last[values[result].storage] = index
    frees: list[list[str]] = [[] for _ in section.ops]
    for storage, index in last.items():
        if storage not in keep:
            frees[index].append(storage)
    return operands, frees


def _extent(op: Op, mesh: Mesh) -> int:
    axis = dict(op.kwargs).get("axis")
    return mesh.extent(axis) if isinstance(axis, str) else 1


def _collective(
    op: Op,
    names: list[str],
    values: Mapping[str, Value],
    mesh: Mesh,
    costs: CostTable,
    run: SectionRun,
    since: Since,
) -> float:
    kind = op.target.split(".")[1]
    axis = str(dict(op.kwargs)["axis"])
    payload = [item for item in op.results if item] if kind in _COUNT_RESULTS else names
    nbytes = (
        sent_bytes(op, values) if kind == "halo" else sum(values[name].nbytes for name in payload)
    )
    count, total = run.collectives.get((kind, axis), (0, 0))
    run.collectives[kind, axis] = (count + 1, total + nbytes)
    run.tensors[kind, axis] = run.tensors.get((kind, axis), 0) + tensors_of(op)
    extent = mesh.extent(axis)
    moving_s = costs.rearranging(op, values, extent)
    return moving_s + costs.collective(kind, extent, mesh.stride(axis), nbytes, since.met())
