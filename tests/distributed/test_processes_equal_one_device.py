"""The same claim as `tests/equivalence`, on four real gloo processes.

All strategies of a model run in one set of processes, forks of this one, since starting them
and capturing takes longer than the steps do. That processes begin from nothing is for
`tests/cli` and `tests/runtime/test_launch.py` to say.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meshwright.api import Model, one_device, parallelize, plan, sgd
from meshwright.plan.types import Plan
from meshwright.runtime.compare import compare
from meshwright.runtime.worker import init_process
from meshwright.zoo.reference import load_task

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from distributed import fork_processes

STRATEGIES = (
    "data",
    "zero=1",
    "zero=2",
    "zero=3",
    "tensor",
    "data=2,tensor=2",
    "data=2,tensor=2,zero=3",
    "replica=2,data=2,zero=3",
    "auto",
)
MODELS = {
    "zoo:gpt": {"layers": "2", "width": "32", "heads": "4", "seq_len": "16", "dropout": "0.1"},
    "zoo:convnet": {"width": "8", "global_batch": "16"},
    "zoo:mlp": {"hidden": "32"},
}


@cache
def captured(reference: str, **options: str) -> Model:
    """Captured once, before the processes fork."""
    return Model(load_task(reference, options))


def verify_all(payload: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Compare every plan with one device; what rank 0 saw of each."""
    rank = init_process().rank
    model = captured(payload["model"], **payload["options"])
    task = model.task
    found = []
    for text in payload["plans"]:
        made = Plan.model_validate(text)
        job = parallelize(task, optimizer=sgd, plan=made, model=model, device="cpu")
        result = compare(job, lambda made=made: one_device(task, made), [task.batch] * 2)
        job.reset_counts()
        job.step(task.batch)
        if result is not None:
            found.append(
                {
                    "equal": result.equal,
                    "seen": str(result),
                    "executed": [c.model_dump() for c in job.executed()],
                }
            )
    return found if rank == 0 else None


# Of each kind of model some pairs run on processes in the matrix; here all strategies of one.
FEWER = [
    name if name == "zoo:gpt" else pytest.param(name, marks=pytest.mark.all) for name in MODELS
]


@pytest.mark.processes
@pytest.mark.timeout(280)
@pytest.mark.parametrize("model", FEWER)
def test_every_strategy_on_four_processes(model, run_dir):
    shared = captured(model, **MODELS[model])
    plans = [plan(shared.task, "local:4", strategy, model=shared) for strategy in STRATEGIES]
    payload = {
        "model": model,
        "options": MODELS[model],
        "plans": [made.model_dump(mode="json") for made in plans],
    }
    seen = fork_processes(verify_all, 4, run_dir, payload, timeout_s=240)[0]
    assert len(seen) == len(STRATEGIES)
    for strategy, made, item in zip(STRATEGIES, plans, seen, strict=True):
        assert item["equal"], (strategy, item["seen"])
        planned = [c.model_dump() for c in made.predicted.collectives]
        assert item["executed"] == planned, strategy
