"""`meshwright compare`: named strategies side by side, beside what the search finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output
from meshwright.errors import MeshwrightError, NoPlanFits, StrategyError

if TYPE_CHECKING:
    from meshwright.cli.prepare import Prepared
    from meshwright.report.comparison import Compared

_MOST_SHOWN = 16  # beside the front; --json and --html have all
_MOST_REASONS = 4


def compare(
    model: given.Model,
    option: given.Options = None,
    global_batch: given.GlobalBatch = None,
    seq_len: given.SeqLen = None,
    cluster: given.Cluster = None,
    mesh: given.Mesh = None,
    layout: given.Layout = None,
    forbid: given.Forbid = None,
    pin: given.Pin = None,
    microbatches: given.Microbatches = None,
    clip_norm: given.ClipNorm = None,
    optimizer: given.Optimizer = None,
    goal: given.Goal = None,
    max_step_time: given.MaxStepTime = None,
    budget_seconds: given.BudgetSeconds = None,
    seed: given.SearchSeed = 0,
    profile: given.Profile = None,
    no_calibrate: given.NoCalibrate = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with the front as a chart here."),
    ] = None,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Predict every named strategy, and what the search chooses."""
    from meshwright.cli.prepare import Request, prepare
    from meshwright.report.comparison import Comparison, on_front, write_comparison

    with Output(json) as out:
        request = Request(
            model, option, global_batch, cluster, None, microbatches, clip_norm, optimizer,
            profile, no_calibrate,
            seq_len=seq_len, constraints=given.constraints(mesh, layout, forbid, pin),
            budget_s=budget_seconds, seed=seed, goal=goal, max_step_time_s=max_step_time,
        )  # fmt: skip
        prepared = prepare(request, out)
        rows, failed = _rows(prepared, out)
        front = on_front(rows)
        best = _best(rows)
        title = f"{prepared.task.name} on {prepared.cluster.text}"
        _show(rows, front, best, title, out)
        if html is not None:
            limit = prepared.cluster.memory_bytes
            page = Comparison(title=title, memory_limit_bytes=limit, rows=tuple(rows))
            write_comparison(html, page)
            out.note(f"Written to {html}")
        out.emit(
            {
                "best": best,
                "memory_bytes": prepared.cluster.memory_bytes,
                "strategies": [_row(row, on) for row, on in zip(rows, front, strict=True)],
                **({"html": str(html)} if html is not None else {}),
            }
        )
    if best is None:
        raise failed or NoPlanFits(
            f"None of {len(rows)} strategies fits.", "Plan for more devices, or more microbatches."
        )


def _rows(prepared: Prepared, out: Output) -> tuple[list[Compared], MeshwrightError | None]:
    """`auto` first, then the named ones; and why `auto` found nothing, where it did not."""
    from meshwright.api import costed
    from meshwright.cli.prepare import make_plan
    from meshwright.plan.text import nbytes
    from meshwright.report.comparison import Compared

    failed: MeshwrightError | None = None
    try:
        made = make_plan(prepared, out, "auto")
        first = Compared(
            strategy="auto", fits=True, predicted=made.predicted, chosen=made.strategy,
            microbatches=made.microbatches, hurried=made.stopped == "budget",
        )  # fmt: skip
    except (StrategyError, NoPlanFits) as error:
        failed = error
        first = Compared(strategy="auto", fits=False, reason=error.message)
    with out.status("Costing the named strategies") as update:
        found = costed(
            prepared.task,
            prepared.cluster,
            microbatches=prepared.request.microbatches or 1,
            clip_norm=prepared.request.clip_norm,
            optimizer=prepared.optimizer,
            model=prepared.model,
            constraints=prepared.request.constraints,
            progress=lambda text: update(text[:1].upper() + text[1:]),
        )
    rows = [first]
    for name, item in found.items():
        if isinstance(item, MeshwrightError):
            rows.append(Compared(strategy=name, fits=False, reason=item.message))
            continue
        over = item.prediction.peak_memory_bytes - prepared.cluster.memory_bytes
        rows.append(
            Compared(
                strategy=name, fits=item.fits, predicted=item.prediction,
                microbatches=item.candidate.microbatches,
                reason="" if item.fits else f"{nbytes(over)} too much for a device",
            )
        )  # fmt: skip
    return rows, failed


def _best(rows: Sequence[Compared]) -> str | None:
    """The fastest, the search's own choice where they are equal."""
    times = {row.strategy: row.predicted.step_time_s for row in rows if row.fits and row.predicted}
    return min(times, key=lambda name: times[name], default=None)


def _row(row: Compared, front: bool) -> dict[str, Any]:
    from meshwright.cli.as_json import prediction_json

    chosen = {"chosen": row.chosen} if row.chosen else {}
    reason = {"reason": row.reason} if row.reason else {}
    said = prediction_json(row.predicted) if row.predicted else {}
    return {
        "strategy": row.strategy, **chosen, "fits": row.fits, "front": front,
        "microbatches": row.microbatches, **reason, **said,
    }  # fmt: skip


def _show(
    rows: Sequence[Compared], front: Sequence[bool], best: str | None, title: str, out: Output
) -> None:
    from rich.markup import escape

    from meshwright.cli.show import heading, indented, prediction_cells, predictions, strategy_cell

    pairs = sorted(
        ((row, on) for row, on in zip(rows, front, strict=True) if row.predicted),
        key=lambda pair: (not pair[0].fits, pair[0].predicted.step_time_s),  # type: ignore[union-attr]
    )
    shown = predictions()
    hidden = 0
    for place, (row, on) in enumerate(pairs):
        assert row.predicted is not None
        if place >= _MOST_SHOWN and not (on or row.chosen):
            hidden += 1
            continue
        mark = "*" if row.strategy == best else "+" if on else "" if row.fits else "-"
        style = "bold green" if row.strategy == best else "" if row.fits else "dim"
        shown.add_row(
            mark, strategy_cell(row.strategy), *prediction_cells(row.predicted), style=style
        )
    out.print(heading(title), indented(shown))
    marks = "  * predicted fastest   + none is better in both time and memory"
    marks += "" if all(row.fits for row, _ in pairs) else "   - does not fit"
    out.print(marks if best is not None else "  None fits.")
    if hidden:
        out.print(f"  and {hidden} more; --json and --html have all of them")
    auto = rows[0]
    out.print(f"  auto chose {escape(auto.chosen)}" if auto.fits else f"  auto: {auto.reason}")
    if auto.hurried:
        out.print("  Its time was over before it was through; --budget-seconds gives it more.")
    reasons: dict[str, list[str]] = {}
    for row in rows[1:]:
        if row.predicted is None:
            reasons.setdefault(row.reason, []).append(row.strategy)
    for reason, names in list(reasons.items())[:_MOST_REASONS]:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        out.print(f"  {escape(', '.join(names[:3]))}{more}: {escape(reason)}")
    if len(reasons) > _MOST_REASONS:
        out.print(f"  and {len(reasons) - _MOST_REASONS} more reasons; --json has them")
