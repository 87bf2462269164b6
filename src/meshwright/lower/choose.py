"""Which factor an op is cut along, for each axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshwright.layout.assignment import Assignment
from meshwright.layout.cuts import compatible
from meshwright.layout.types import Layout, Split
from meshwright.lower.special_table import CONTIGUOUS
from meshwright.program.types import Op, Value
from meshwright.rules.types import FactorCut, OpRule


def choose(
    op: Op,
    rule: OpRule,
    assignment: Assignment,
    operands: Sequence[str],
    layouts: Sequence[Layout],
    values: Mapping[str, Value],
) -> dict[str, FactorCut]:
    """The cut of each axis of the mesh; an axis that is not a key computes replicas.

    `layouts` are the current ones of the `operands`. What the groups want of the
    results goes first, then how the operands already lie, where the cut that
    leaves most bytes where they are wins.
    """
    chosen: dict[str, FactorCut] = {}
    for axis in assignment.mesh.names:
        wanted = assignment.wanted[axis]
        if not wanted and not any(layout.shards for layout in layouts):
            continue
        parts = assignment.mesh.extent(axis)
        candidates: dict[FactorCut, int] = {}
        for result, dims in zip(op.results, rule.results, strict=True):
            split = wanted.get(result) if result is not None else None
            if split is not None and dims is not None:
                cut = rule.to_factor(dims, split, parts)
                if cut is not None and allowed(rule, cut, parts, chosen):
                    candidates.setdefault(cut, 0)
        if not candidates:
            for name, dims, layout in zip(operands, rule.operands, layouts, strict=True):
                split = layout.split(axis) or wanted.get(name)
                if split is None:
                    continue
                cut = rule.to_factor(dims, split, parts)
                if cut is not None and allowed(rule, cut, parts, chosen):
                    here = values[name].nbytes if layout.split(axis) else 0
                    candidates[cut] = candidates.get(cut, 0) + here
        if candidates:
            chosen[axis] = max(candidates, key=lambda cut: candidates[cut])
    return chosen


def allowed(
    rule: OpRule, cut: FactorCut, parts: int, chosen: Mapping[str, FactorCut] | None = None
) -> bool:
    """Whether an op can be cut so, beside what other axes have chosen."""
    factor = rule.factors[cut.factor]
    if not factor.shardable or (factor.special in CONTIGUOUS and cut.outer != 1):
        return False
    # A result that does without the factor is computed by every device, which must have
    # something to compute it with.
    everywhere = factor.special is None and any(cut.factor == f for _, f in rule.unreduced)
    if everywhere and not Split(0, cut.outer, cut.extent).part(parts - 1, parts)[1]:
        return False
    return all(_fit(cut, other) for other in (chosen or {}).values())


def _fit(one: FactorCut, other: FactorCut) -> bool:
    """Whether two axes can hold both cuts: of other factors, or nested parts of one."""
    return one.factor != other.factor or compatible(
        Split(0, one.outer, one.extent), Split(0, other.outer, other.extent)
    )
