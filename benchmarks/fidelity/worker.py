"""What each process does: all jobs and the calibration's probes, in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch.distributed as dist

from meshwright.api import Model, optimizer_by_name, parallelize
from meshwright.cli.workers import measured_step, traced_step
from meshwright.plan.types import Plan
from meshwright.runtime.job import Job
from meshwright.runtime.probing import Prober
from meshwright.runtime.worker import init_process, report
from meshwright.task import Task
from meshwright.zoo.reference import load_task

_WARM_UP = 2
_LEARNING_RATE = 1e-4


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """payload: pairs (model, options, plan), repeats, probe_s, least_s (of steps a repeat)."""
    init_process("cpu")
    report({"stage": "building"})
    jobs = [_job(pair) for pair in payload["pairs"]]
    for task, job in jobs:
        for _ in range(_WARM_UP):
            job.step(task.batch)
    prober = Prober()
    seconds: list[list[float]] = [[] for _ in jobs]
    loads = []
    for repeat in range(payload["repeats"]):
        report({"stage": f"repeat {repeat + 1} of {payload['repeats']}"})
        prober.measure(payload["probe_s"])
        for index, (task, job) in enumerate(jobs):
            seconds[index].append(_steps(task, job, payload["least_s"]))
        loads.append(os.getloadavg()[0])
    prober.measure(payload["probe_s"])
    report({"stage": "memory and traces"})
    found = []
    for index, (task, job) in enumerate(jobs):
        rows = traced_step(job, task.batch, median(prober.found.contention))
        held, peak = measured_step(job, task.batch)
        found.append(
            {
                "seconds": seconds[index],
                "rows": {name: list(spent) for name, spent in rows.items()},
                "peak_memory_bytes": held + peak.peak_bytes,
            }
        )
    return {
        "measured": prober.found.model_dump(mode="json"), "pairs": found, "loads": loads,
    }  # fmt: skip


def _job(pair: Mapping[str, Any]) -> tuple[Task, Job]:
    task = load_task(pair["model"], pair["options"])
    plan = Plan.model_validate(pair["plan"])
    job = parallelize(
        task, optimizer=optimizer_by_name(plan.optimizer, _LEARNING_RATE), plan=plan,
        model=Model(task), device="cpu",
    )  # fmt: skip
    return task, job


def _steps(task: Task, job: Job, least_s: float) -> float:
    """Mean seconds of a step, over as many as take `least_s`; all processes do as many."""
    dist.barrier()
    first = job.step(task.batch).seconds
    wanted: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(wanted, first)
    count = max(1, min(10, round(least_s / max(wanted))))
    dist.barrier()
    started = time.perf_counter()
    for _ in range(count):
        job.step(task.batch)
    dist.barrier()
    return (time.perf_counter() - started) / count
