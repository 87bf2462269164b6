"""`meshwright demo`: the whole road on this machine, with every claim checked."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from meshwright.api import (
    Model,
    one_device,
    optimizer_by_name,
    plan,
    simulate_plan,
    step_breakdown,
)
from meshwright.cli.demo_show import (
    show_candidates,
    show_checks,
    show_measured,
    write_page,
)
from meshwright.cli.profiles import BUDGET_S
from meshwright.cli.step_rows import contention_of, step_rows
from meshwright.cluster.profile_file import load_profile, save_profile
from meshwright.cluster.types import Profile
from meshwright.errors import RunError
from meshwright.plan.file import save_plan
from meshwright.plan.types import Collective, Plan
from meshwright.report.data import Check
from meshwright.runtime.calibrate import calibrate
from meshwright.runtime.compare import TOLERANCE
from meshwright.runtime.launch import launch
from meshwright.simulate.types import Simulation
from meshwright.zoo.data import batches_for
from meshwright.zoo.reference import load_task

MODEL = "zoo:gpt"
OPTIMIZER, LEARNING_RATE = "adamw", 3e-4
OPTIONS = {"global_batch": "8", "seq_len": "64"}  # 100 steps in two minutes on two cores
COMPARED_STEPS = 10
SAVED_BEFORE_END = 10  # steps between the checkpoint and the end of the run
NEEDED_FALL = 0.30
_RUN_LIMIT_S = 900


def run_demo(
    run: Path,
    *,
    cluster: str = "local:4",
    steps: int = 100,
    seed: int = 0,
    profile_file: Path | None = None,
    options: dict[str, str] | None = None,
    console: Console,
) -> dict[str, Any]:
    """Plan, train, compare, resume, report; everything that `--json` prints.

    Raises RunError when a check fails, after the run folder is complete.
    """
    options = {**OPTIONS, **(options or {})}
    if run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True)
    task = load_task(MODEL, options)
    processes = int(cluster.partition(":")[2])
    profile = _profile(run, profile_file, processes, console)
    with console.status("Capturing the step and costing candidates"):
        model = Model(task)
        made = plan(task, cluster, "auto", optimizer=OPTIMIZER, profile=profile, model=model)
        simulation = simulate_plan(task, made, profile=profile, model=model)
    save_plan(made, run / "plan.json")
    show_candidates(console, made)

    payload = {
        "model": MODEL, "options": options, "plan": made.model_dump(mode="json"), "seed": seed,
        "optimizer": OPTIMIZER, "learning_rate": LEARNING_RATE, "run": str(run),
    }  # fmt: skip
    saved_at = max(1, steps - SAVED_BEFORE_END)
    console.print(f"\nTraining {steps} steps on {processes} gloo processes\n")
    trained = _train(
        payload
        | {"steps": steps, "save_at": [saved_at], "profile_step": min(5, steps - 1),
           "contention": contention_of(profile)},
        processes, run, steps, console,
    )  # fmt: skip

    with console.status(f"Repeating the first {COMPARED_STEPS} steps in one plain process"):
        reference = one_device(
            task, made, optimizer=optimizer_by_name(OPTIMIZER, LEARNING_RATE), seed=seed
        )
        batches = batches_for(task, seed)
        assert batches is not None
        compared = min(COMPARED_STEPS, steps)
        alone = [reference.step(batches[number]) for number in range(compared)]
        del reference
    with console.status("Comparing gradients and parameters with one device"):
        verified = launch(
            "meshwright.cli.workers:verify",
            payload | {"steps": 2, "optimizer": "sgd-momentum", "learning_rate": 1e-2,
                       "measure": False},
            processes, run / "verify", timeout_s=_RUN_LIMIT_S,
        )[0]["comparison"]  # fmt: skip
    resumed_equal, resumed = True, None
    if saved_at < steps:
        with console.status(f"Resuming from step {saved_at} in fresh processes"):
            resumed = launch(
                "meshwright.cli.workers:train",
                payload
                | {"steps": 1, "resume": str(run / "checkpoints" / str(saved_at)),
                   "run": str(run / "resumed")},
                processes, run / "resumed", timeout_s=_RUN_LIMIT_S,
            )[0]["losses"][0]  # fmt: skip
            resumed_equal = resumed == trained["losses"][saved_at]

    summary = _summary(made, trained, alone, verified, resumed_equal, run)
    expected = step_breakdown(task, made, profile=profile, model=model)
    summary["rows"] = step_rows(expected, trained["results"])
    checks = _checks(summary, trained, alone, resumed, saved_at)
    _finish(run, summary, checks, made, simulation, trained, alone, profile, console)
    failed = [check for check in checks if not check.ok]
    if failed:
        raise RunError(
            f"The demo failed a check: {failed[0].name}: {failed[0].detail}",
            f"Everything it wrote is in {run}.",
        )
    return summary


def _profile(run: Path, file: Path | None, processes: int, console: Console) -> Profile:
    if file is not None and file.exists():
        console.print(f"Using the profile {file}")
        return load_profile(file)
    with console.status("Calibrating this machine (about half a minute)"):
        started = time.perf_counter()
        profile = calibrate(processes, BUDGET_S)
    target = file or run / "profile.json"
    save_profile(profile, target)
    console.print(f"Calibrated in {time.perf_counter() - started:.0f} s: {target}")
    return profile


def _train(
    payload: dict[str, Any], processes: int, run: Path, steps: int, console: Console
) -> dict[str, Any]:
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("loss {task.fields[loss]}  {task.fields[rate]} tokens/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        job = bar.add_task("step", total=steps, loss="-", rate="-")

        def progress(record: dict[str, Any]) -> None:
            bar.update(
                job, completed=record["step"], loss=f"{record['loss']:.3f}",
                rate=f"{record['tokens_per_s']:,.0f}",
            )  # fmt: skip

        results = launch(
            "meshwright.cli.workers:train", payload, processes, run,
            timeout_s=_RUN_LIMIT_S, progress=progress,
        )  # fmt: skip
    first: dict[str, Any] = dict(results[0])
    first["results"] = results
    # The slowest process sets the pace; the fullest one needs the memory.
    first["step_time_s"] = max(item["step_time_s"] for item in results)
    first["peak_memory_bytes"] = max(item["peak_memory_bytes"] for item in results)
    return first


def _summary(
    made: Plan,
    trained: dict[str, Any],
    alone: list[float],
    verified: dict[str, Any],
    resumed_equal: bool,
    run: Path,
) -> dict[str, Any]:
    losses = trained["losses"]
    apart = [
        abs(mine - one) / abs(one) for mine, one in zip(losses[: len(alone)], alone, strict=True)
    ]
    worst = dict(verified["worst"])
    step = max(range(len(apart)), key=lambda k: apart[k])
    if apart[step] >= worst["loss"]["relative"]:
        worst["loss"] = {"name": f"step {step + 1}", "relative": apart[step]}
    planned = [item.model_dump() for item in made.predicted.collectives]
    return {
        "equal": verified["equal"] and max(apart) <= TOLERANCE,
        "worst": worst,
        "collectives": {"planned": planned, "executed": trained["executed"]},
        "collectives_equal": _same(planned, trained["executed"]),
        "step_time_s": {
            "predicted": made.predicted.step_time_s,
            "interval": made.predicted.step_time_interval_s,
            "measured": trained["step_time_s"],
        },
        "peak_memory_bytes": {
            "predicted": made.predicted.peak_memory_bytes,
            "measured": trained["peak_memory_bytes"],
        },
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "resume_equal": resumed_equal,
        "run": str(run),
        "strategy": made.strategy,
        "mesh": made.mesh,
        "plan": _plan_json(made),
    }  # fmt: skip


def _plan_json(made: Plan) -> dict[str, Any]:
    fields = {"strategy", "mesh", "microbatches", "why", "alternatives", "capture_s", "search_s"}
    return made.model_dump(mode="json", include=fields)


def _same(planned: list[dict[str, Any]], executed: list[dict[str, Any]]) -> bool:
    def key(item: dict[str, Any]) -> tuple[str, str]:
        return item["kind"], item["axis"]

    return sorted(planned, key=key) == sorted(executed, key=key)


def _checks(
    summary: dict[str, Any],
    trained: dict[str, Any],
    alone: list[float],
    resumed: float | None,
    saved_at: int,
) -> list[Check]:
    worst = summary["worst"]
    fall = 1 - summary["last_loss"] / summary["first_loss"]
    checks = [
        Check(
            name=f"loss of the first {len(alone)} steps as on one device",
            ok=worst["loss"]["relative"] <= TOLERANCE,
            detail=f"worst relative difference {worst['loss']['relative']:.1e}",
        ),
        Check(
            name="gradients and parameters as on one device",
            ok=summary["equal"],
            detail=f"worst gradient {worst['gradient']['relative']:.1e}, "
            f"parameter {worst['parameter']['relative']:.1e}",
        ),
        Check(
            name="loss fell by at least 30%",
            ok=fall >= NEEDED_FALL,
            detail=f"{summary['first_loss']:.3f} to {summary['last_loss']:.3f}, {fall:.0%}",
        ),
        Check(
            name="collectives executed are those planned",
            ok=summary["collectives_equal"],
            detail=f"{sum(c['count'] for c in trained['executed'])} a step",
        ),
    ]
    if resumed is not None:
        checks.append(
            Check(
                name=f"resumed from step {saved_at} gives the same next loss",
                ok=summary["resume_equal"],
                detail=f"{resumed:.6f} and {trained['losses'][saved_at]:.6f}",
            )
        )
    return checks


def _finish(
    run: Path,
    summary: dict[str, Any],
    checks: list[Check],
    made: Plan,
    simulation: Simulation,
    trained: dict[str, Any],
    alone: list[float],
    profile: Profile,
    console: Console,
) -> None:
    executed = tuple(Collective.model_validate(item) for item in trained["executed"])
    write_page(
        run, summary, checks, made, simulation, trained, alone, executed, profile.memory_bytes
    )
    show_measured(console, summary)
    show_checks(console, checks)
    console.print(f"\nEverything is in {run}; open {run / 'report.html'}")
