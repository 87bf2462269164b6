"""Where a step's time goes, as rows of the page: op families and collectives."""

from __future__ import annotations

from typing import NamedTuple

from meshwright.report import units
from meshwright.report.data import ReportData, TimeRow

_WORST = 3
_TINY = 0.01  # of the step


class TimeText(NamedTuple):
    name: str
    times: str
    predicted: str
    measured: str
    deviation: str
    level: str  # good, fair or poor; empty for what hardly counts


def time_rows(data: ReportData) -> list[TimeText]:
    """The longest first; empty when no step was timed op by op."""
    rows = data.measured.rows if data.measured else ()
    whole_s = sum(row.measured_s for row in rows)
    return [_text(row, whole_s) for row in rows]


def times_note(data: ReportData) -> str:
    """Names what is furthest off."""
    rows = data.measured.rows if data.measured else ()
    whole_s = sum(row.measured_s for row in rows)
    far = [row for row in rows if abs(row.measured_s - row.predicted_s) > _TINY * whole_s]
    far.sort(key=lambda row: -abs(row.measured_s - row.predicted_s))
    if not far:
        return "Nothing is further off than a hundredth of the step."
    parts = [
        f"{row.name} ({units.duration(abs(row.measured_s - row.predicted_s))} "
        f"{'more' if row.measured_s > row.predicted_s else 'less'} than predicted)"
        for row in far[:_WORST]
    ]
    return f"Furthest off: {', '.join(parts)}."


def _text(row: TimeRow, whole_s: float) -> TimeText:
    distance = abs(row.measured_s - row.predicted_s)
    level = ""
    if distance > _TINY * whole_s:
        share = distance / row.predicted_s if row.predicted_s else 1.0
        level = "good" if share <= 0.1 else "fair" if share <= 0.25 else "poor"
    return TimeText(
        row.name,
        units.count(row.times),
        units.duration(row.predicted_s),
        units.duration(row.measured_s),
        units.deviation(row.measured_s, row.predicted_s),
        level,
    )
