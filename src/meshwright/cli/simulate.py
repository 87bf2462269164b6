"""`meshwright simulate`: where a planned step's time and memory go."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output
from meshwright.errors import UsageError


def simulate(
    model: given.Model,
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
    plan_file: given.PlanFile = None,
    profile: given.Profile = None,
    no_calibrate: given.NoCalibrate = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace for ui.perfetto.dev here."),
    ] = None,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Simulate one step of a plan: time by part, memory at its peak, a trace."""
    from meshwright.cli.prepare import Request, make_plan, prepare
    from meshwright.cli.show import (
        collectives,
        facts,
        heading,
        indented,
        mesh_text,
        parts,
        stages,
    )
    from meshwright.plan.text import interval, nbytes, seconds

    with Output(json) as out:
        request = Request(
            model, option, global_batch, cluster, strategy, microbatches, clip_norm, optimizer,
            profile, no_calibrate, plan_file,
            seq_len=seq_len, constraints=given.constraints(mesh, layout, forbid, pin),
        )  # fmt: skip
        prepared = prepare(request, out)
        made = make_plan(prepared, out)
        from meshwright.api import simulate_plan

        with out.status("Simulating"):
            found = simulate_plan(
                prepared.task, made, profile=prepared.profile, model=prepared.model
            )
        times = [
            ("step", seconds(found.step_time_s) + interval(found)),
            ("computing", seconds(found.compute_s)),
            ("optimizer", seconds(found.optimizer_s)),
            ("communicating", seconds(found.communication_s)),
            ("of that exposed", seconds(found.exposed_communication_s)),
            *((f"waiting: {cause}", seconds(s)) for cause, s in found.stalls.items() if s),
        ]
        out.print(
            heading(f"{made.model}: {made.strategy} ({mesh_text(made.mesh)}) on {made.cluster}"),
            facts(times),
            heading(f"Memory at its peak, {nbytes(found.peak_memory_bytes)} a device"),
            indented(parts(found.memory)),
            facts([("reached at", found.peak_at), ("which is in", found.peak_source or "-")]),
            heading("Collectives per device and step"),
            indented(collectives(found.collectives)),
        )
        if len(found.stages) > 1:
            out.print(heading("Stages"), indented(stages(found)))
        for note in found.notes:
            out.note(note)
        if trace is not None:
            from meshwright.simulate.trace import to_chrome_trace

            _write(trace, jsonlib.dumps(to_chrome_trace(found)))
            out.note(f"Trace written to {trace}; open it in https://ui.perfetto.dev")
        out.emit(
            {
                "model": made.model,
                "strategy": made.strategy,
                "mesh": dict(made.mesh),
                "microbatches": made.microbatches,
                "step_time_s": found.step_time_s,
                "step_time_interval_s": found.step_time_interval_s,
                "compute_s": found.compute_s,
                "optimizer_s": found.optimizer_s,
                "communication_s": found.communication_s,
                "peak_memory_bytes": found.peak_memory_bytes,
                "memory": found.memory,
                "peak_at": found.peak_at,
                "peak_source": found.peak_source,
                "flops": found.flops,
                "exposed_communication_s": found.exposed_communication_s,
                "bubble": found.bubble,
                "stalls": dict(found.stalls),
                "stages": [
                    {
                        "modules": list(item.modules),
                        "compute_s": item.compute_s,
                        "communication_s": item.communication_s,
                        "bubble_s": item.bubble_s,
                        "stalls": dict(item.stalls),
                        "peak_memory_bytes": item.peak_memory_bytes,
                        "memory": dict(item.memory),
                        "peak_at": item.peak_at,
                        "peak_source": item.peak_source,
                    }
                    for item in found.stages
                ],
                "pipeline": found.pipeline.model_dump() if found.pipeline else None,
                "notes": list(found.notes),
                "collectives": [item.model_dump() for item in found.collectives],
                "trace": str(trace) if trace else None,
            }
        )


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"The trace can't be written to {path}: {error.strerror}.",
            "Give a path in a folder that you can write to.",
        ) from error
