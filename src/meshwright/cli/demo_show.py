"""What the demo shows: tables in the terminal, the report page, the summary file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from meshwright.cli.step_rows import rows_view
from meshwright.plan.text import nbytes, seconds
from meshwright.plan.types import Collective, Plan, Prediction
from meshwright.report.data import Check, Measured, MemoryPoint, ReportData
from meshwright.report.page import write_report
from meshwright.report.units import deviation
from meshwright.simulate.types import Simulation

_SHOWN = 9


def show_candidates(console: Console, made: Plan) -> None:
    """Candidates with the chosen one marked, and why it was chosen."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="Candidates, per device and step",
        title_justify="left",
        pad_edge=False,
    )
    for head in ("", "strategy", "mesh"):
        table.add_column(head, no_wrap=True)
    for head in ("step time", "peak", "coll.", "bytes"):
        table.add_column(head, justify="right", no_wrap=True)
    rows: list[tuple[str, str, dict[str, int], Prediction]] = [
        ("*", made.strategy, made.mesh, made.predicted)
    ]
    rows += [("", other.strategy, other.mesh, other) for other in made.alternatives[:_SHOWN]]
    for mark, name, mesh, predicted in rows:
        moved = sum(item.bytes for item in predicted.collectives)
        table.add_row(
            mark, name, "x".join(str(size) for size in mesh.values()),
            seconds(predicted.step_time_s), nbytes(predicted.peak_memory_bytes),
            str(sum(item.count for item in predicted.collectives)), f"{moved / 2**20:.1f} MiB",
            style="bold" if mark else "",
        )  # fmt: skip
    console.print(table)
    console.print(made.why)


def show_measured(console: Console, summary: dict[str, Any]) -> None:
    table = Table(
        box=box.SIMPLE_HEAD, title="Predicted and measured", title_justify="left", pad_edge=False
    )
    table.add_column("")
    for head in ("predicted", "measured", "deviation"):
        table.add_column(head, justify="right")
    for name, key, show in (
        ("step time", "step_time_s", seconds),
        ("peak memory per process", "peak_memory_bytes", nbytes),
    ):
        predicted, measured = summary[key]["predicted"], summary[key]["measured"]
        table.add_row(name, show(predicted), show(measured), deviation(measured, predicted))
        if within := summary[key].get("interval"):
            table.add_row("  within the noise", f"{show(within[0])} to {show(within[1])}", "", "")
    counted = summary["collectives"]
    for item in counted["planned"]:
        ran = next(
            (c["count"] for c in counted["executed"]
             if (c["kind"], c["axis"]) == (item["kind"], item["axis"])),
            0,
        )  # fmt: skip
        table.add_row(
            f"{item['kind']} over {item['axis']}", str(item["count"]), str(ran),
            "none" if ran == item["count"] else "differs",
        )  # fmt: skip
    console.print()
    console.print(table)
    if summary.get("rows"):
        console.print("\nWhere a step's time goes", rows_view(summary["rows"]), sep="\n")


def show_checks(console: Console, checks: list[Check]) -> None:
    for check in checks:
        mark = "[green]ok[/]  " if check.ok else "[red]FAIL[/]"
        console.print(f"  {mark} {check.name}: {check.detail}")


def write_page(
    run: Path,
    summary: dict[str, Any],
    checks: list[Check],
    made: Plan,
    simulation: Simulation,
    trained: dict[str, Any],
    alone: list[float],
    executed: tuple[Collective, ...],
    memory_limit_bytes: int,
) -> None:
    """`report.html` and `summary.json` in the run folder."""
    losses = trained["losses"]
    step_s = trained["step_time_s"]
    write_report(
        run / "report.html",
        ReportData(
            title=f"{made.model} on {made.cluster}",
            plan=made,
            losses=tuple((number, loss) for number, loss in enumerate(losses, 1)),
            reference_losses=tuple((number, loss) for number, loss in enumerate(alone, 1)),
            measured=Measured(
                step_time_s=step_s,
                peak_memory_bytes=trained["peak_memory_bytes"],
                tokens_per_s=(made.predicted.tokens_per_s or 0)
                * made.predicted.step_time_s
                / step_s,
                collectives=executed,
                rows=summary.get("rows", ()),
            ),
            memory_curve=predicted_curve(simulation),
            measured_memory_curve=tuple(
                MemoryPoint(label="measured", bytes=max(0, size), at_s=at)
                for at, size in trained["memory_curve"]
            ),
            memory_limit_bytes=memory_limit_bytes,
            checks=tuple(checks),
        ),
    )
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def predicted_curve(simulation: Simulation, most: int = 400) -> tuple[MemoryPoint, ...]:
    """The simulated memory over the step, thinned with its peaks kept."""
    points = [
        MemoryPoint(label=point.label, bytes=point.bytes, at_s=event.start_s)
        for point, event in zip(simulation.curve, simulation.events, strict=False)
    ]
    step = max(1, -(-len(points) // most))
    windows = (points[k : k + step] for k in range(0, len(points), step))
    return tuple(max(window, key=lambda point: point.bytes) for window in windows)
