"""The processes that train and verify: started here, or by the user's torchrun."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshwright.cluster.types import Cluster
from meshwright.errors import MeshwrightError, RunError, UsageError

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class World:
    """This process among those of a torchrun."""

    rank: int
    size: int
    hosts: int


def cores_here() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def torchrun_world() -> World | None:
    """None where torchrun did not start this process."""
    variables = os.environ
    if "RANK" not in variables or "WORLD_SIZE" not in variables:
        return None
    try:
        size = int(variables["WORLD_SIZE"])
        here = int(variables.get("LOCAL_WORLD_SIZE", size))
        return World(int(variables["RANK"]), size, -(-size // max(here, 1)))
    except ValueError:
        raise UsageError(
            f"RANK={variables['RANK']} and WORLD_SIZE={variables['WORLD_SIZE']} in the environment "
            "are no numbers.",
            "Unset them, or start the command with torchrun.",
        ) from None


def is_first() -> bool:
    """Whether this process prints and writes what is written once."""
    world = torchrun_world()
    return world is None or world.rank == 0


def run_folder(given: Path | None, model: str) -> Path:
    """The folder that a run writes to, not made yet; the same in all processes of a torchrun."""
    if given is not None:
        return given
    world = torchrun_world()
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in model) or "model"
    if world is None:
        return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if world.hosts > 1:
        raise UsageError(
            "The run is on several hosts, and they have to agree on its folder.",
            "Name one that all hosts share, with --run-dir DIR.",
        )
    # The same in every process that one torchrun started.
    return Path("runs") / f"{name}-torchrun-{os.getppid()}"


def make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The run folder {run} can't be made: {error.strerror}.",
            "Name another with --run DIR.",
        ) from error


@contextlib.contextmanager
def scratch_folder(command: str) -> Iterator[Path]:
    """A folder for the logs of processes, kept when they fail: the error names it."""
    folder = Path(tempfile.mkdtemp(prefix=f"meshwright-{command}-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def check_startable(cluster: Cluster, local: bool, command: str, model: str) -> None:
    """Raises UsageError that says how to start it, where processes can't be started from here."""
    if local or torchrun_world() is not None:
        return
    hosts = sum(group.hosts for group in cluster.groups)
    words = shlex.join([command, model, "--cluster", cluster.text])
    raise UsageError(
        f"The cluster {cluster.text} is not this machine, so its processes can't be started from "
        "here.",
        f"On each of its {hosts} host{'s' if hosts > 1 else ''} run: torchrun --nnodes {hosts} "
        f"--nproc-per-node {cluster.groups[0].devices} --rdzv-backend c10d "
        f"--rdzv-endpoint FIRST_HOST:29500 -m meshwright {words} --run-dir SHARED_FOLDER, "
        "with the other options as here.",
    )


def run_workers(
    name: str, payload: Mapping[str, Any], processes: int, run: Path, progress: Progress
) -> Sequence[dict[str, Any]]:
    """What `meshwright.cli.workers:name` returns in each process; under torchrun in this one."""
    if torchrun_world() is None:
        from meshwright.runtime.launch import launch

        return launch(f"meshwright.cli.workers:{name}", payload, processes, run, progress=progress)
    from meshwright.cli import workers
    from meshwright.runtime.worker import close_process

    first = is_first()
    result = getattr(workers, name)(payload, progress if first else lambda record: None)
    close_process()
    return [result]


def last_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = [
        folder
        for folder in (run / "checkpoints").glob("*")
        if folder.name.isdecimal() and (folder / "meta.json").is_file()
    ]
    return max(found, key=lambda folder: int(folder.name), default=None)


def checkpoint_to_resume(path: Path) -> Path:
    """A checkpoint's folder, or the newest checkpoint of a run's folder."""
    if (path / "meta.json").is_file():
        return path
    newest = last_checkpoint(path)
    if newest is not None:
        return newest
    raise UsageError(
        f"{path} holds no complete checkpoint.",
        "Give a folder such as RUN/checkpoints/100, or a run's folder to take its newest.",
    )


def with_checkpoint(error: RunError, run: Path) -> MeshwrightError:
    """The same error, which says from where the run can go on."""
    newest = last_checkpoint(run)
    kept = f"What it wrote is in {run}"
    more = f"{kept}; go on with --resume {newest}." if newest else f"{kept}."
    error.remedy = f"{error.remedy} {more}".strip()
    return error
