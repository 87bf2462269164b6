"""What the processes that the command line starts do: train, or verify, by a plan.

Each takes a payload of JSON's types and returns one. Rank 0 reports progress.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from meshwright.api import Model, one_device, optimizer_by_name, parallelize
from meshwright.errors import RunError
from meshwright.plan.types import Collective, Plan
from meshwright.runtime.compare import Comparison, Worst, compare
from meshwright.runtime.job import Job, Metrics
from meshwright.runtime.log import MetricsLog
from meshwright.runtime.measure import Peak, live_tensor_bytes, measure_peak
from meshwright.runtime.steptrace import Spent, StepTrace
from meshwright.runtime.worker import init_process, report
from meshwright.task import Task
from meshwright.zoo.data import batches_for
from meshwright.zoo.reference import load_task

Payload = Mapping[str, Any]
Callback = Callable[[dict[str, Any]], None]

# Steps that are not counted in the measured step time: the first compiles and allocates.
_WARM_UP = 2


def train(payload: Payload, progress: Callback = report) -> dict[str, Any]:
    """Train `steps` steps, measuring, logging to `run`, and saving where asked.

    payload: model, options, plan, steps, seed, optimizer, learning_rate, run,
    and optionally resume (a checkpoint), save_at (steps after which to save),
    save_every (so many steps), save_last, profile_step (a step to trace and
    measure memory on, the first of this run being 0; the two after it are timed
    op by op), contention (of the profile), device.
    """
    task, job = _job(payload)
    if payload.get("resume"):
        job.load(payload["resume"])
    run = Path(payload["run"])
    batches = _Batches(task, payload["seed"])
    save_at, every = set(payload.get("save_at", ())), payload.get("save_every")
    profile_step = payload.get("profile_step")
    # The steps after it are timed op by op.
    traced = set() if profile_step is None else {profile_step + 1, profile_step + 2}
    tracing = Tracing(job, payload.get("contention", 1.0))
    losses: list[float] = []
    seconds: list[float] = []
    early: list[float] = []
    executed: tuple[Collective, ...] = ()
    peak: Peak[Metrics] | None = None
    held = 0
    with MetricsLog(run / "metrics.jsonl", job.comm.rank == 0, bool(payload.get("resume"))) as log:
        first = job.step_number
        for number in range(first, first + payload["steps"]):
            batch = batches[number]
            job.reset_counts()
            if number - first == profile_step:
                held, peak = measured_step(
                    job, batch, run / "trace.json" if job.comm.rank == 0 else None
                )
                metrics = peak.result
            elif number - first in traced:
                metrics = tracing.step(batch)
            else:
                metrics = job.step(batch)
                (seconds if number - first >= _WARM_UP else early).append(metrics.seconds)
            executed = job.executed()  # before a checkpoint adds its own
            losses.append(metrics.loss)
            log.write(metrics)
            progress({"step": metrics.step, "loss": metrics.loss, "seconds": metrics.seconds,
                      "tokens_per_s": metrics.tokens_per_s})  # fmt: skip
            if metrics.loss != metrics.loss:
                raise RunError(
                    f"The loss is not a number after step {metrics.step}.",
                    f"Lower the learning rate, or resume from a checkpoint under {run}.",
                )
            last = number == first + payload["steps"] - 1
            if (
                job.step_number in save_at
                or (every and job.step_number % every == 0)
                or (last and payload.get("save_last"))
            ):
                job.save(run / "checkpoints" / str(job.step_number))
    return {
        "losses": losses,
        "first_step": first,
        # Of a run too short to have any other, the last step is the least cold one.
        "step_time_s": statistics.median(seconds or early[-1:]) if seconds or early else None,
        "peak_memory_bytes": held + peak.peak_bytes if peak else None,
        "memory_curve": _thin([(at, held + size) for at, size in peak.curve]) if peak else [],
        "rows": tracing.rows,
        "executed": [c.model_dump() for c in executed],
        "optimizer_text": type(job.optimizer).__name__,
    }


def verify(payload: Payload, progress: Callback = report) -> dict[str, Any]:
    """Compare with one device over `steps` steps, then time and measure some more.

    payload: model, options, plan, steps, seed, optimizer, learning_rate, and
    optionally measure (False leaves out timing and memory), contention (of the
    profile), device.
    """
    plan = Plan.model_validate(payload["plan"])
    task, job = _job(payload)
    batches = _Batches(task, payload["seed"])
    make = optimizer_by_name(payload["optimizer"], payload["learning_rate"])
    progress({"stage": "comparing with one device"})
    result = compare(
        job,
        lambda: one_device(task, plan, optimizer=make, seed=payload["seed"]),
        (batches[number] for number in range(payload["steps"])),
    )
    found: dict[str, Any] = {"comparison": None if result is None else comparison_json(result)}
    if not payload.get("measure", True):
        return found
    progress({"stage": "measuring"})
    steps = iter(range(payload["steps"], payload["steps"] + 100))
    job.step(batches[next(steps)])
    seconds: list[float] = []
    started = time.perf_counter()
    while len(seconds) < 5 and (time.perf_counter() - started < 60 or len(seconds) < 2):
        batch = batches[next(steps)]
        job.reset_counts()
        seconds.append(job.step(batch).seconds)
    executed = job.executed()
    held, peak = measured_step(job, batches[next(steps)])
    tracing = Tracing(job, payload.get("contention", 1.0))
    for _ in range(2):
        tracing.step(batches[next(steps)])
    return found | {
        "rows": tracing.rows,
        "executed": [c.model_dump() for c in executed],
        "step_time_s": statistics.median(seconds),
        "peak_memory_bytes": held + peak.peak_bytes,
    }


def comparison_json(result: Comparison) -> dict[str, Any]:
    def worst(item: Worst) -> dict[str, Any]:
        return {"name": item.name, "relative": item.relative}

    return {
        "equal": result.equal,
        "initial_equal": result.initial_equal,
        "losses": result.losses,
        "tolerance": result.tolerance,
        "worst": {
            "loss": worst(result.loss),
            "gradient": worst(result.gradient),
            "parameter": worst(result.parameter),
            "buffer": worst(result.buffer),
        },
    }


def greet(payload: Payload) -> dict[str, Any]:
    """Join a run; every worker waits for all others before it ends. For `doctor`."""
    process = init_process("cpu", timeout_s=payload["timeout_s"])
    return {"rank": process.rank, "world": process.world}


def measured_step(job: Job, batch: Any, trace: Path | None = None) -> tuple[int, Peak[Metrics]]:
    """One step under the profiler: bytes held before it, and what it took beyond them."""
    job.trainer.drop_gradients()  # the profiler doesn't see older memory freed
    held = state_bytes(job)
    job.comm.pause_s = 0.005
    try:
        return held, measure_peak(lambda: job.step(batch), job.device.type, trace)
    finally:
        job.comm.pause_s = 0.0


class Tracing:
    """Steps of a job timed op by op. The first one emits the timed code; `rows` are the last's."""

    def __init__(self, job: Job, contention: float = 1.0) -> None:
        self.rows: dict[str, Spent] = {}
        self._job = job
        self._contention = contention
        self._trace = StepTrace(job.device.type)

    def step(self, batch: Any) -> Metrics:
        self._job.comm.trace = self._trace
        self._trace.reset()
        try:
            with self._trace.optimizer(self._job.optimizer):
                own = time.thread_time()
                metrics = self._job.step(batch)
                own = time.thread_time() - own
        finally:
            self._job.comm.trace = None
        self.rows = self._trace.finish(metrics.seconds, own, self._contention)
        return metrics


def traced_step(job: Job, batch: Any, contention: float = 1.0) -> dict[str, Spent]:
    """Time by op family and collective of one step, the second of two that are traced."""
    tracing = Tracing(job, contention)
    tracing.step(batch)
    tracing.step(batch)
    return tracing.rows


def state_bytes(job: Job) -> int:
    """Memory of what the job holds: parameters, buffers, optimizer state, gradients if any."""
    trainer = job.trainer
    tensors = [*trainer.parameters.values(), *trainer.buffers.values()]
    tensors += [p.grad for p in trainer.parameters.values() if p.grad is not None]
    for state in job.optimizer.state.values():
        tensors += [value for value in state.values() if hasattr(value, "untyped_storage")]
    return live_tensor_bytes(tensors)


class _Batches:
    """Real data where the project has some for the model; else the example batch again."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task = task
        self.source = batches_for(task, seed)

    def __getitem__(self, step: int) -> Any:
        return self.task.batch if self.source is None else self.source[step]

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("batches have no end: index them by step")


def _job(payload: Payload) -> tuple[Task, Job]:
    task = load_task(payload["model"], payload.get("options", {}))
    plan = Plan.model_validate(payload["plan"])
    job = parallelize(
        task,
        optimizer=optimizer_by_name(payload["optimizer"], payload["learning_rate"]),
        plan=plan,
        seed=payload["seed"],
        model=Model(task),
        device=payload.get("device"),
    )
    return task, job


def _thin(curve: list[tuple[float, int]], most: int = 400) -> list[tuple[float, int]]:
    """At most about `most` points of a curve, peaks kept."""
    if len(curve) <= most:
        return curve
    step = -(-len(curve) // most)
    return [
        max(curve[k : k + step], key=lambda point: point[1]) for k in range(0, len(curve), step)
    ]
