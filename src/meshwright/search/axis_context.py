"""Decisions of the `context` axis."""

from __future__ import annotations

from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis
from meshwright.plan.types import Decision


def decisions(analysis: Analysis, parts: int, attention: str | None = None) -> list[Decision]:
    raise StrategyError(
        f"Nothing in this model can be cut over a context axis of {parts} devices.",
        "Use another strategy.",
    )
