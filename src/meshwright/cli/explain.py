"""`meshwright explain`: what a plan file decides, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output

if TYPE_CHECKING:
    from meshwright.plan.types import Plan

_NAMES = 6  # parameters shown of each kind


def explain(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", show_default=False)],
    value: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Say only how this parameter or batch leaf lies."),
    ] = None,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Say what a plan decides and why; needs no model and no PyTorch."""
    from meshwright.plan.file import load_plan

    with Output(json) as out:
        plan = load_plan(plan_file)
        out.emit(_value(plan, value, out) if value is not None else _whole(plan, out))


def _whole(plan: Plan, out: Output) -> dict[str, Any]:
    from rich.markup import escape

    from meshwright.cli.as_json import plan_json
    from meshwright.cli.show import heading, indented, parts, plan_view, table
    from meshwright.plan.explain import decisions, residencies
    from meshwright.plan.text import nbytes

    decided, kept = decisions(plan), residencies(plan)
    cuts = table("axis", "value", "cut along", "why", wrap=("value", "why"))
    for item in decided:
        times = f" ({item.count} times)" if item.count > 1 else ""
        cuts.add_row(item.axis, escape(item.value) + times, escape(item.cut), escape(item.why))
    parameters = table("", "kept", "names", right=("",), wrap=("kept", "names"))
    for group in kept:
        more = f" and {len(group.names) - _NAMES} more" if len(group.names) > _NAMES else ""
        over = f", over {', '.join(group.axes)}" if group.axes else ""
        parameters.add_row(
            str(group.count), group.meaning + over, escape(", ".join(group.names[:_NAMES])) + more
        )
    out.print(
        plan_view(plan),
        heading("Sharded over the mesh, with all that has to be sharded alike"),
        indented(cuts if decided else "nothing"),
        heading("Parameters"),
        indented(parameters),
        heading(f"Memory at its peak, {nbytes(plan.predicted.peak_memory_bytes)} a device"),
        indented(parts(plan.predicted.memory)),
    )
    return plan_json(plan) | {
        "decisions": [item.model_dump() for item in plan.decisions],
        "residencies": [
            {"residency": item.residency, "axes": item.axes, "count": item.count,
             "names": item.names}
            for item in kept
        ],
    }  # fmt: skip


def _value(plan: Plan, name: str, out: Output) -> dict[str, Any]:
    from meshwright.cli.show import facts
    from meshwright.plan.explain import cut_text, lies
    from meshwright.plan.text import RESIDENCY_TEXT

    found = lies(plan, name)
    rows = [("cut", f"{cut} over {axis}") for axis, _, cut in found.cuts]
    for item in found.goes_with:
        cut = cut_text(item.dim, item.outer, item.extent, item.owner)
        rows.append(("goes with", f"{item.value}, {cut} of which is cut over {item.axis}"))
    if found.kept is not None:
        over = f" over {', '.join(found.kept.storage_axes)}" if found.kept.storage_axes else ""
        rows.append(("kept", RESIDENCY_TEXT[found.kept.residency] + over))
    if found.replicated_over:
        rows.append(("otherwise", f"the same along {', '.join(found.replicated_over)}, unless it "
                     "has to follow a value that is cut there"))  # fmt: skip
    out.print(f"[bold]{name}[/]", facts(rows))
    return {
        "name": name,
        "cuts": [{"axis": axis, "dim": dim, "cut": cut} for axis, dim, cut in found.cuts],
        "goes_with": [item.model_dump() for item in found.goes_with],
        "residency": found.kept.residency if found.kept else None,
        "storage_axes": found.kept.storage_axes if found.kept else [],
        "mesh": dict(plan.mesh),
    }
