"""`meshwright plan`: search for a plan, show it, write it; or compare two plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output
from meshwright.errors import UsageError


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            show_default=False,
            help="zoo:NAME, hf:NAME, hf:CONFIG, FILE.py:FACTORY or MODULE:FACTORY.",
        ),
    ] = "",
    option: given.Options = None,
    global_batch: given.GlobalBatch = None,
    seq_len: given.SeqLen = None,
    cluster: given.Cluster = None,
    strategy: given.Strategy = None,
    mesh: given.Mesh = None,
    layout: given.Layout = None,
    forbid: given.Forbid = None,
    pin: given.Pin = None,
    microbatches: given.Microbatches = None,
    clip_norm: given.ClipNorm = None,
    optimizer: given.Optimizer = None,
    rng: given.Rng = None,
    goal: given.Goal = None,
    max_step_time: given.MaxStepTime = None,
    budget_seconds: given.BudgetSeconds = None,
    seed: given.SearchSeed = 0,
    profile: given.Profile = None,
    no_calibrate: given.NoCalibrate = False,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the plan here, as JSON.")
    ] = None,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--diff", metavar="A B", help="Show how two plan files differ instead."),
    ] = None,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Search for the fastest plan that fits, and say what it will cost."""
    if diff is not None:
        if model:
            raise UsageError("--diff compares two plan files; it takes no MODEL.", "Leave it out.")
        _show_difference(*diff, json)
        return
    if not model:
        raise UsageError(
            "MODEL is missing.", "Name one, as in `meshwright plan zoo:gpt --cluster local:4`."
        )
    from meshwright.cli.as_json import plan_json
    from meshwright.cli.prepare import Request, make_plan, prepare
    from meshwright.cli.show import plan_view
    from meshwright.plan.file import save_plan

    with Output(json) as out:
        request = Request(
            model, option, global_batch, cluster, strategy, microbatches, clip_norm, optimizer,
            profile, no_calibrate, rng=rng,
            seq_len=seq_len, constraints=given.constraints(mesh, layout, forbid, pin),
            budget_s=budget_seconds, seed=seed, goal=goal, max_step_time_s=max_step_time,
        )  # fmt: skip
        made = make_plan(prepare(request, out), out)
        if out_file is not None:
            save_plan(made, out_file)
        out.print(plan_view(made))
        if out_file is not None:
            out.note(f"Written to {out_file}")
        out.emit(plan_json(made) | ({"out": str(out_file)} if out_file else {}))


def _show_difference(first: Path, second: Path, as_json: bool) -> None:
    from rich.markup import escape

    from meshwright.cli.show import table
    from meshwright.plan.diff import diff_plans, grouped
    from meshwright.plan.file import load_plan

    with Output(as_json) as out:
        differences = diff_plans(load_plan(first), load_plan(second))
        shown = table("field", first.name, f"{second.name} ", wrap=(first.name, f"{second.name} "))
        shown.columns[0].overflow, shown.columns[0].no_wrap = "fold", False
        shown.columns[0].width = 34
        for row in grouped(differences):
            shown.add_row(*(escape(cell) for cell in row))
        out.print(shown if differences else "The plans are the same.")
        out.emit(
            {
                "same": not differences,
                "differences": [
                    {"field": d.field, "a": d.first_value, "b": d.second_value} for d in differences
                ],
            }
        )
