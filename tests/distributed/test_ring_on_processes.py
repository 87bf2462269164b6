"""Context parallelism on real gloo processes: both ways to get keys and values."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meshwright.api import plan

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).parent))

from test_processes_equal_one_device import captured, verify_all

from distributed import fork_processes

OPTIONS = {"layers": "2", "width": "32", "heads": "4", "seq_len": "18", "global_batch": "3"}
STRATEGIES = ("context,attention=ring", "context")


@pytest.mark.processes
@pytest.mark.timeout(280)
def test_three_processes_pass_keys_and_values_on(run_dir) -> None:
    shared = captured("zoo:gpt", **OPTIONS)
    plans = [plan(shared.task, "local:3", strategy, model=shared) for strategy in STRATEGIES]
    payload = {
        "model": "zoo:gpt",
        "options": OPTIONS,
        "plans": [made.model_dump(mode="json") for made in plans],
    }
    seen = fork_processes(verify_all, 3, run_dir, payload, timeout_s=240)[0]
    for strategy, made, item in zip(STRATEGIES, plans, seen, strict=True):
        assert item["equal"], (strategy, item["seen"])
        assert item["executed"] == [c.model_dump() for c in made.predicted.collectives], strategy
    assert any(item["kind"] == "ring_shift" for item in seen[0]["executed"])
