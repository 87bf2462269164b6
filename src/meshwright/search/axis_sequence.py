"""Decisions of the `sequence` axis."""

from __future__ import annotations

from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis
from meshwright.plan.types import Decision


def decisions(analysis: Analysis, parts: int, axis: str = "tensor") -> list[Decision]:
    raise StrategyError(
        f"Nothing in this model can be cut over a tensor axis of {parts} devices.",
        "Use another strategy.",
    )
