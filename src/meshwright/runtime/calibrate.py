"""Measures this machine: what ops, collectives and steps cost while all its processes run.

Every figure is taken in all processes at once, because that is how a step
runs: on two cores, four processes each get half a core and a share of the
memory's bandwidth.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from meshwright.cluster.types import Profile
from meshwright.cost.fit import Fit, Residual, by_family, fit_profile, median_error, worst
from meshwright.cost.measured import Measured
from meshwright.errors import UsageError
from meshwright.runtime.launch import launch
from meshwright.runtime.probing import Prober, agreed
from meshwright.runtime.tiers import measure_tiers
from meshwright.runtime.worker import available_cores, init_process

__all__ = [
    "Fit", "Residual", "by_family", "calibrate", "calibrate_here", "calibration", "fitted",
    "median_error", "worst",
]  # fmt: skip

_MOST_PASSES = 7
_SHORTEST_PASS_S = 5.0
_SHUTDOWN_S = 3.0  # what ending the processes takes, kept out of the measuring


def calibrate(processes: int, budget_s: float = 60.0, *, threads: int | None = None) -> Profile:
    """A profile of this machine with `processes` local processes; see `calibration`."""
    return calibration(processes, budget_s, threads=threads).profile


def calibration(processes: int, budget_s: float = 60.0, *, threads: int | None = None) -> Fit:
    """Profile and residuals of this machine with `processes`, in about `budget_s` seconds.

    `threads` is how many each process computes with, by default an equal share
    of the cores. A small budget gives rougher figures, never fewer; a pass over
    all probes takes a few seconds at least, and one is taken in any case.
    Raises UsageError for nonsense arguments and RunError when a process dies.
    """
    started = time.time()
    if processes < 1:
        raise UsageError(f"{processes} processes can't be measured", "Use at least one.")
    if budget_s <= 0:
        raise UsageError(f"a budget of {budget_s} s is no time", "Give some seconds.")
    cores = available_cores()
    threads = threads or max(1, cores // processes)
    payload = {"deadline": started + budget_s - _SHUTDOWN_S, "threads": threads}
    with tempfile.TemporaryDirectory(prefix="meshwright-calibrate-") as folder:
        found = launch(
            f"{__name__}:worker", payload, processes, Path(folder), timeout_s=6 * budget_s + 120
        )
    return fitted([Measured.model_validate(item) for item in found], processes, threads)


def fitted(results: list[Measured], processes: int, threads: int) -> Fit:
    """The fit of what local processes measured."""
    passes = len(results[0].contention)
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return fit_profile(
        results,
        name=f"{platform.machine()} cpu, {processes} processes",
        source=f"calibrated with {processes} processes of {threads} threads on "
        f"{available_cores()} cores, {passes} passes, torch {torch.__version__}",
        memory_bytes=ram // processes,
    )


def worker(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What each process runs: the same measurements in the same order. Returns `Measured`."""
    init_process(threads=payload["threads"])
    return _measured("cpu", 1, payload["deadline"]).model_dump(mode="json")


def calibrate_here(budget_s: float, device: str) -> Fit | None:
    """The same in the processes that torchrun started, one a device; None but on the first.

    Where there are several hosts, collectives inside a host and between hosts
    are told apart. Every process must call it.
    """
    deadline = time.time() + budget_s
    process = init_process(device)
    hosts = process.world // process.local_world
    mine = _measured(device, hosts, deadline).model_dump(mode="json")
    found: list[Any] = [mine]
    if process.world > 1:
        found = [None] * process.world
        dist.all_gather_object(found, mine)
    if process.rank != 0:
        return None
    results = [Measured.model_validate(item) for item in found]
    if device == "cpu":
        return fitted(results, process.local_world, torch.get_num_threads())
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return fit_profile(
        results,
        name=properties.name,
        source=f"calibrated with {process.world} devices on {hosts} hosts, "
        f"{len(results[0].contention)} passes, torch {torch.__version__}",
        memory_bytes=properties.total_memory,
    )


def _measured(device: str, hosts: int, deadline: float) -> Measured:
    prober = Prober(device, hosts)
    left_s = agreed(deadline - time.time(), "min")
    passes = max(2, min(_MOST_PASSES, int(left_s / _SHORTEST_PASS_S)))
    for number in range(passes):
        left_s = agreed(deadline - time.time(), "min")
        if number > 1 and left_s < 0.5 * _SHORTEST_PASS_S:
            break
        prober.measure(max(left_s / (passes - number), 0.5))
    prober.found.tiers = measure_tiers(device)
    return prober.found
