"""Decisions of `sequence`: what tensor parallelism leaves whole lies cut along the sequence.

As in Korthikanti et al., "Reducing activation recomputation in large transformer
models" (2022): norms, dropout and residuals between two cut products hold a part of
the positions each, and every all_reduce becomes a reduce_scatter and an all_gather.
"""

from __future__ import annotations

from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis
from meshwright.plan.types import Decision
from meshwright.search.sequence_groups import token_groups


def decisions(analysis: Analysis, parts: int, axis: str = "tensor") -> list[Decision]:
    """Decisions beside those of tensor parallelism, which keep the ops that they cut.

    Raises StrategyError when the model has no sequence of at least `parts` positions.
    """
    names = {item.value: item.path for item in analysis.program.inputs}
    found = [item for item in token_groups(analysis) if item.split.extent >= parts]
    if not found:
        raise StrategyError(
            f"This model has no sequence of {parts} positions or more that could lie cut over "
            "the tensor axis.",
            "Leave 'sequence' out of the strategy.",
        )
    return [
        Decision(
            axis=axis, value=names.get(item.value, item.value), dim=item.split.dim, beside=True,
            why=f"between cut products, activations lie cut along the sequence over {parts}",
        )
        for item in found
    ]  # fmt: skip
