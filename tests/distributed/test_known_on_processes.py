"""Strategies that experts know, at tiny sizes on four real gloo processes.

What `tests/search/test_known_strategies.py` counts in plans of real sizes is what runs: the
same collectives, and the numbers of one device.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meshwright.api import Model, plan
from meshwright.zoo.reference import load_task

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from planned import run_plans

from distributed import fork_processes

KNOWN = {
    "dlrm": ("tables", "replica=2,data=2,tables"),
    "moe": ("expert",),
    "gns": ("edge",),
    "unet3d": ("spatial",),
}
OPTIONS = {"dlrm": {"rows": "6144"}}  # so that each of four tables is worth a cut


@cache
def model(name: str) -> Model:
    """Captured once, before the processes fork."""
    return Model(load_task(f"zoo:{name}", {"size": "tiny", **OPTIONS.get(name, {})}))


def run(payload: dict[str, Any]) -> list[dict[str, Any]] | None:
    return run_plans(payload, model)


@pytest.mark.processes
@pytest.mark.timeout(280)
def test_what_experts_know_runs_as_it_is_planned(run_dir: Path) -> None:
    plans = [
        (name, plan(model(name).task, "local:4", text, model=model(name)))
        for name, texts in KNOWN.items()
        for text in texts
    ]
    payload = {"plans": [(name, made.model_dump(mode="json")) for name, made in plans]}
    seen = fork_processes(run, 4, run_dir, payload, timeout_s=240)[0]
    ran = []
    for (name, made), item in zip(plans, seen, strict=True):
        assert item["equal"], (name, item["seen"])
        assert item["executed"] == [c.model_dump() for c in made.predicted.collectives], name
        ran.append({(c["kind"], c["axis"]): c["count"] for c in item["executed"]})
    by_columns, by_both, experts, edges, sides = ran
    wide = [path for path, item in plans[0][1].parameters.items() if item.cuts]
    assert by_columns["all_to_all", "data"] == len(wide) + 1  # back all at once
    assert by_columns["all_gather", "data"] == 1  # row numbers
    assert by_both["all_to_all", "data"] <= len(wide) + 1
    assert by_both["reduce_scatter", "replica"] >= 1
    layers = {path.split(".")[1] for path in plans[2][1].parameters if "blocks." in path}
    assert experts["all_to_all", "expert"] == 4 * len(layers)
    assert {kind for kind, _ in edges} == {"all_reduce"}
    assert {kind for kind, _ in sides} == {"all_reduce", "halo"}
