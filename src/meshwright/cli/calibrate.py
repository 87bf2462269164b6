"""`meshwright calibrate`: measure this machine, write a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output

if TYPE_CHECKING:
    from meshwright.cluster.types import Profile

_MiB = 1 << 20


def calibrate(
    cluster: Annotated[
        str, typer.Option(metavar="local:N", help="How many processes run at once.")
    ] = "local:4",
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", show_default="the user's cache", help="Write the profile here."
        ),
    ] = None,
    budget: Annotated[float, typer.Option(min=1.0, help="Seconds to take, about.")] = 20.0,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Measure what ops and collectives cost here, with N processes at once."""
    from meshwright.cli.prepare import local_cluster
    from meshwright.cli.profiles import keep, profile_path
    from meshwright.cluster.profile_file import save_profile
    from meshwright.errors import UsageError

    with Output(json) as out:
        size = local_cluster(cluster).size
        with out.status(f"Calibrating with {size} processes, about {budget:.0f} s"):
            from meshwright.runtime import calibrate as measuring

            profile = measuring.calibrate(size, budget)
        target: Path | None = out_file
        if out_file is not None:
            save_profile(profile, out_file)
        else:
            target = keep(profile, profile_path(size), None)
            if target is None:
                raise UsageError(
                    f"The profile can't be written to {profile_path(size)}.",
                    "Name a file with --out FILE.",
                )
        _show(profile, size, out)
        out.note(f"Profile written to {target}")
        out.emit({"out": str(target), "profile": profile.model_dump(mode="json")})


def _show(profile: Profile, size: int, out: Output) -> None:
    from meshwright.cli.show import facts, heading, indented, table
    from meshwright.plan.text import nbytes, seconds

    fastest = max(point.x / point.seconds for point in profile.matmul)
    rows = [
        ("matmul", f"{fastest / 1e9:,.1f} GFLOP/s at most"),
        ("memory", f"{profile.memory_bytes_per_s / 2**30:,.1f} GiB/s read and written"),
        ("launching an op", seconds(profile.op_overhead_s)),
        ("memory to use", nbytes(profile.memory_bytes)),
    ]
    out.print(
        heading(f"Each of {size} process{'es' if size > 1 else ''} on this machine"), facts(rows)
    )
    if profile.collectives:
        made = table("collective", "devices", "latency", "16 MiB", "rate",
                     right=("devices", "latency", "16 MiB", "rate"))  # fmt: skip
        for curve in profile.collectives:
            first, last = curve.points[0], curve.points[-1]
            made.add_row(
                curve.kind, str(curve.participants), seconds(first.seconds),
                seconds(last.seconds * 16 * _MiB / last.x),
                f"{last.x / last.seconds / _MiB:,.0f} MiB/s",
            )  # fmt: skip
        out.print(heading("Collectives"), indented(made))
