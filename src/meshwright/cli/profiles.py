"""Profiles of this machine, measured once for each number of processes and kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from meshwright.cli.output import Output
from meshwright.cli.processes import cores_here
from meshwright.cluster.profile_file import load_profile, save_profile
from meshwright.cluster.types import Profile
from meshwright.errors import ClusterError

BUDGET_S = 25.0


def local_profile(
    processes: int, out: Output, measure: bool, fallback: Path | None = None
) -> Profile | None:
    """The kept profile of this machine; a new one where `measure` says so, else None."""
    kept = cached_profile(processes)
    if kept is not None:
        out.note(f"Predicting from {profile_path(processes)}, measured on this machine before.")
        return kept
    if not measure:
        out.note(
            "Predicting from the built-in profile of a CPU; "
            f"`meshwright calibrate --cluster local:{processes}` measures this machine."
        )
        return None
    return measured_profile(processes, out, fallback)


def measured_profile(processes: int, out: Output, fallback: Path | None) -> Profile:
    """Calibrate and keep the result in the user's cache, or in `fallback`."""
    from meshwright.runtime.calibrate import calibrate

    out.note(
        f"Calibrating this machine with {processes} process{'es' if processes > 1 else ''}, about "
        "half a minute; kept for next time (--no-calibrate leaves it out)."
    )
    with out.status("Calibrating"):
        profile = calibrate(processes, BUDGET_S)
    kept = keep(profile, profile_path(processes), fallback)
    out.note(f"Measured profile in {kept}" if kept else "The measured profile can't be kept here.")
    return profile


def cached_profile(processes: int) -> Profile | None:
    """None also for one that can't be read, such as an older version's."""
    with contextlib.suppress(ClusterError):
        path = profile_path(processes)
        return load_profile(path) if path.is_file() else None
    return None


def profile_path(processes: int) -> Path:
    """Named after all that changes what calibration finds."""
    facts = (platform.node(), platform.machine(), _processor(), str(cores_here()), _torch())
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:10]
    return cache_folder() / f"profile-{processes}-{digest}.json"


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "meshwright"
    try:
        return Path.home() / ".cache" / "meshwright"
    except RuntimeError:  # no home at all
        return Path(tempfile.gettempdir()) / "meshwright"


def keep(profile: Profile, path: Path, fallback: Path | None) -> Path | None:
    """Write to `path`, or else into `fallback`; where it is now."""
    for target in (path, *([fallback / "profile.json"] if fallback else [])):
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        with contextlib.suppress(OSError, ClusterError):
            target.parent.mkdir(parents=True, exist_ok=True)
            save_profile(profile, partial)
            partial.replace(target)
            return target
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""
