"""Where a step's time goes: each op family and collective, predicted beside measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from meshwright.cli.show import indented, table
from meshwright.plan.text import seconds
from meshwright.report.units import deviation

if TYPE_CHECKING:
    from meshwright.cluster.types import Profile
    from meshwright.runtime.steptrace import Spent

_MOST_SHOWN = 10
_WORST = 3
_LEAST_S = 1e-9  # less is what rounding left
_TINY = 0.01  # of the step: what differs by less is named nowhere


def contention_of(profile: Profile | None) -> float:
    """Seconds by the clock for each of the processor's, as the profile has it."""
    return profile.fitted.contention if profile is not None and profile.fitted is not None else 1.0


def step_rows(
    expected: Mapping[str, Spent], results: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """JSON's form, the longest first; empty where no step was traced.

    `results` are the processes', whose mean is taken.
    """
    traced = [result["rows"] for result in results if result.get("rows")]
    if not traced:
        return []
    rows = []
    for name in {*expected, *(key for rows in traced for key in rows)}:
        times, predicted_s = expected.get(name, (0, 0.0))
        measured_s = sum(float(rows.get(name, (0, 0.0))[1]) for rows in traced) / len(traced)
        rows.append(
            {"name": name, "times": times, "predicted_s": predicted_s, "measured_s": measured_s}
        )
    return sorted(rows, key=lambda row: -max(row["predicted_s"], row["measured_s"]))


def worst_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are furthest off in seconds, a hundredth of the step at least."""
    whole_s = sum(row["measured_s"] for row in rows)
    far = [row for row in rows if abs(_difference(row)) > _TINY * whole_s]
    return sorted(far, key=lambda row: -abs(_difference(row)))[:_WORST]


def worst_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence that names the worst deviations; empty where there are none."""
    worst = worst_rows(rows)
    if not worst:
        return ""
    parts = [
        f"{row['name']} ({seconds(abs(_difference(row)))} "
        f"{'more' if _difference(row) > 0 else 'less'} than predicted)"
        for row in worst
    ]
    return f"Furthest off: {', '.join(parts)}."


def rows_view(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The table of a terminal; the smallest rows are added up."""
    made = table(
        "", "times", "predicted", "measured", "deviation",
        right=("times", "predicted", "measured", "deviation"),
    )  # fmt: skip
    for row in rows[:_MOST_SHOWN]:
        made.add_row(escape(row["name"]), str(row["times"]), *_cells(row))
    if len(rows) > _MOST_SHOWN:
        others = _sum(rows[_MOST_SHOWN:])
        made.add_row(f"{len(rows) - _MOST_SHOWN} others", str(others["times"]), *_cells(others))
    worst = worst_text(rows)
    return Group(indented(made), *([indented(Text(worst))] if worst else []))


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    predicted, measured = row["predicted_s"], row["measured_s"]
    off = deviation(measured, predicted) if predicted > _LEAST_S else "-"
    return seconds(predicted), seconds(measured), off


def _sum(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total = {"times": 0, "predicted_s": 0.0, "measured_s": 0.0}
    for row in rows:
        for key in total:
            total[key] += row[key]
    return total


def _difference(row: Mapping[str, Any]) -> float:
    found: float = row["measured_s"] - row["predicted_s"]
    return found
