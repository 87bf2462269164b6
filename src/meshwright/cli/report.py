"""`meshwright report`: the page of a run, from what the run wrote."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output
from meshwright.errors import UsageError

if TYPE_CHECKING:
    from meshwright.report.data import MemoryPoint, ReportData
    from meshwright.simulate.types import Simulation

_MOST_POINTS = 400


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)],
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Write a run's report.html anew, from its plan, metrics and summary."""
    with Output(json) as out:
        missing = write_run_report(run)
        for name in missing:
            out.note(f"{run / name} is missing or damaged; the report does without it.")
        out.print(f"Written to {run / 'report.html'}")
        out.emit({"report": str(run / "report.html"), "missing": missing})


def write_run_report(run: Path) -> list[str]:
    """Write `run/report.html`; the files that it had to do without."""
    from meshwright.report.page import write_report

    data, missing = run_data(run)
    write_report(run / "report.html", data)
    return missing


def run_data(run: Path) -> tuple[ReportData, list[str]]:
    """What the page of a run shows, and the names of files that could not be read.

    Raises UsageError when there is no run in the folder, PlanError when its plan is damaged.
    """
    from meshwright.plan.file import load_plan
    from meshwright.report.data import Measured, MemoryPoint, ReportData

    if not run.is_dir():
        raise UsageError(
            f"There is no run folder {run}.", "Give a folder that `meshwright train` wrote."
        )
    if not (run / "plan.json").is_file():
        raise UsageError(
            f"{run} is no run's folder: it holds no plan.json.",
            "Give a folder that `meshwright train` wrote, such as runs/gpt-20260101-120000.",
        )
    plan = load_plan(run / "plan.json")
    metrics = _metrics(run / "metrics.jsonl")
    summary = _summary(run / "summary.json")
    missing = [
        name
        for name, found in (("metrics.jsonl", metrics), ("summary.json", summary))
        if found is None
    ]
    summary = summary or {}
    step_time_s = summary.get("step_time_s", {}).get("measured")
    measured = None
    if step_time_s:
        rate = plan.predicted.tokens_per_s
        measured = Measured(
            step_time_s=step_time_s,
            peak_memory_bytes=summary["peak_memory_bytes"]["measured"] or 0,
            tokens_per_s=rate * plan.predicted.step_time_s / step_time_s if rate else None,
            collectives=summary["collectives"]["executed"],
            rows=summary.get("rows", ()),
        )
    data = ReportData(
        title=f"{plan.model} on {plan.cluster}",
        plan=plan,
        # A run that was resumed in its folder has logged some steps twice.
        losses=tuple({int(line["step"]): float(line["loss"]) for line in metrics or ()}.items()),
        measured=measured,
        memory_curve=tuple(
            MemoryPoint.model_validate(point) for point in summary.get("memory_curve", ())
        ),
        measured_memory_curve=tuple(
            MemoryPoint(label="measured", bytes=max(0, size), at_s=at)
            for at, size in summary.get("measured_memory_curve", ())
        ),
        memory_limit_bytes=summary.get("memory_limit_bytes"),
    )
    return data, missing


def predicted_curve(simulation: Simulation) -> tuple[MemoryPoint, ...]:
    """The simulated memory over the step, thinned with its peaks kept."""
    from meshwright.report.data import MemoryPoint

    points = [
        MemoryPoint(label=point.label, bytes=point.bytes, at_s=event.start_s)
        for point, event in zip(simulation.curve, simulation.events, strict=False)
    ]
    step = max(1, -(-len(points) // _MOST_POINTS))
    windows = (points[k : k + step] for k in range(0, len(points), step))
    return tuple(max(window, key=lambda point: point.bytes) for window in windows)


def _metrics(path: Path) -> list[dict[str, Any]] | None:
    """The lines of the log; a last line that was cut short is left out."""
    lines = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            content = jsonlib.loads(line)
            if isinstance(content, dict) and {"step", "loss"} <= content.keys():
                lines.append(content)
    except (OSError, ValueError):
        return lines or None
    return lines


def _summary(path: Path) -> dict[str, Any] | None:
    """None also when it lacks what every summary has."""
    needed = ("step_time_s", "peak_memory_bytes", "collectives")
    try:
        content = jsonlib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or any(
        not isinstance(content.get(key), dict) for key in needed
    ):
        return None
    return content
