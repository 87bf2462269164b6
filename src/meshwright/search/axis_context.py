"""Decisions of the `context` axis: the sequence is cut, attention included."""

from __future__ import annotations

from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis
from meshwright.layout.types import Split
from meshwright.plan.types import Decision
from meshwright.search.sequence_groups import Tokens, token_groups


def decisions(analysis: Analysis, parts: int, attention: str | None = None) -> list[Decision]:
    """One decision a sequence; `attention` is `gather` (also None's meaning) or `ring`.

    A causal sequence is dealt out in stripes where its length allows, so that all
    devices have the same work. Raises StrategyError when no sequence can be cut.
    """
    found = [item for item in token_groups(analysis) if item.split.extent >= parts]
    if not found:
        short = token_groups(analysis)
        raise StrategyError(
            f"The longest sequence of this model has {max(t.split.extent for t in short)} "
            f"positions, too few for a context axis of {parts} devices."
            if short
            else "This model has no sequence that a context axis could cut: no attention or "
            "token embedding with positions along a dim of its own.",
            "Use a smaller context axis, or the data and tensor axes.",
        )
    return [_decision(analysis, item, parts, attention) for item in found]


def _decision(analysis: Analysis, item: Tokens, parts: int, attention: str | None) -> Decision:
    striped = _striped(analysis, item, parts)
    if striped is not None:
        way = "queries striped"
    elif item.causal:
        way = f"queries in contiguous parts, later ones with more work ({_unstriped(item, parts)})"
    else:
        way = "queries in contiguous parts"
    keys = "passed round a ring" if attention == "ring" else "gathered"
    name = {i.value: i.path for i in analysis.program.inputs}.get(item.value, item.value)
    split = striped or item.split
    return Decision(
        axis="context", value=name, dim=split.dim, outer=split.outer,
        extent=split.extent if striped else None,
        attention="ring" if attention == "ring" else "gather",
        why=f"context over {parts}: keys and values {keys}, {way}",
    )  # fmt: skip


def _unstriped(item: Tokens, parts: int) -> str:
    size = item.split.extent
    if size % parts:
        return f"{size} positions are no multiple of {parts}"
    return "stripes would not reach all of the model"


def _striped(analysis: Analysis, item: Tokens, parts: int) -> Split | None:
    """Position i on device i mod `parts`, if the whole group can be cut so."""
    size = item.split.extent
    if not item.causal or size % parts or size == parts:
        return None
    split = Split(item.split.dim, size // parts, parts)
    group = analysis.group(item.value, split)
    return split if group.cuts.keys() >= item.group.cuts.keys() else None
