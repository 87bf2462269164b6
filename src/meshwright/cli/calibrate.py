"""`meshwright calibrate`: measure this machine, write a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshwright.cli import options as given
from meshwright.cli.output import Output

if TYPE_CHECKING:
    from meshwright.cluster.types import Profile
    from meshwright.runtime.calibrate import Fit, Residual

_MiB = 1 << 20
_MOST_FAMILIES = 12


def calibrate(
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="local:N", show_default="local:4", help="How many processes run at once."
        ),
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", show_default="the user's cache", help="Write the profile here."
        ),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=1.0, max=600.0, help="Seconds to take, about.")
    ] = 60.0,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Measure what ops and collectives cost here, with N processes at once.

    Started by torchrun it measures the devices that torchrun was given.
    """
    from meshwright.cli.processes import torchrun_world
    from meshwright.cli.profiles import keep, profile_path
    from meshwright.cluster.profile_file import check_writable, save_profile
    from meshwright.errors import UsageError

    with Output(json) as out:
        world = torchrun_world()
        if out_file is not None and (world is None or world.rank == 0):
            check_writable(out_file)
        fit, size = _measured(cluster, out_file, budget, out)
        if fit is None:
            return
        profile = fit.profile
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
        _show(fit, size, out)
        out.note(f"Profile written to {target}")
        out.emit(
            {
                "out": str(target),
                "profile": profile.model_dump(mode="json"),
                "residuals": residuals_json(fit),
            }
        )


def _measured(
    cluster: str | None, out_file: Path | None, budget: float, out: Output
) -> tuple[Fit | None, int]:
    """The fit, None in all processes of a torchrun but the first; and how many processes."""
    from meshwright.cli.prepare import DEFAULT_CLUSTER, local_cluster
    from meshwright.cli.processes import torchrun_world
    from meshwright.errors import UsageError

    world = torchrun_world()
    if world is None:
        size = local_cluster(cluster or DEFAULT_CLUSTER).size
        with out.status(f"Calibrating with {size} processes, about {budget:.0f} s"):
            from meshwright.runtime import calibrate as measuring

            return measuring.calibration(size, budget), size
    if cluster is not None and cluster != f"local:{world.size}":
        raise UsageError(
            f"torchrun started {world.size} processes, and --cluster asks for {cluster}.",
            "Leave out --cluster: the processes that torchrun started are measured.",
        )
    from meshwright.runtime.calibrate import calibrate_here
    from meshwright.runtime.worker import close_process, default_device

    device = default_device()
    if device != "cpu" and out_file is None and world.rank == 0:
        raise UsageError(
            "The profile of these devices has no place of its own.",
            "Name a file with --out FILE, and use it as in --cluster 2x8:FILE.",
        )
    fit = calibrate_here(budget, device)
    close_process()
    return fit, world.size


def residuals_json(fit: Fit) -> dict[str, Any]:
    """Median error and the worst probe, over all and by family."""
    from meshwright.runtime.calibrate import by_family, median_error, worst

    def one(residuals: list[Residual]) -> dict[str, Any]:
        far = worst(residuals)[0]
        return {
            "probes": len(residuals),
            "median": median_error(residuals),
            "worst": {"probe": far.name, "predicted_s": far.predicted_s,
                      "measured_s": far.measured_s, "error": far.error},
        }  # fmt: skip

    every = list(fit.residuals)
    families = by_family(every)
    return {**one(every), "families": {name: one(found) for name, found in families.items()}}


def _show(fit: Fit, size: int, out: Output) -> None:
    from meshwright.cli.show import facts, heading, indented
    from meshwright.plan.text import nbytes, seconds

    profile = fit.profile
    fitted = profile.fitted
    assert fitted is not None
    rows = [
        ("matmul", f"{profile.peak_flops / 1e9:,.1f} GFLOP/s at most"),
        ("memory", f"{profile.memory_bytes_per_s / 2**30:,.1f} GiB/s read and written"),
        ("launching an op", seconds(profile.op_overhead_s)),
        ("memory to use", nbytes(profile.memory_bytes)),
        ("sharing cores", f"{fitted.contention:.2f} seconds for each of the processor's"),
        (
            "noise",
            ", ".join(f"{name} ±{share / 2:.0%}" for name, share in fitted.noise.items())
            or "not known",
        ),
    ]
    out.print(
        heading(f"Each of {size} process{'es' if size > 1 else ''} on this machine"), facts(rows)
    )
    _show_collectives(profile, out)
    _show_residuals(fit, out)
    if profile.lower_tiers:
        out.print(heading("Memory beyond"), indented(_tiers(profile)))


def _show_collectives(profile: Profile, out: Output) -> None:
    from meshwright.cli.show import heading, indented, table
    from meshwright.plan.text import seconds

    if not profile.collectives:
        return
    made = table("collective", "devices", "latency", "8 MiB", "rate",
                 right=("devices", "latency", "8 MiB", "rate"))  # fmt: skip
    for curve in profile.collectives:
        first, last = curve.points[0], curve.points[-1]
        made.add_row(
            curve.kind, str(curve.participants), seconds(first.seconds),
            seconds(last.seconds * 8 * _MiB / last.x),
            f"{last.x / last.seconds / _MiB:,.0f} MiB/s",
        )  # fmt: skip
    out.print(heading("Collectives"), indented(made))


def _show_residuals(fit: Fit, out: Output) -> None:
    from rich.markup import escape

    from meshwright.cli.show import heading, indented, table
    from meshwright.runtime.calibrate import by_family, median_error, worst

    made = table("family", "probes", "median", "worst", "of", right=("probes", "median", "worst"))
    families = sorted(by_family(fit.residuals).items(), key=lambda item: -median_error(item[1]))
    for name, found in families[:_MOST_FAMILIES]:
        far = worst(found)[0]
        made.add_row(
            escape(name), str(len(found)), f"{median_error(found):.0%}", f"{far.error:+.0%}",
            escape(_short(far.name)),
        )  # fmt: skip
    every = list(fit.residuals)
    made.add_row("all", str(len(every)), f"{median_error(every):.0%}", "", "")
    out.print(heading("How far the fit is from what it was fitted to"), indented(made))


def _short(name: str) -> str:
    """An op's name and its first shape."""
    words = name.removeprefix("_").split()
    return " ".join(words[:2])[:24]


def _tiers(profile: Profile) -> Any:
    from meshwright.cli.show import table

    made = table("tier", "read", "written", right=("read", "written"))
    for tier in profile.lower_tiers:
        made.add_row(
            tier.name, f"{tier.read_bytes_per_s / _MiB:,.0f} MiB/s",
            f"{tier.write_bytes_per_s / _MiB:,.0f} MiB/s",
        )  # fmt: skip
    return made
