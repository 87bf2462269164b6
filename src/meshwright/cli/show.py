"""Plans, predictions and measurements on a terminal of 80 columns."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from meshwright.plan.text import interval, nbytes, seconds
from meshwright.plan.types import Collective, Plan, Prediction
from meshwright.report.units import deviation
from meshwright.simulate.types import Simulation

MOST_ROWS = 8
_BESIDE_STRATEGY = 54  # columns that figures take


def heading(text: str) -> RenderableType:
    return Text(f"\n{text}", style="bold")


def facts(rows: Iterable[tuple[str, str]]) -> RenderableType:
    """Names and values in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in rows:
        grid.add_row(name, Text(value))
    return indented(grid)


def table(*columns: str, right: Sequence[str] = (), wrap: Sequence[str] = ()) -> Table:
    """A plain table; columns in `right` hold numbers, those in `wrap` may take several lines."""
    made = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True,
        padding=(0, 2, 0, 0), header_style="dim",
    )  # fmt: skip
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column not in wrap,
            overflow="fold" if column in wrap else "ellipsis",
        )
    return made


def stages(found: Simulation) -> RenderableType:
    """Each stage of a pipeline: where it begins, its time and its memory."""
    made = table(
        "", "begins at", "computing", "waiting", "bubble", "peak memory",
        right=("computing", "waiting", "bubble", "peak memory"), wrap=("begins at",),
    )  # fmt: skip
    for number, stage in enumerate(found.stages):
        waiting_s = sum(stage.stalls.values()) - stage.bubble_s
        made.add_row(
            str(number), escape(", ".join(name or "the first op" for name in stage.modules)),
            seconds(stage.compute_s), seconds(waiting_s),
            f"{stage.bubble_s / found.step_time_s:.0%}" if found.step_time_s else "-",
            nbytes(stage.peak_memory_bytes),
        )  # fmt: skip
    return made


def indented(item: RenderableType) -> RenderableType:
    return Padding(item, (0, 0, 0, 2), expand=False)


def mesh_text(mesh: Mapping[str, int]) -> str:
    return " x ".join(f"{name} {size}" for name, size in mesh.items()) or "one device"


def plan_view(plan: Plan) -> RenderableType:
    """The plan in short: figures, why, collectives, what else was considered."""
    predicted = plan.predicted
    cut = f" in {plan.microbatches} microbatches" if plan.microbatches > 1 else ""
    rows = [
        ("mesh", mesh_text(plan.mesh)),
        ("global batch", f"{plan.global_batch}{cut}"),
        (
            "step time",
            f"{seconds(predicted.step_time_s)}{interval(predicted)}: "
            f"{seconds(predicted.compute_s)} computing, "
            f"{seconds(predicted.communication_s)} communicating",
        ),
        ("peak memory", f"{nbytes(predicted.peak_memory_bytes)} a device"),
    ]
    if predicted.tokens_per_s is not None:
        rows.append(("throughput", f"{predicted.tokens_per_s:,.0f} tokens/s"))
    if predicted.mfu is not None:
        rows.append(("model FLOPs", f"{predicted.mfu:.1%} of the devices' peak"))
    if plan.gap is not None and plan.lower_bound_s is not None:
        rows.append(("no plan is below", f"{seconds(plan.lower_bound_s)}; this is "
                     f"{plan.gap:.0%} above"))  # fmt: skip
    if plan.constraints:
        rows.append(("asked for", "; ".join(plan.constraints)))
    rows.append(
        (
            "planned in",
            f"{seconds(plan.capture_s)} capture, {seconds(plan.search_s)} search, "
            f"{seconds(plan.lower_s)} lowering",
        )
    )
    parts: list[RenderableType] = [
        Text.assemble((plan.model, "bold"), ": ", (plan.strategy, "bold green"),
                      f" on {plan.cluster}"),
        Text(plan.why),
        Text(),
        facts(rows),
        heading("Collectives per device and step"),
        indented(collectives(predicted.collectives)),
    ]  # fmt: skip
    if plan.remarks:
        parts += [heading("Of note"), indented(Text("\n".join(plan.remarks)))]
    if plan.alternatives:
        parts += [heading("Candidates"), indented(candidates(plan))]
    return Group(*parts)


def collectives(
    planned: Sequence[Collective], executed: Sequence[Collective] | None = None
) -> RenderableType:
    """Kinds, counts and bytes; where they ran, planned beside executed."""
    if not planned and not executed:
        return Text("none")
    if executed is None:
        made = table("kind", "axis", "count", "bytes", right=("count", "bytes"))
        for item in planned:
            made.add_row(item.kind, item.axis, str(item.count), nbytes(item.bytes))
        return made
    made = table(
        "kind", "axis", "planned", "executed", "bytes", "", right=("planned", "executed", "bytes")
    )
    before = {(c.kind, c.axis): c for c in planned}
    after = {(c.kind, c.axis): c for c in executed}
    for key in sorted({*before, *after}):
        counts, sizes = [], []
        for found in (before.get(key), after.get(key)):
            counts.append(str(found.count) if found else "0")
            sizes.append(nbytes(found.bytes) if found else "0 B")
        same = before.get(key) == after.get(key)
        made.add_row(
            *key, *counts, sizes[0] if same else " / ".join(sizes),
            "[green]same[/]" if same else "[red]differs[/]",
        )  # fmt: skip
    return made


def candidates(plan: Plan) -> RenderableType:
    """The chosen candidate first, then the best of the others."""
    others = plan.alternatives[:MOST_ROWS]
    noted = any(other.note for other in others)
    made = predictions(*(["note"] if noted else []))
    blank = [""] if noted else []
    made.add_row(
        "*", strategy_cell(plan.strategy), *prediction_cells(plan.predicted), *blank, style="bold"
    )
    for other in others:
        made.add_row(
            "" if other.fits else "-", strategy_cell(other.strategy), *prediction_cells(other),
            *([escape(other.note)] if noted else []), style="" if other.fits else "dim",
        )  # fmt: skip
    if all(other.fits for other in others):
        return made
    return Group(made, Text("* chosen   - does not fit"))


def strategy_cell(name: str) -> str:
    """A strategy's name in lines that end after commas, where it is too long for one."""
    width = max(shutil.get_terminal_size().columns - _BESIDE_STRATEGY, 12)
    lines = [""]
    for part in re.findall(r"[^,]+,?", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return escape("\n".join(line.strip() for line in lines))


def predictions(*more: str) -> Table:
    """A table for strategies with their `prediction_cells`."""
    return table(
        "", "strategy", "step time", "peak memory", "coll.", "bytes", *more,
        right=("step time", "peak memory", "coll.", "bytes"), wrap=("strategy", *more),
    )  # fmt: skip


def prediction_cells(predicted: Prediction) -> tuple[str, str, str, str]:
    """Step time, peak memory, number and bytes of collectives."""
    return (
        seconds(predicted.step_time_s),
        nbytes(predicted.peak_memory_bytes),
        str(sum(item.count for item in predicted.collectives)),
        nbytes(sum(item.bytes for item in predicted.collectives)),
    )


def beside(summary: Mapping[str, Any]) -> RenderableType:
    """Predicted beside measured: step time and peak memory."""
    made = table(
        "", "predicted", "measured", "deviation", right=("predicted", "measured", "deviation")
    )
    for name, key, text in (
        ("step time", "step_time_s", seconds),
        ("peak memory a device", "peak_memory_bytes", nbytes),
    ):
        predicted, measured = summary[key]["predicted"], summary[key]["measured"]
        made.add_row(
            name,
            text(predicted),
            "-" if measured is None else text(measured),
            "-" if measured is None else deviation(measured, predicted),
        )
        within = summary[key].get("interval")
        if within:
            made.add_row("  within the noise", f"{text(within[0])} to {text(within[1])}", "", "")
    return made


def parts(sizes: Mapping[str, int]) -> Table:
    """What a peak of memory is made of, the largest first."""
    made = table("part", "bytes", "share", right=("bytes", "share"))
    total = sum(sizes.values()) or 1
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size:
            made.add_row(escape(name), nbytes(size), f"{size / total:.0%}")
    return made
