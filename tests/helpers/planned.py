"""Plans run on processes beside one device, and what rank 0 saw of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshwright.api import Model, one_device, parallelize, sgd
from meshwright.plan.types import Plan
from meshwright.runtime.compare import compare
from meshwright.runtime.worker import init_process


def run_plans(
    payload: dict[str, Any], model: Callable[[str], Model]
) -> list[dict[str, Any]] | None:
    """Of each (model's name, plan) of the payload: whether numbers agree, and what ran."""
    rank = init_process().rank
    found = []
    for name, text in payload["plans"]:
        made, known = Plan.model_validate(text), model(name)
        job = parallelize(known.task, optimizer=sgd, plan=made, model=known, device="cpu")
        result = compare(job, lambda m=made, k=known: one_device(k.task, m), [known.task.batch])
        job.reset_counts()
        job.step(known.task.batch)
        if result is not None:
            executed = [c.model_dump() for c in job.executed()]
            found.append({"equal": result.equal, "seen": str(result), "executed": executed})
    return found if rank == 0 else None
