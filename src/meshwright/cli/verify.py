"""`meshwright verify`: is the planned step the single-device step, in numbers and collectives?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output
from meshwright.cli.processes import (
    check_startable,
    is_first,
    run_workers,
    scratch_folder,
)
from meshwright.errors import RunError


def verify(
    model: given.Model,
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="How many to compare.")] = 3,
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
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="sgd-momentum", help="To step with."),
    ] = None,
    learning_rate: given.LearningRate = None,
    rng: given.Rng = None,
    seed: given.Seed = 0,
    plan_file: given.PlanFile = None,
    profile: given.Profile = None,
    no_calibrate: given.NoCalibrate = False,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Step by the plan and on one device, and compare every number.

    Exits with 5 when a number or a collective is not as it should be.
    """
    from meshwright.api import check_comparable, step_breakdown
    from meshwright.cli.as_json import run_json
    from meshwright.cli.prepare import Request, make_plan, prepare
    from meshwright.cli.prepare import learning_rate as rate_of
    from meshwright.cli.step_rows import contention_of, step_rows
    from meshwright.plan.check import check_executable

    with Output(json) as out, scratch_folder("verify") as folder:
        request = Request(
            model, option, global_batch, cluster, strategy, microbatches, clip_norm,
            # A plan's own optimizer is not the default: see api.sgd for why.
            optimizer or "sgd-momentum", profile, no_calibrate, plan_file, rng,
            seq_len=seq_len, constraints=given.constraints(mesh, layout, forbid, pin),
        )  # fmt: skip
        prepared = prepare(request, out, measure=True)
        rate = rate_of(learning_rate, prepared.optimizer)
        check_startable(prepared.cluster, prepared.local, "verify", model)
        made = make_plan(prepared, out)
        check_executable(made)
        check_comparable(made, prepared.model)
        payload = {
            "model": model,
            "options": prepared.options,
            "plan": made.model_dump(mode="json"),
            "steps": steps,
            "seed": seed,
            "optimizer": prepared.optimizer,
            "learning_rate": rate,
            "device": "cpu" if prepared.local else None,
            "contention": contention_of(prepared.profile),
        }
        with out.status("Starting processes") as update:
            results = run_workers(
                "verify", payload, prepared.cluster.size, Path(folder),
                lambda record: update(str(record["stage"]).capitalize()),
            )  # fmt: skip
        if not is_first():
            return
        found = results[0]["comparison"] | run_json(made, results)
        expected = step_breakdown(
            prepared.task, made, profile=prepared.profile, model=prepared.model
        )
        found |= {
            "steps": steps,
            "optimizer": prepared.optimizer,
            "rows": step_rows(expected, results),
        }
        _show(found, made.model, out)
        out.emit(found)
    wrong = _wrong(found)
    if wrong is not None and json:
        out.err.print(f"Error: {wrong.message}", markup=False, soft_wrap=True)
        raise typer.Exit(RunError.exit_code)
    if wrong is not None:
        raise wrong


def _show(found: Mapping[str, Any], name: str, out: Output) -> None:
    from rich.markup import escape

    from meshwright.cli.as_json import as_collectives
    from meshwright.cli.show import beside, collectives, heading, indented, mesh_text, table
    from meshwright.cli.step_rows import rows_view

    worst = table(
        "", "worst difference", "where", right=("worst difference",), wrap=("where",)
    )  # fmt: skip
    for kind, item in found["worst"].items():
        if item["name"]:
            worst.add_row(kind, f"{item['relative']:.1e}", escape(item["name"]))
    out.print(
        heading(
            f"{name}: {found['strategy']} ({mesh_text(found['mesh'])}) beside one device, "
            f"{found['steps']} step{'s' if found['steps'] > 1 else ''}"
        ),
        indented(worst),
        heading("Predicted and measured"),
        indented(beside(found)),
        *([heading("Where a step's time goes"), rows_view(found["rows"])] if found["rows"] else []),
        heading("Collectives per device and step"),
        indented(
            collectives(
                as_collectives(found["collectives"]["planned"]),
                as_collectives(found["collectives"]["executed"]),
            )
        ),
        "",
    )
    if found["equal"] and found["collectives_equal"]:
        out.print("[green]Equal[/]: every number as on one device, every collective as planned.")


# Optimizers that scale each element's step by that element's gradients.
_ADAPTIVE = ("adam", "adamw", "adagrad", "rmsprop")


def _wrong(found: Mapping[str, Any]) -> RunError | None:
    advice = "Look at it with `meshwright explain`, and report it: a plan must not change numbers."
    if not found["initial_equal"]:
        return RunError("The initial parameters are not those of one device.", advice)
    worst = found["worst"]
    if not found["equal"] and found["optimizer"] in _ADAPTIVE:
        others = (worst["loss"], worst["gradient"], worst["buffer"])
        if all(item["relative"] <= found["tolerance"] for item in others):
            return RunError(
                f"Loss, gradients and buffers are equal, but '{worst['parameter']['name']}' is "
                f"off by {worst['parameter']['relative']:.1e} after steps of {found['optimizer']}.",
                "An optimizer that divides by the gradient's own size turns the rounding noise "
                "of a gradient near zero into a full step, on one device as well. Verify with "
                "--optimizer sgd-momentum, which keeps a difference as large as it is.",
            )
    if not found["equal"]:
        kind, item = max(
            found["worst"].items(),
            # NaN compares with nothing, and is worse than any number.
            key=lambda pair: (pair[1]["relative"] != pair[1]["relative"], pair[1]["relative"]),
        )
        return RunError(
            f"The planned step is not the single-device step: the {kind} of '{item['name']}' is "
            f"off by {item['relative']:.1e} of its size."
            if kind != "loss"
            else f"The planned step is not the single-device step: the loss of {item['name']} is "
            f"off by {item['relative']:.1e}.",
            advice,
        )
    if not found["collectives_equal"]:
        return RunError("The collectives that ran are not those of the plan.", advice)
    return None
