"""Sums of terms of which only some are pending: they are reduced once, at the end of the sum.

A gradient that adds up over several uses of a value comes as a chain of additions,
whole and pending terms mixed. Where the result of an addition goes to another
addition alone, its whole operand becomes a term as well (held by the first device of
the axis, zeros elsewhere), and the chain is reduced when it is complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshwright.layout.assignment import Assignment
from meshwright.layout.groups import Analysis
from meshwright.layout.types import Layout
from meshwright.lower.builder import Builder
from meshwright.lower.shared import first
from meshwright.program.types import Op, Program, Ref, Source

_ADD = "aten.add.Tensor"


def waits(analysis: Analysis, value: str) -> bool:
    """Whether another addition is all that a value goes to."""
    program = analysis.program
    uses = [op for op, _, _ in analysis.touching[value] if value in op.operands()]
    return (
        len(uses) == 1
        and uses[0].target == _ADD
        and len(set(uses[0].operands())) == 2
        and value not in _outputs(program)
    )


def _outputs(program: Program) -> set[str | None]:
    return {program.loss, *program.gradients.values(), *program.buffer_updates.values()}


def deferred(
    analysis: Analysis,
    assignment: Assignment,
    op: Op,
    layouts: Sequence[Layout],
    chosen: Mapping[str, object],
) -> frozenset[str]:
    """Axes over which an addition of pending and whole operands leaves its sum pending."""
    result = op.results[0]
    if op.target != _ADD or result is None or len(layouts) != 2:
        return frozenset()
    axes = {axis for layout in layouts for axis, reduce in layout.partial if reduce == "sum"} - set(
        chosen
    )
    if not axes or not waits(analysis, result):
        return frozenset()
    return frozenset(
        axis
        for axis in axes
        if result not in assignment.wanted.get(axis, {})
        and all(
            layout.split(axis) is None and layout.reduction(axis) in (None, "sum")
            for layout in layouts
        )
    )


def as_term(b: Builder, value: str, axes: frozenset[str], source: Source) -> str:
    """A value as one term of a sum over each of `axes` over which it is not one already."""
    whole = b.whole[value]
    layout = whole.layout
    missing = [axis for axis in axes if layout.reduction(axis) is None]
    if not missing:
        return value
    for axis in missing:
        layout = layout.with_partial(axis, "sum")
    held = b.values[value]
    if not all(first(b.coordinate, axis) for axis in missing):
        return b.fill(0, whole.shape, held.dtype, layout, like=value, source=source)
    return b.emit(
        "aten.alias.default", (Ref(value),), whole.shape, held.dtype, layout,
        like=value, source=source, storage=held.storage,
    )  # fmt: skip
