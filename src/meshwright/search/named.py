"""Named strategies as decisions: a batch group over `data`, parameter groups over `tensor`."""

from __future__ import annotations

from meshwright.cluster.mesh import Mesh
from meshwright.errors import StrategyError
from meshwright.layout.assignment import Parameter, assign
from meshwright.layout.groups import Analysis, Group
from meshwright.plan.types import Decision, ParameterCut, ParameterPlan, Residency
from meshwright.search.tensor import tensor_groups
from meshwright.search.types import Candidate

RESIDENCY: dict[int, Residency] = {0: "always", 1: "step", 2: "microbatch", 3: "use"}


def candidate(
    analysis: Analysis,
    mesh: Mesh,
    *,
    zero: int,
    microbatches: int,
    name: str | None = None,
) -> Candidate:
    """The candidate of a composition of data, tensor and ZeRO.

    Raises StrategyError when the batch can't be divided, or nothing can be cut over `tensor`.
    """
    sizes = dict(mesh.axes)
    decisions: list[Decision] = []
    if sizes.get("data", 1) > 1:
        decisions += _data(analysis, sizes["data"], microbatches)
    if sizes.get("tensor", 1) > 1:
        decisions += _tensor(analysis, sizes["tensor"])
    parameters = {}
    axes = ("data",) if zero and sizes.get("data", 1) > 1 else ()
    for item in analysis.program.inputs_of("parameter"):
        residency = RESIDENCY[zero] if item.trainable or zero == 3 else "always"
        if not axes:
            residency = "always"
        parameters[item.path] = ParameterPlan(
            residency=residency, storage_axes=axes if residency != "always" else ()
        )
    stored = assign(analysis, mesh, tuple(decisions), parameters).parameters
    return Candidate(
        name or name_of(mesh, zero), mesh, zero, microbatches, tuple(decisions),
        {path: _as_stored(plan, stored[path]) for path, plan in parameters.items()},
    )  # fmt: skip


def _as_stored(plan: ParameterPlan, parameter: Parameter) -> ParameterPlan:
    """The parameter's plan with its cuts; one that can't be cut further is always gathered."""
    cuts = tuple(
        ParameterCut(axis=axis, dim=split.dim, outer=split.outer, extent=split.extent)
        for axis, split in parameter.storage.shards
    )
    if parameter.storage == parameter.compute:
        return ParameterPlan(cuts=cuts)
    return plan.model_copy(update={"cuts": cuts})


def name_of(mesh: Mesh, zero: int) -> str:
    parts = [f"{name}={size}" for name, size in mesh.axes if size > 1] or ["data=1"]
    if zero:
        parts.append(f"zero={zero}")
    return ",".join(parts)


def _data(analysis: Analysis, parts: int, microbatches: int) -> list[Decision]:
    decisions = []
    for item in analysis.program.inputs_of("batch"):
        value = analysis.program.values[item.value]
        if not value.shape:
            continue
        if value.shape[0] % parts:
            whole = value.shape[0] * microbatches
            raise StrategyError(
                f"{item.path} holds {whole} examples, "
                + (f"{value.shape[0]} a microbatch, " if microbatches > 1 else "")
                + f"which {parts} data-parallel devices can't divide.",
                f"Use a global batch that is a multiple of {parts * microbatches}, or a smaller "
                "data axis.",
            )
        decisions.append(
            Decision(
                axis="data", value=item.path, dim=0,
                why="the batch is divided; gradients are summed over the axis",
            )
        )  # fmt: skip
    return decisions


def _tensor(analysis: Analysis, parts: int) -> list[Decision]:
    groups = tensor_groups(analysis, parts)
    if not groups:
        raise StrategyError(
            f"Nothing in this model can be cut over a tensor axis of {parts} devices.",
            "Use a smaller tensor axis or another strategy.",
        )
    return [_decision(analysis, group) for group in groups]


def _decision(analysis: Analysis, group: Group) -> Decision:
    """A group by the first parameter that it cuts, which a reader knows by name."""
    program = analysis.program
    for item in program.inputs_of("parameter"):
        split = group.members.get(item.value)
        if split is None:
            continue
        size = program.values[item.value].shape[split.dim]
        whole = split.outer == 1 and split.extent == size
        others = [
            other.path
            for other in program.inputs_of("parameter")
            if other.value in group.members and other.path != item.path
        ]
        shared = f", with {', '.join(others[:3])}" if others else ""
        return Decision(
            axis="tensor", value=item.path, dim=split.dim, outer=split.outer,
            extent=None if whole else split.extent,
            why=f"cut along one matrix product and summed after the next{shared}",
        )  # fmt: skip
    raise AssertionError("a tensor group cuts a parameter")
