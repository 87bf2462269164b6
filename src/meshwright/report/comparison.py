"""Strategies side by side: which of them no other beats in both time and memory, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meshwright.errors import UsageError
from meshwright.plan.types import Prediction, Record
from meshwright.report import units
from meshwright.report.page import page

__all__ = ["Compared", "Comparison", "on_front", "render_comparison", "write_comparison"]


class Compared(Record):
    """One strategy. `predicted` is None where it can't be laid out; `reason` says why, or by
    how much it does not fit. `chosen` is what `auto` found; `hurried`: its time was over first."""

    strategy: str
    fits: bool
    predicted: Prediction | None = None
    microbatches: int = 1
    reason: str = ""
    chosen: str = ""
    hurried: bool = False


class Comparison(Record):
    title: str
    memory_limit_bytes: int
    rows: tuple[Compared, ...]


def on_front(rows: Sequence[Compared]) -> list[bool]:
    """For each row, whether it fits and none that fits is better in time and in memory.

    Of rows that are equal in both, the first is on the front.
    """
    found = []
    for index, row in enumerate(rows):
        mine = row.predicted
        found.append(
            row.fits
            and mine is not None
            and not any(
                other.fits and other.predicted and _beats(other.predicted, mine, place < index)
                for place, other in enumerate(rows)
                if place != index
            )
        )
    return found


def _beats(other: Prediction, mine: Prediction, earlier: bool) -> bool:
    theirs = other.step_time_s, other.peak_memory_bytes
    own = mine.step_time_s, mine.peak_memory_bytes
    if theirs == own:
        return earlier
    return theirs[0] <= own[0] and theirs[1] <= own[1]


def write_comparison(path: str | Path, data: Comparison) -> None:
    """Write the page to `path`. Raises UsageError when nothing can be written there."""
    path = Path(path)
    text = render_comparison(data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"The comparison could not be written to {path}: {error.strerror}.",
            "Give a path in a folder that you may write to.",
        ) from error


def render_comparison(data: Comparison) -> str:
    """One HTML file that needs no network; the same data always give the same text."""
    front = on_front(data.rows)
    best = next((r for r in _by_time(data.rows) if r.fits), None)
    auto = next((r for r in data.rows if r.chosen), None)
    slowest = max((r.predicted.step_time_s for r in data.rows if r.predicted), default=1.0) or 1.0
    order = {id(row): on for row, on in zip(data.rows, front, strict=True)}
    rows = [
        {
            "strategy": row.strategy,
            "chosen": row.chosen,
            "best": row is best,
            "front": order[id(row)],
            "fits": row.fits,
            "possible": row.predicted is not None,
            "microbatches": row.microbatches,
            "reason": row.reason,
            **_figures(row.predicted, slowest),
        }
        for row in _by_time(data.rows)
    ]
    return page(
        "comparison.html.j2",
        {
            "title": data.title,
            "rows": rows,
            "limit": units.memory(data.memory_limit_bytes),
            "fitting": sum(row.fits for row in data.rows),
            "count": len(data.rows),
            "on_front": sum(front),
            "best": best,
            "auto": auto,
            "charts": {"front": _chart(data, front)},
        },
    )


def _by_time(rows: Sequence[Compared]) -> list[Compared]:
    """Those that fit first, the quickest first, those that can't be laid out last."""
    return sorted(
        rows,
        key=lambda row: (
            not row.fits, row.predicted is None,
            row.predicted.step_time_s if row.predicted else 0.0, not row.chosen,
        ),
    )  # fmt: skip


def _figures(predicted: Prediction | None, slowest: float) -> dict[str, Any]:
    if predicted is None:
        nothing = units.NOT_KNOWN
        return {"time": nothing, "share": 0, "memory": nothing, "collectives": nothing}
    return {
        "time": units.duration(predicted.step_time_s),
        "share": 100 * predicted.step_time_s / slowest,
        "memory": units.memory(predicted.peak_memory_bytes),
        "collectives": f"{units.count(sum(c.count for c in predicted.collectives))} · "
        f"{units.memory(sum(c.bytes for c in predicted.collectives))}",
    }


def _chart(data: Comparison, front: Sequence[bool]) -> dict[str, Any]:
    def point(row: Compared) -> dict[str, Any]:
        assert row.predicted is not None
        said = row.predicted
        name = f"{row.strategy}: {row.chosen}" if row.chosen else row.strategy
        return {"x": said.peak_memory_bytes, "y": said.step_time_s, "name": name}

    pairs = [(r, on) for r, on in zip(data.rows, front, strict=True) if r.predicted is not None]
    best = [point(row) for row, on in pairs if on]
    return {
        "front": sorted(best, key=lambda item: item["x"]),
        "behind": [point(row) for row, on in pairs if row.fits and not on],
        "unfit": [point(row) for row, _ in pairs if not row.fits],
        "auto": [point(row) for row, _ in pairs if row.chosen],
        "limit": data.memory_limit_bytes,
    }
