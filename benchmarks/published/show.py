"""The result as tables for people, 80 columns wide."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

_WORST = 5


def show(found: dict[str, Any], console: Console | None = None) -> None:
    console = console or Console(width=80)
    table = Table(title="Fully specified rows: predicted beside measured", title_justify="left")
    table.add_column("source", overflow="fold")
    for name in ("step rows", "median", "p90", "rank", "mem. rows", "median"):
        table.add_column(name, justify="right")
    for source, figures in found["sources"].items():
        _line(table, source, figures)
    table.add_section()
    _line(table, "A100 and H100", found["parts"]["a100_h100"])
    _line(table, " fitted on", found["parts"]["a100_h100 fit"])
    _line(table, " held out", found["parts"]["a100_h100 held-out"])
    _line(table, "V100", found["parts"]["v100"])
    _line(table, "all", found["overall"])
    table.add_section()
    _line(table, "with assumptions, all", found["all_predicted"]["overall"])
    console.print(table)

    rows = [row for row in found["rows"] if row["fully_specified"] and row["error"]["step_time"]]
    rows.sort(key=lambda row: -abs(row["error"]["step_time"]))
    worst = Table(title="Farthest off in step time", title_justify="left")
    for name in ("line", "model", "gpu", "strategy"):
        worst.add_column(name, overflow="fold")
    for name in ("measured", "predicted", "error"):
        worst.add_column(name, justify="right")
    for row in rows[:_WORST]:
        worst.add_row(
            str(row["line"]), row["model"], row["gpu"], row["strategy"],
            f"{row['measured']['step_time_s']:.3g} s", f"{row['predicted']['step_time_s']:.3g} s",
            f"{row['error']['step_time']:+.0%}",
        )  # fmt: skip
    console.print(worst)

    reasons = Counter(item["reason"] for item in found["skipped"])
    left = Table(title=f"{len(found['skipped'])} rows not predicted", title_justify="left")
    left.add_column("rows", justify="right")
    left.add_column("reason", overflow="fold")
    for reason, count in reasons.most_common():
        left.add_row(str(count), reason)
    console.print(left)


def _line(table: Table, name: str, figures: dict[str, Any]) -> None:
    step, memory = figures["step_time"], figures["memory"]
    table.add_row(
        name, str(step["count"]), _percent(step["median"]), _percent(step["p90"]),
        "" if step["rank"] is None else f"{step['rank']:.2f}",
        str(memory["count"]), _percent(memory["median"]),
    )  # fmt: skip


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def markdown(found: dict[str, Any]) -> str:
    """The figures as the table of docs/internals/published.md."""
    lines = [
        "| Source | Step times | Median | 90th percentile | Rank | Memory figures | Median |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    parts = found["parts"]
    rows = [
        *found["sources"].items(),
        ("**A100 and H100**", parts["a100_h100"]),
        ("of these, fitted on", parts["a100_h100 fit"]),
        ("of these, held out", parts["a100_h100 held-out"]),
        ("**V100**", parts["v100"]),
        ("**all fully specified**", found["overall"]),
        ("with assumptions as well", found["all_predicted"]["overall"]),
    ]
    for name, figures in rows:
        step, memory = figures["step_time"], figures["memory"]
        cells = (
            name, step["count"], _percent(step["median"]), _percent(step["p90"]),
            "" if step["rank"] is None else f"{step['rank']:.2f}",
            memory["count"] or "", _percent(memory["median"]),
        )  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)
