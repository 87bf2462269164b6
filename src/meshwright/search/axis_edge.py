"""Decisions of the `edge` axis."""

from __future__ import annotations

from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis
from meshwright.plan.types import Decision


def decisions(analysis: Analysis, parts: int) -> list[Decision]:
    raise StrategyError(
        f"Nothing in this model can be cut over an edge axis of {parts} devices.",
        "Use another strategy.",
    )
