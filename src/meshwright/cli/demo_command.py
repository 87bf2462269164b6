"""`meshwright demo` as a command; what it does is in `meshwright.cli.demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output
from meshwright.errors import UsageError


def demo(
    run: Annotated[
        Path, typer.Option("--run", metavar="DIR", help="What the demo writes; replaced.")
    ] = Path("runs/demo"),
    option: given.Options = None,
    cluster: Annotated[str, typer.Option(metavar="local:N", help="How many processes.")] = (
        "local:4"
    ),
    steps: Annotated[int, typer.Option(min=1, help="To train.")] = 100,
    seed: given.Seed = 0,
    profile: given.Profile = None,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Plan, train, compare and resume a small GPT on this machine, every claim checked."""
    from meshwright.cli.prepare import local_cluster, parse_options

    with Output(json) as out:
        local_cluster(cluster)
        _check_replaceable(run)
        options = parse_options(option or ())
        from meshwright.cli.demo import run_demo

        out.emit(
            run_demo(
                run, cluster=cluster, steps=steps, seed=seed, profile_file=profile,
                options=options, console=out.err if json else out.out,
            )
        )  # fmt: skip


def _check_replaceable(run: Path) -> None:
    """Only a run's folder, or an empty one, is replaced."""
    if run.is_dir() and any(run.iterdir()) and not (run / "plan.json").is_file():
        raise UsageError(
            f"The folder {run} holds files that are no run's, and the demo replaces its folder.",
            "Name another with --run DIR.",
        )
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is a file.", "Name a folder with --run DIR.")
