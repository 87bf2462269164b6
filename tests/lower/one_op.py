"""One op as a whole Program, lowered for a mesh and run by all its ranks in lockstep."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.layout.assignment import Assignment
from meshwright.layout.groups import Analysis
from meshwright.layout.types import Split
from meshwright.lower.choose import choose
from meshwright.lower.lower import lower
from meshwright.program.types import Input, Program
from meshwright.rules import FactorCut
from meshwright.runtime.comm import Communicator
from meshwright.runtime.executor import Executable
from meshwright.runtime.local_ops import RandomKey
from meshwright.runtime.lockstep import run_lockstep
from meshwright.runtime.place import local_part
from rules.brute_force import Recorded


def program_of(recorded: Recorded, result: str) -> Program:
    """The op alone, its operands as batch leaves and one result as what is asked for."""
    inputs = tuple(Input(name, "batch", name) for name in recorded.tensors)
    return Program(recorded.values, inputs, (recorded.op,), result, {}, {})


def wanted(recorded: Recorded, cut: FactorCut) -> Mapping[str, Split]:
    """How a group that cuts the op so would cut its operands and results."""
    rule = recorded.rule
    pairs = (
        *zip(recorded.op.operands(), rule.operands, strict=True),
        *zip(recorded.op.results, rule.results, strict=True),
    )
    found = {}
    for name, dims in pairs:
        split = rule.to_split(dims, cut) if name is not None and dims is not None else None
        if name is not None and split is not None:
            found[name] = split
    return found


def run_cut(
    recorded: Recorded,
    mesh: Mesh,
    cuts: Mapping[str, FactorCut],
    ring: frozenset[str] = frozenset(),
) -> list[Tensor | None]:
    """Each result as every rank has it whole, when each axis cuts the op as `cuts` say.

    ring: axes over which attention passes keys and values on.

    Raises AssertionError when ranks differ, or an axis is not cut as asked.
    """
    splits = {axis: wanted(recorded, cuts[axis]) if axis in cuts else {} for axis in mesh.names}
    assignment = Assignment(mesh, splits, {}, ring=ring)
    names = tuple(recorded.op.operands())
    layouts = [assignment.layout_of(name) for name in names]
    chosen = choose(recorded.op, recorded.rule, assignment, names, layouts, recorded.values)
    assert chosen == cuts
    found: list[Tensor | None] = []
    for result in recorded.op.results:
        if result is None:
            found.append(None)
            continue
        analysis = Analysis(program_of(recorded, result))

        def rank(comm: Communicator, analysis: Analysis = analysis) -> Tensor:
            coordinate = mesh.coordinate(comm.rank)
            lowered = lower(analysis, assignment, coordinate)
            executable = Executable(lowered, {}, comm, RandomKey(7), torch.device("cpu"))
            local = {
                name: local_part(x, lowered.layouts[name], mesh, coordinate)
                for name, x in recorded.tensors.items()
                if name in lowered.layouts
            }
            return executable.run("forward", local)[lowered.loss]

        everyone = run_lockstep(mesh, rank)
        for other in everyone[1:]:
            assert torch.equal(torch.nan_to_num(other), torch.nan_to_num(everyone[0]))
        found.append(everyone[0])
    return found
