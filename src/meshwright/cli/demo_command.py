"""`meshwright demo` as a command; what it does is in `meshwright.cli.demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output


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
    from meshwright.cli.prepare import check_local, parse_options

    with Output(json) as out:
        check_local(cluster)
        options = parse_options(option or (), None)
        from meshwright.cli.demo import run_demo

        out.emit(
            run_demo(
                run, cluster=cluster, steps=steps, seed=seed, profile_file=profile,
                options=options, console=out.err if json else out.out,
            )
        )  # fmt: skip
