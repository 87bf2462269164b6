"""`meshwright explain`: what a plan file decides, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from meshwright.cli import options as given
from meshwright.cli.output import Output

if TYPE_CHECKING:
    from rich.table import Table

    from meshwright.plan.explain import Spent
    from meshwright.plan.types import Choice, Plan

_NAMES = 6  # parameters shown of each kind
_COLLECTIVES = 10  # rows shown, the costliest


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
    from meshwright.cli.show import facts, heading, indented, parts, plan_view, table
    from meshwright.plan.explain import decisions, residencies, spent, spent_by_axis, standing
    from meshwright.plan.text import nbytes, seconds

    decided, kept = decisions(plan), residencies(plan)
    for_axis = spent_by_axis(plan)
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
    known = any(item.seconds is not None for item in plan.origins)
    costs = [
        (axis, f"{seconds(total)} of collectives a step, hidden or not" if total
         else "no collectives" if known or not plan.origins else "not known")
        for axis, total in for_axis.items()
    ]  # fmt: skip
    out.print(
        plan_view(plan),
        *([heading("The search"), facts(standing(plan))] if standing(plan) else []),
        heading("Sharded over the mesh, with all that has to be sharded alike"),
        indented(cuts if decided else "nothing"),
        heading("What each axis costs"),
        facts(costs) if costs else indented("nothing"),
        *([indented(_spent(spent(plan)[:_COLLECTIVES]))] if plan.origins else []),
        *(
            [heading("What else there was"), indented(_choices(plan.choices))]
            if plan.choices
            else []
        ),
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
        "seconds_by_axis": for_axis,
        "origins": [item.model_dump() for item in plan.origins],
    }  # fmt: skip


def _spent(rows: Sequence[Spent]) -> Table:
    from rich.markup import escape

    from meshwright.cli.show import table
    from meshwright.plan.text import nbytes, seconds

    made = table(
        "module", "part", "kind", "axis", "count", "bytes", "time",
        right=("count", "bytes", "time"), wrap=("module",),
    )  # fmt: skip
    for row in rows:
        made.add_row(
            escape(row.module), row.part, row.kind, row.axis, str(row.count), nbytes(row.bytes),
            "-" if row.seconds is None else seconds(row.seconds),
        )  # fmt: skip
    return made


def _choices(choices: Sequence[Choice]) -> Table:
    """What was decided, the second best, and by how much that is worse; likes together."""
    from rich.markup import escape

    from meshwright.cli.show import table
    from meshwright.plan.explain import choice_text

    made = table(
        "decided", "chosen", "next best", "with it", wrap=("decided", "chosen", "next best")
    )
    for item in choices:
        made.add_row(
            escape(item.subject), escape(item.chosen), escape(item.second or "-"),
            escape(choice_text(item) if item.second else "nothing else left"),
        )  # fmt: skip
    return made


def _value(plan: Plan, name: str, out: Output) -> dict[str, Any]:
    from meshwright.cli.show import facts, heading, indented
    from meshwright.plan.explain import choices_about, lies, spent_in
    from meshwright.plan.text import RESIDENCY_TEXT, cut_text

    found, about, costs = lies(plan, name), choices_about(plan, name), spent_in(plan, name)
    rows = []
    for axis, _, cut in found.cuts:
        rows.append(("whole", f"over {axis}") if cut == "stays whole"
                    else ("cut", f"{cut} over {axis}"))  # fmt: skip
    for item in plan.decisions:
        if item.subject == name and item.why:
            rows.append(("why", item.why))
    for item in found.goes_with:
        cut = cut_text(item.dim, item.outer, item.extent, item.owner)
        rows.append(("goes with", f"{item.value}, {cut} of which is cut over {item.axis}"))
    if found.kept is not None:
        over = f" over {', '.join(found.kept.storage_axes)}" if found.kept.storage_axes else ""
        rows.append(("kept", RESIDENCY_TEXT[found.kept.residency] + over))
    if found.replicated_over:
        rows.append(("otherwise", f"the same along {', '.join(found.replicated_over)}, unless it "
                     "has to follow a value that is cut there"))  # fmt: skip
    out.print(Text(name, style="bold"), facts(rows))
    if about:
        out.print(heading("What else there was"), indented(_choices(about)))
    if costs:
        out.print(heading("Collectives of its module"), indented(_spent(costs)))
    return {
        "name": name,
        "cuts": [{"axis": axis, "dim": dim, "cut": cut} for axis, dim, cut in found.cuts],
        "goes_with": [item.model_dump() for item in found.goes_with],
        "residency": found.kept.residency if found.kept else None,
        "storage_axes": found.kept.storage_axes if found.kept else [],
        "mesh": dict(plan.mesh),
        "choices": [item.model_dump() for item in about],
        "collectives": [vars(item) for item in costs],
    }
