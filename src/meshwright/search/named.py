"""Named strategies as decisions: what each axis of the mesh cuts, outermost axis first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from meshwright.cluster.mesh import Mesh
from meshwright.errors import StrategyError
from meshwright.layout.assignment import Parameter, assign
from meshwright.layout.groups import Analysis, Group
from meshwright.plan.types import (
    STAGE,
    Decision,
    ParameterCut,
    ParameterPlan,
    Pipeline,
    Recompute,
    Residency,
)
from meshwright.search import axis_context, axis_edge, axis_expert, axis_spatial
from meshwright.search import tables as lookups
from meshwright.search.axis_sequence import decisions as sequence_decisions
from meshwright.search.constraints import NONE, Constraints, apply
from meshwright.search.tensor import tensor_groups
from meshwright.search.types import Candidate

IDLE = "idle"  # the mesh axis of devices that all compute the same

RESIDENCY: dict[int, Residency] = {0: "always", 1: "step", 2: "microbatch", 3: "use"}


def candidate(
    analysis: Analysis,
    mesh: Mesh,
    *,
    zero: int,
    microbatches: int,
    sequence: bool = False,
    attention: str | None = None,
    pipeline: Pipeline | None = None,
    recompute: Recompute = "none",
    name: str | None = None,
    groups: Sequence[Group] | None = None,
    tables: bool | Sequence[Decision] = False,
    kept: Mapping[str, tuple[Residency, tuple[str, ...]]] = MappingProxyType({}),
    constraints: Constraints = NONE,
) -> Candidate:
    """The candidate of a composition of axes and ZeRO.

    groups: of parameters, to be cut over `tensor` in place of the usual ones. tables: those
    that are worth it are cut over axes of the batch, or which. kept: residency and storage
    axes by a parameter's path, where they are not those of `zero`. Over the axis `idle`
    nothing is cut.
    constraints: what all of that is changed for, last.

    Raises StrategyError when a constraint does not go with it, the batch can't be divided, or an
    axis has nothing to cut.
    """
    decide: dict[str, Callable[[int], list[Decision]]] = {
        "replica": lambda parts: _batch(analysis, mesh, "replica", microbatches),
        "data": lambda parts: _batch(analysis, mesh, "data", microbatches),
        "context": lambda parts: axis_context.decisions(analysis, parts, attention),
        "spatial": lambda parts: axis_spatial.decisions(analysis, parts),
        "edge": lambda parts: axis_edge.decisions(analysis, parts),
        "expert": lambda parts: axis_expert.decisions(analysis, parts),
        "tensor": lambda parts: _tensor(analysis, parts, sequence, groups),
    }
    sizes = dict(mesh.axes)
    decisions: list[Decision] = []
    for axis, parts in mesh.axes:
        if parts > 1 and axis not in (STAGE, IDLE):
            decisions += decide[axis](parts)
    if tables is not False:
        decisions += _tables(analysis, mesh, microbatches) if tables is True else tables
    parameters = {}
    axes = ("data",) if zero and sizes.get("data", 1) > 1 else ()
    for item in analysis.program.inputs_of("parameter"):
        residency = RESIDENCY[zero] if item.trainable or zero == 3 else "always"
        if not axes:
            residency = "always"
        stored_over: tuple[str, ...] = axes
        if item.path in kept:
            residency, stored_over = kept[item.path]
        parameters[item.path] = ParameterPlan(
            residency=residency, storage_axes=stored_over if residency != "always" else ()
        )
    obeying, parameters = apply(constraints, analysis, mesh, decisions, parameters)
    stored = assign(analysis, mesh, obeying, parameters).parameters
    return Candidate(
        name or name_of(mesh, zero, sequence, attention, tables=tables is True),
        mesh, zero, microbatches, obeying,
        {path: as_stored(plan, stored[path]) for path, plan in parameters.items()},
        pipeline, recompute,
    )  # fmt: skip


def as_stored(plan: ParameterPlan, parameter: Parameter) -> ParameterPlan:
    """The parameter's plan with its cuts; one that can't be cut further is always gathered."""
    cuts = tuple(
        ParameterCut(
            axis=axis,
            dim=split.dim,
            outer=split.outer,
            extent=split.extent,
            owner=split.shift if split.extent == 1 else None,
        )
        for axis, split in parameter.storage.shards
    )
    if parameter.storage == parameter.compute:
        return ParameterPlan(cuts=cuts)
    return plan.model_copy(update={"cuts": cuts})


def name_of(
    mesh: Mesh,
    zero: int,
    sequence: bool = False,
    attention: str | None = None,
    pipeline: Pipeline | None = None,
    recompute: Recompute = "none",
    tables: bool = False,
) -> str:
    parts = [f"{name}={size}" for name, size in mesh.axes if size > 1] or ["data=1"]
    if sequence:
        parts.append("sequence")
    if tables:
        parts.append("tables")
    if attention:
        parts.append(f"attention={attention}")
    if zero:
        parts.append(f"zero={zero}")
    if pipeline is not None and pipeline.virtual > 1:
        parts.append(f"virtual={pipeline.virtual}")
    if pipeline is not None and pipeline.schedule not in ("1f1b", "interleaved"):
        parts.append(f"schedule={pipeline.schedule}")
    if recompute != "none":
        parts.append(f"recompute={recompute}")
    return ",".join(parts)


def _batch(analysis: Analysis, mesh: Mesh, axis: str, microbatches: int) -> list[Decision]:
    """Cut the batch: every leaf whose first dim is that of the first leaf, as microbatches do.

    Over `data`, and outside it over `replica`: whatever the residency, parameters are stored
    over `data` alone, and every replica of the data axis has all of them (MiCS, HSDP).
    """
    sizes = dict(mesh.axes)
    parts = sizes.get("replica", 1) * sizes.get("data", 1)
    leaves = [
        (item, analysis.program.values[item.value])
        for item in analysis.program.inputs_of("batch")
        if analysis.program.values[item.value].shape
    ]
    whole_leaves = [item.path for item, value in leaves if value.shape[0] != leaves[0][1].shape[0]]
    note = f"; {', '.join(whole_leaves)} with another first dim: whole" if whole_leaves else ""
    decisions = []
    for item, value in leaves:
        if item.path in whole_leaves:
            continue
        if value.shape[0] % parts:
            whole = value.shape[0] * microbatches
            raise StrategyError(
                f"{item.path} holds {whole} examples, "
                + (f"{value.shape[0]} a microbatch, " if microbatches > 1 else "")
                + f"which {parts} data-parallel devices can't divide.",
                f"Use a global batch that is a multiple of {parts * microbatches}, or a smaller "
                f"{axis} axis.",
            )
        decisions.append(
            Decision(
                axis=axis, value=item.path, dim=0,
                why=f"the batch is divided; gradients are summed over the axis{note}",
            )
        )  # fmt: skip
    return decisions


def _tensor(
    analysis: Analysis, parts: int, sequence: bool, groups: Sequence[Group] | None
) -> list[Decision]:
    groups = tensor_groups(analysis, parts) if groups is None else groups
    if not groups:
        raise StrategyError(
            f"Nothing in this model can be cut over a tensor axis of {parts} devices.",
            "Use a smaller tensor axis or another strategy.",
        )
    decisions = [_decision(analysis, group) for group in groups]
    # Values that both a tensor group and the sequence want stay with the tensor group.
    return [*decisions, *sequence_decisions(analysis, parts)] if sequence else decisions


def _tables(analysis: Analysis, mesh: Mesh, microbatches: int) -> list[Decision]:
    sizes = dict(mesh.axes)
    found = [
        lookups.decision(analysis, path, axis, dim, sizes[axis])
        for path, cuts in lookups.usual(analysis, sizes, microbatches).items()
        for axis, dim in cuts.items()
    ]
    if not found:
        raise StrategyError(
            "No table of this model is worth cutting over "
            f"{sizes.get('data', 1)} devices of the data axis: none that is only looked up in "
            "is larger than what is looked up in it.",
            "Leave 'tables' out of the strategy.",
        )
    return found


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
