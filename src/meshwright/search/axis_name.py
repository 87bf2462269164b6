"""What to call the one axis of a plan that decides op by op: after what it cuts most of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from meshwright.cluster.mesh import Mesh
from meshwright.layout.assignment import Assignment
from meshwright.layout.groups import Analysis, Group
from meshwright.layout.types import Split
from meshwright.search.estimate import Estimator
from meshwright.search.space import STORABLE, Space
from meshwright.search.types import Candidate

__all__ = ["axis_name", "renamed"]


def axis_name(space: Space, estimator: Estimator, assignment: Assignment, axis: str) -> str:
    """The axis whose groups cut most bytes along the dims that `assignment` cuts over `axis`.

    Of those that can have so many devices, the first of equals; `axis` where there is none.
    """
    analysis = space.first
    cuts = _cuts(analysis, assignment, axis)
    found: dict[str, int] = {}
    for name in STORABLE:
        if not space.problem(name, space.devices):
            found[name] = _alike(analysis, estimator.groups(name), cuts)
    usual = space.classes(space.devices)
    tensor = [group for key in space.usual(space.devices) for group in usual[key].groups]
    found["tensor"] = _alike(analysis, tensor, cuts)
    best = max(found, key=lambda name: found[name])
    return best if found[best] else axis


def _cuts(analysis: Analysis, assignment: Assignment, axis: str) -> Mapping[str, Split]:
    """How values lie cut: what ops that are held to a cut make, and what was asked for."""
    found: dict[str, Split] = {}
    for name, cut in assignment.held.get(axis, {}).items():
        rule = analysis.rules[name]
        for result, dims in zip(analysis.by_name[name].results, rule.results, strict=True):
            split = rule.to_split(dims, cut) if cut is not None and dims is not None else None
            if split is not None and result is not None:
                found[result] = split
    found.update(assignment.wanted.get(axis, {}))
    return found


def _alike(analysis: Analysis, groups: Iterable[Group], cuts: Mapping[str, Split]) -> int:
    """Bytes of the values that are cut along the dims that groups cut."""
    parameters = {item.value for item in analysis.program.inputs_of("parameter")}
    return sum(
        analysis.program.values[name].nbytes
        for name in {
            name for group in groups for name, split in group.members.items()
            if name in cuts and cuts[name].dim == split.dim and name not in parameters
        }
    )  # fmt: skip


def renamed(made: Candidate, axis: str, name: str) -> Candidate:
    """The candidate with one of its mesh's axes called otherwise."""

    def called(other: str) -> str:
        return name if other == axis else other

    return replace(
        made,
        name=made.name.replace(f"{axis}=", f"{name}=", 1),
        mesh=Mesh(tuple((called(other), size) for other, size in made.mesh.axes)),
        zero=made.zero if name == "data" else 0,
        decisions=tuple(
            item.model_copy(update={"axis": called(item.axis)}) for item in made.decisions
        ),
        parameters={
            path: plan.model_copy(
                update={
                    "storage_axes": tuple(map(called, plan.storage_axes)),
                    "cuts": tuple(
                        cut.model_copy(update={"axis": called(cut.axis)}) for cut in plan.cuts
                    ),
                }
            )
            for path, plan in made.parameters.items()
        },
    )
