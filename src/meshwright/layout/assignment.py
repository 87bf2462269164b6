"""An assignment: what a plan's decisions mean for one Program, resolved to its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from meshwright.cluster.mesh import Mesh
from meshwright.errors import PlanError
from meshwright.layout.by_op import cut_of
from meshwright.layout.cuts import compatible, ordered
from meshwright.layout.groups import Analysis, Group
from meshwright.layout.types import REPLICATED, Layout, Split
from meshwright.plan.types import Decision, ParameterPlan, Residency
from meshwright.program.types import Op
from meshwright.rules.types import FactorCut


@dataclass(frozen=True)
class Parameter:
    """How one parameter lies: while it is computed with, and between steps."""

    path: str
    value: str
    compute: Layout
    storage: Layout
    residency: Residency


@dataclass(frozen=True)
class Assignment:
    """wanted: for each axis, how the groups assigned to it cut the values they reach.

    held: for an axis with a decision beside others, or on single ops, how those cut each op;
    None for one that is not cut, as a view of what such an op needs whole.
    ring: axes over which attention passes keys and values on.
    fixed: values that were asked to lie so, with their cut over an axis, None where it is none.
    """

    mesh: Mesh
    wanted: Mapping[str, Mapping[str, Split]]
    parameters: Mapping[str, Parameter]
    clip: bool = False
    held: Mapping[str, Mapping[str, FactorCut | None]] = field(default_factory=dict)
    ring: frozenset[str] = frozenset()
    fixed: Mapping[str, Mapping[str, Split | None]] = field(default_factory=dict)

    def layout_of(self, value: str) -> Layout:
        """The layout that the assigned groups want for a value."""
        return Layout(
            tuple(
                (axis, self.wanted[axis][value])
                for axis in self.mesh.names
                if value in self.wanted.get(axis, {})
            )
        )


def assign(
    analysis: Analysis,
    mesh: Mesh,
    decisions: tuple[Decision, ...],
    parameters: Mapping[str, ParameterPlan],
    clip: bool = False,
) -> Assignment:
    """Resolve decisions to values, and residencies to storage layouts.

    Where the groups of two decisions want one value cut in ways that can't hold
    together, the earlier decision keeps it. Raises PlanError for a decision that
    names an unknown value, axis or dim.
    """
    wanted: dict[str, dict[str, Split]] = {axis: {} for axis in mesh.names}
    held: dict[str, dict[str, FactorCut]] = {axis: {} for axis in mesh.names}
    alone: dict[str, dict[str, FactorCut | None]] = {}
    single: dict[str, dict[str, FactorCut | None]] = {}
    fixed = _fixed(analysis, decisions)
    for value, axes in fixed.items():
        for axis, split in axes.items():
            if split is not None and axis in wanted:
                wanted[axis][value] = split
    for decision in decisions:
        whole_op = decision.op is not None and decision.fixed == "whole"
        seed = resolve(analysis, decision) if not whole_op else ("", Split(0, 1, 1))
        if decision.axis not in wanted:
            raise PlanError(
                f"The plan shards {decision.value} over the axis '{decision.axis}', but its mesh "
                f"has {', '.join(mesh.names)}.",
                "Correct the axis in the plan, or plan again.",
            )
        if decision.owner is not None and decision.owner >= mesh.extent(decision.axis):
            raise PlanError(
                f"The plan has device {decision.owner} of the axis '{decision.axis}' own "
                f"{decision.value}, but the axis has {mesh.extent(decision.axis)}.",
                "Devices are counted from 0: correct the owner in the plan, or plan again.",
            )
        if decision.op is not None:
            pin = cut_of(analysis, decision, *seed, parts=mesh.extent(decision.axis))
            single.setdefault(decision.axis, {}).update([pin])
            continue
        if decision.only:
            single.setdefault(decision.axis, {})
            wanted[decision.axis].setdefault(*seed)
            continue
        if decision.fixed == "whole":
            continue
        group = analysis.group(*seed)
        members = group.members
        if decision.beside:
            members = _beside(analysis, group, wanted[decision.axis], held[decision.axis])
        if decision.alone:
            own = (seed[0], analysis.program.gradients.get(decision.value))
            members = {name: split for name, split in members.items() if name in own}
            alone.setdefault(decision.axis, {}).update(own_ops(analysis, group, *own))
        for op, cut in group.cuts.items():
            if not decision.beside and not decision.alone:
                held[decision.axis].setdefault(op, cut)
        for value, split in members.items():
            if decision.axis in fixed.get(value, ()):
                continue  # it lies as was asked for
            kept = wanted[decision.axis].setdefault(value, split)
            if kept == split:
                for axis in mesh.names:
                    other = wanted[axis].get(value)
                    if axis != decision.axis and other and not compatible(split, other):
                        del wanted[decision.axis][value]
                        break
    beside = {item.axis for item in decisions if item.beside}
    holds: dict[str, dict[str, FactorCut | None]] = {
        **{axis: _with_smaller(analysis, cuts) for axis, cuts in alone.items()},
        **{axis: _with_views(analysis, cuts) for axis, cuts in held.items() if axis in beside},
    }
    holds = {axis: cuts for axis, cuts in holds.items() if cuts}
    for axis, pins in single.items():
        holds[axis] = {**holds.get(axis, {}), **pins}
    return Assignment(
        mesh,
        wanted,
        _store(analysis, mesh, wanted, parameters),
        clip,
        holds,
        frozenset(item.axis for item in decisions if item.attention == "ring"),
        fixed,
    )


def _fixed(
    analysis: Analysis, decisions: tuple[Decision, ...]
) -> dict[str, dict[str, Split | None]]:
    """By value and axis, the cut that was asked for; None for whole."""
    found: dict[str, dict[str, Split | None]] = {}
    for item in decisions:
        if item.fixed is not None and item.op is None:
            value, split = resolve(analysis, item)
            found.setdefault(value, {})[item.axis] = split if item.fixed == "cut" else None
    for value, axes in found.items():
        splits = [split for split in axes.values() if split is not None]
        if not all(compatible(one, other) for one in splits for other in splits):
            raise PlanError(
                f"The plan fixes two cuts of {value} that don't nest.",
                "Leave out one of them, or plan again.",
            )
    return found


def own_ops(
    analysis: Analysis, group: Group, parameter: str, gradient: str | None
) -> dict[str, FactorCut]:
    """Ops of a group that use the parameter, also its views and casts, or make its gradient."""
    found: dict[str, FactorCut] = {}
    derived = {parameter}
    made_by: dict[str | None, Op] = {}
    for op in analysis.program.ops:
        names = analysis.operands[op.name]
        made_by.update((name, op) for name in op.results if name is not None)
        if op.name in group.cuts and not derived.isdisjoint(names):
            found[op.name] = group.cuts[op.name]
            if derived.issuperset(names):
                derived.update(name for name in op.results if name is not None)
    while gradient in made_by and made_by[gradient].name in group.cuts:
        op = made_by[gradient]
        found[op.name] = group.cuts[op.name]
        names = analysis.operands[op.name]
        gradient = names[0] if len(names) == 1 else None
    return found


def _beside(
    analysis: Analysis,
    group: Group,
    taken: Mapping[str, Split],
    held: Mapping[str, FactorCut],
) -> dict[str, Split]:
    """Members of a group that are computed from what earlier decisions of its axis cut.

    What no earlier cut leads to lies whole on every device of the axis, at no cost:
    were it cut, ops that earlier decisions hold would have to gather it.
    """
    reached = set(taken)
    for op in analysis.program.ops:
        if op.name in held or not reached.isdisjoint(analysis.operands[op.name]):
            reached.update(name for name in op.results if name is not None)
    return {value: split for value, split in group.members.items() if value in reached}


def _with_views(analysis: Analysis, held: Mapping[str, FactorCut]) -> dict[str, FactorCut | None]:
    """`held`, and the views of what those ops need whole: it is gathered once, before them."""
    whole: set[str] = set()
    found: dict[str, FactorCut | None] = dict(held)
    for op in reversed(analysis.program.ops):
        rule = analysis.rules[op.name]
        if op.name in held:
            for name, dims in zip(analysis.operands[op.name], rule.operands, strict=True):
                if rule.to_split(dims, held[op.name]) is None:
                    whole.add(name)
        elif any(r in whole and analysis.program.values[r].is_view for r in op.results if r):
            found[op.name] = None
            whole.update(analysis.operands[op.name])
    return found


_COPY = "aten.clone.default"


def _with_smaller(
    analysis: Analysis, held: Mapping[str, FactorCut | None]
) -> dict[str, FactorCut | None]:
    """`held`, and views or copies before those ops of what is less to move than they are.

    That is brought once to where the ops need its views: a sum's gradient before it is handed
    to each term, and a tensor of which several columns are used.
    """
    values = analysis.program.values
    found = dict(held)
    needs: dict[str, set[Split | None]] = {}
    views: dict[tuple[str, Split | None], dict[str, tuple[FactorCut | None, int]]] = {}

    def settle(value: str) -> None:
        """All uses of a value are known: where it is less than its views, they follow."""
        for need in [need for name, need in views if name == value]:
            made = views.pop((value, need))
            if values[value].numel <= 2 * sum(numel for _, numel in made.values()):
                found.update({name: cut for name, (cut, _) in made.items()})
                needs.setdefault(value, set()).add(need)

    for op in reversed(analysis.program.ops):
        rule, names = analysis.rules[op.name], analysis.operands[op.name]
        for result in op.results:
            if result is not None:
                settle(result)
        cut = held.get(op.name)
        if cut is not None:
            for name, dims in zip(names, rule.operands, strict=True):
                needs.setdefault(name, set()).add(rule.to_split(dims, cut))
            continue
        made = op.results[0]
        wanted = needs.get(made or "", set())
        if made is None or len(names) != 1 or len(wanted) != 1:
            continue
        if not values[made].is_view and op.target != _COPY:
            continue
        need, gives = next(iter(wanted)), rule.results[0]
        via = rule.to_factor(gives, need) if need is not None and gives is not None else None
        if need is None or (via is not None and rule.factors[via.factor].shardable):
            before = rule.to_split(rule.operands[0], via) if via is not None else None
            views.setdefault((names[0], before), {})[op.name] = via, values[made].numel
    for item in analysis.program.inputs:
        settle(item.value)
    return found


def resolve(analysis: Analysis, decision: Decision) -> tuple[str, Split]:
    """The value and split that a decision names; batch paths and parameter names included."""
    program = analysis.program
    by_path = {item.path: item.value for item in program.inputs}
    name = by_path.get(decision.value, decision.value)
    value = program.values.get(name)
    if value is None:
        raise PlanError(
            f"The plan decides on '{decision.value}', which this model does not have.",
            "The plan was made for another model or another version of it; plan again.",
        )
    if not 0 <= decision.dim < len(value.shape):
        raise PlanError(
            f"The plan shards dim {decision.dim} of {decision.value}, whose shape is "
            f"{list(value.shape)}.",
            "Correct the dim in the plan, or plan again.",
        )
    size = value.shape[decision.dim]
    outer = decision.outer
    extent = decision.extent if decision.extent is not None else size // max(outer, 1)
    if extent < 1 or outer < 1 or size % (outer * extent):
        raise PlanError(
            f"The plan views dim {decision.dim} of {decision.value} (size {size}) as "
            f"[{decision.outer}, {extent}, …], which does not divide it.",
            "Correct outer and extent in the plan, or plan again.",
        )
    if decision.owner is not None:
        return name, Split(decision.dim, 1, 1, decision.owner)
    return name, Split(decision.dim, decision.outer, extent)


def _store(
    analysis: Analysis,
    mesh: Mesh,
    wanted: Mapping[str, Mapping[str, Split]],
    parameters: Mapping[str, ParameterPlan],
) -> dict[str, Parameter]:
    found = {}
    for item in analysis.program.inputs_of("parameter"):
        shape = analysis.program.values[item.value].shape
        compute = Layout(
            tuple(
                (axis, wanted[axis][item.value])
                for axis in mesh.names
                if item.value in wanted[axis]
            )
        )
        plan = parameters.get(item.path, ParameterPlan())
        storage = compute
        if plan.storage_dim is not None and not 0 <= plan.storage_dim < len(shape):
            raise PlanError(
                f"The plan stores {item.path} cut along dim {plan.storage_dim}, but its shape is "
                f"{list(shape)}.",
                "Correct storage_dim in the plan, or plan again.",
            )
        for number, axis in enumerate(plan.storage_axes):
            if axis not in mesh.names:
                raise PlanError(
                    f"The plan stores {item.path} over the axis '{axis}', but its mesh has "
                    f"{', '.join(mesh.names)}.",
                    "Correct storage_axes in the plan, or plan again.",
                )
            if storage.split(axis) is None:
                later = prod(
                    mesh.extent(name)
                    for name in plan.storage_axes[number + 1 :]
                    if name in mesh.names and storage.split(name) is None
                )
                split = storage_split(shape, storage, mesh, axis, plan.storage_dim, later)
                if split is not None:
                    storage = ordered(storage.with_shard(axis, split), mesh)
        found[item.path] = Parameter(item.path, item.value, compute, storage, plan.residency)
    return found


def storage_split(
    shape: tuple[int, ...],
    layout: Layout,
    mesh: Mesh,
    axis: str,
    dim: int | None = None,
    later: int = 1,
) -> Split | None:
    """Where a parameter laid out as `layout` is cut further to be stored over `axis`.

    The first dim that divides evenly is taken, else the largest one, unevenly. later: into
    how many parts further axes will cut it: what this axis leaves is a dim of its own for
    them where it can be, so that each can be gathered and reduced before the others.
    None for a scalar, or one whose every dim is of size 1.
    """
    parts = mesh.extent(axis)
    options: list[Split] = []
    for position, size in enumerate(shape):
        if size == 1 or (dim is not None and position != dim):
            continue
        cuts = [split for _, split in layout.shards if split.dim == position]
        if not cuts:
            options.append(Split(position, 1, size))
            continue
        inner = max(cuts, key=lambda split: split.outer * split.extent)
        minor = size // (inner.outer * inner.extent)
        if minor > 1:
            options.append(Split(position, inner.outer * inner.extent, minor))
    if not options:
        return None
    if later > 1 and parts > 1:
        for split in options:
            if split.extent % (parts * later) == 0:
                return replace(split, extent=parts)
    even = [split for split in options if split.extent % parts == 0]
    return even[0] if even else max(options, key=lambda split: split.extent)


__all__ = ["REPLICATED", "Assignment", "Parameter", "assign", "own_ops", "resolve", "storage_split"]
