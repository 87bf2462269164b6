"""Decisions on single ops: how one op is cut, said by a dim of what it uses or makes."""

from __future__ import annotations

from collections.abc import Iterator

from meshwright.errors import PlanError
from meshwright.layout.groups import Analysis
from meshwright.layout.types import Split
from meshwright.plan.types import Decision
from meshwright.program.types import Op
from meshwright.rules.types import Dims, FactorCut


def cut_of(
    analysis: Analysis, decision: Decision, value: str, split: Split, parts: int
) -> tuple[str, FactorCut | None]:
    """(the op's name, its cut) of a decision on one op; None for one that is not cut.

    value, split: what the decision names. Raises PlanError where the op is not there, does
    not have that value, or can't be cut so.
    """
    op = analysis.made_by.get(decision.op or "")
    if op is None:
        raise PlanError(
            f"The plan decides on the op that makes '{decision.op}', which this model does not "
            "have.",
            "The plan was made for another model or another version of it; plan again.",
        )
    if decision.fixed == "whole":
        return op.name, None
    rule = analysis.rules[op.name]
    for name, dims in _places(analysis, op):
        cut = rule.to_factor(dims, split, parts) if name == value else None
        if cut is not None and rule.factors[cut.factor].shardable:
            return op.name, cut
    raise PlanError(
        f"The plan cuts the op that makes {decision.op} along dim {decision.dim} of "
        f"{decision.value}, which it can't be cut along.",
        "Correct the decision in the plan, or plan again.",
    )


def decision_on(
    analysis: Analysis, op: Op, axis: str, cut: FactorCut | None, parts: int, why: str
) -> Decision:
    """What `cut_of` reads as `op` cut by `cut` over an axis of so many devices.

    By a dim of a result where that holds the factor, else of a parameter, else of another
    operand. Raises PlanError for a cut that no dim tells.
    """
    made = next(name for name in op.results if name is not None)
    if cut is None:
        return Decision(axis=axis, value=made, dim=0, fixed="whole", op=made, why=why)
    program, rule = analysis.program, analysis.rules[op.name]
    paths = {item.value: item.path for item in program.inputs if item.kind != "tangent"}
    places = list(_places(analysis, op))
    places.sort(key=lambda place: place[0] not in op.results and place[0] not in paths)
    for name, dims in places:
        split = rule.to_split(dims, cut)
        if split is None:
            continue
        size = program.values[name].shape[split.dim]
        plain = split.outer == 1 and split.extent == size
        found = Decision(
            axis=axis, value=paths.get(name, name), dim=split.dim, outer=split.outer,
            extent=None if plain else split.extent, op=made, why=why,
        )  # fmt: skip
        if cut_of(analysis, found, name, split, parts) == (op.name, cut):
            return found
    raise PlanError(
        f"No dim of what {op.name} uses or makes says that it is cut by {cut}.",
        "Leave its cut to what it uses.",
    )


def _places(analysis: Analysis, op: Op) -> Iterator[tuple[str, Dims]]:
    """What an op makes and uses, results first, with their dims in its rule."""
    rule = analysis.rules[op.name]
    for name, made in zip(op.results, rule.results, strict=True):
        if name is not None and made is not None:
            yield name, made
    yield from zip(analysis.operands[op.name], rule.operands, strict=True)
