"""How an op's results lie, given the factors that it is cut along."""

from __future__ import annotations

from collections.abc import Mapping

from meshwright.cluster.mesh import Mesh
from meshwright.layout.types import REPLICATED, Layout
from meshwright.program.types import Op
from meshwright.rules.types import FactorCut, OpRule


def pending_through(
    rule: OpRule, layouts: list[Layout], chosen: Mapping[str, object]
) -> frozenset[str]:
    """Axes on which the operands' pending sums pass through the op."""
    if rule.linear == "none" or not layouts or not layouts[0].partial:
        return frozenset()
    involved = layouts if rule.linear == "joint" else layouts[:1]
    if rule.linear == "joint" and rule.linear_operands is not None:
        involved = [layouts[position] for position in rule.linear_operands]
    return frozenset(
        axis
        for axis, reduce in layouts[0].partial
        if reduce == "sum"
        and axis not in chosen
        and all(layout.reduction(axis) == "sum" for layout in involved)
    )


def result_layouts(
    op: Op,
    rule: OpRule,
    mesh: Mesh,
    chosen: Mapping[str, FactorCut],
    kept: frozenset[str],
) -> tuple[Layout | None, ...]:
    """The layout of each result; None for one that the rule or the op leaves out.

    chosen: for each axis, the factor that the op is cut along.
    kept: axes on which the operands' pending sums pass through.
    """
    found: list[Layout | None] = []
    for position, dims in enumerate(rule.results):
        if dims is None or op.results[position] is None:
            found.append(None)
            continue
        layout = REPLICATED
        for axis in mesh.names:
            if axis in kept:
                layout = layout.with_partial(axis, "sum")
            cut = chosen.get(axis)
            if cut is None:
                continue
            split = rule.to_split(dims, cut)
            if split is not None:
                layout = layout.with_shard(axis, split)
            elif rule.reduces(position, cut.factor):
                combine = rule.factors[cut.factor].combine
                assert combine is not None
                layout = layout.with_partial(axis, combine)
        found.append(layout)
    return tuple(found)
