"""`meshwright train`: train by a plan, and hold what was measured beside what was predicted."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output
from meshwright.cli.processes import (
    check_startable,
    checkpoint_to_resume,
    is_first,
    last_checkpoint,
    make_folder,
    run_folder,
    run_workers,
    with_checkpoint,
)
from meshwright.errors import RunError, UsageError

if TYPE_CHECKING:
    from meshwright.cli.prepare import Prepared
    from meshwright.plan.types import Plan

_PROFILED_STEP = 3  # of this run, from 0: late enough to be like the others


def train(
    model: given.Model,
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="How many to train.")] = 100,
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
    learning_rate: given.LearningRate = None,
    rng: given.Rng = None,
    seed: given.Seed = 0,
    plan_file: given.PlanFile = None,
    profile: given.Profile = None,
    no_calibrate: given.NoCalibrate = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Go on from it; a run's folder takes its newest."),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Save a checkpoint after so many steps.")
    ] = None,
    run_dir: given.RunDir = None,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Train by a plan on this machine's processes, or as one of torchrun's."""
    from meshwright.cli.prepare import Request, make_plan, prepare
    from meshwright.cli.prepare import learning_rate as rate_of
    from meshwright.cli.step_rows import contention_of
    from meshwright.plan.check import check_executable
    from meshwright.plan.file import save_plan

    with Output(json) as out:
        request = Request(
            model, option, global_batch, cluster, strategy, microbatches, clip_norm, optimizer,
            profile, no_calibrate, plan_file, rng,
            seq_len=seq_len, constraints=given.constraints(mesh, layout, forbid, pin),
        )  # fmt: skip
        checkpoint = checkpoint_to_resume(resume) if resume else None
        prepared = prepare(request, out, measure=True, fallback=run_dir)
        rate = rate_of(learning_rate, prepared.optimizer)
        check_startable(prepared.cluster, prepared.local, "train", model)
        made = make_plan(prepared, out)
        check_executable(made)
        run = run_folder(run_dir, prepared.task.name)
        if resume is None and is_first() and last_checkpoint(run) is not None:
            raise UsageError(
                f"{run} holds an earlier run with checkpoints.",
                "Give another folder, or go on from it with --resume.",
            )
        make_folder(run)
        if is_first():
            save_plan(made, run / "plan.json")
            out.note(f"Training by {made.strategy} on {prepared.cluster.text}; the run is in {run}")
        payload = {
            "model": model,
            "options": prepared.options,
            "plan": made.model_dump(mode="json"),
            "steps": steps,
            "seed": seed,
            "optimizer": prepared.optimizer,
            "learning_rate": rate,
            "run": str(run),
            "resume": str(checkpoint) if checkpoint else None,
            "save_every": save_every,
            "save_last": True,
            "profile_step": min(_PROFILED_STEP, steps - 1),
            "device": "cpu" if prepared.local else None,
            "contention": contention_of(prepared.profile),
        }
        results = _trained(payload, prepared, run, out)
        if is_first():
            _finish(made, prepared, results, run, out)


def _trained(
    payload: dict[str, Any], prepared: Prepared, run: Path, out: Output
) -> Sequence[dict[str, Any]]:
    from meshwright.cli.progress import step_progress

    try:
        with step_progress(out, payload["steps"]) as progress:
            return run_workers("train", payload, prepared.cluster.size, run, progress)
    except RunError as error:
        raise with_checkpoint(error, run) from error.__cause__


def _finish(
    made: Plan, prepared: Prepared, results: Sequence[dict[str, Any]], run: Path, out: Output
) -> None:
    """Write summary.json and report.html, and show what they say."""
    from meshwright.api import simulate_plan, step_breakdown
    from meshwright.cli.as_json import as_collectives, run_json
    from meshwright.cli.output import plain
    from meshwright.cli.report import predicted_curve, write_run_report
    from meshwright.cli.show import beside, collectives, heading, indented
    from meshwright.cli.step_rows import rows_view, step_rows

    expected = step_breakdown(prepared.task, made, profile=prepared.profile, model=prepared.model)
    rows = step_rows(expected, results)
    first = results[0]
    summary = run_json(made, results) | {
        "first_step": first["first_step"] + 1,
        "last_step": first["first_step"] + len(first["losses"]),
        "first_loss": first["losses"][0],
        "last_loss": first["losses"][-1],
        "run": str(run),
        "checkpoint": str(last_checkpoint(run)),
        "report": str(run / "report.html"),
        "rows": rows,
    }
    simulation = simulate_plan(prepared.task, made, profile=prepared.profile, model=prepared.model)
    curves = {
        "memory_limit_bytes": prepared.cluster.memory_bytes,
        "memory_curve": [point.model_dump() for point in predicted_curve(simulation)],
        "measured_memory_curve": first["memory_curve"],
    }
    (run / "summary.json").write_text(jsonlib.dumps(plain(summary | curves), indent=1) + "\n")
    write_run_report(run)
    out.print(
        heading(
            f"Step {summary['first_step']} to {summary['last_step']}: "
            f"loss {summary['first_loss']:.4f} to {summary['last_loss']:.4f}"
        ),
        indented(beside(summary)),
        *([heading("Where a step's time goes"), rows_view(rows)] if rows else []),
        heading("Collectives per device and step"),
        indented(
            collectives(
                made.predicted.collectives, as_collectives(summary["collectives"]["executed"])
            )
        ),
    )
    out.note(f"Checkpoint {summary['checkpoint']}\nReport     {summary['report']}")
    out.emit(summary)
