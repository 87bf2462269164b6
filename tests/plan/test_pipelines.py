"""Plans with stages and recomputation: planned, kept in a file, simulated, and not run."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from meshwright.api import Model, parallelize, plan, sgd, simulate_plan, verify
from meshwright.errors import PlanError, StrategyError
from meshwright.plan.diff import diff_plans
from meshwright.plan.file import load_plan, parse_plan, save_plan
from meshwright.plan.types import Pipeline, Plan
from meshwright.search.strategy import parse_strategy
from meshwright.zoo.gpt import gpt_task


@cache
def gpt() -> Model:
    return Model(gpt_task(layers=4, width=32, heads=2, seq_len=16, global_batch=16))


@cache
def made(strategy: str = "stage=2,data=2,zero=1") -> Plan:
    return plan(gpt().task, "local:4", strategy, model=gpt())


def test_the_plan_names_its_cuts_and_survives_its_file(run_dir: Path) -> None:
    found = made()
    assert found.mesh == {"stage": 2, "data": 2}
    assert found.pipeline is not None
    assert found.pipeline.schedule == "1f1b"
    (cut,) = found.pipeline.cuts
    assert cut.startswith("blocks.")
    assert found.microbatches == 8  # four a stage
    save_plan(found, run_dir / "plan.json")
    assert load_plan(run_dir / "plan.json") == found
    again = simulate_plan(gpt().task, found, model=gpt())
    assert again.step_time_s == pytest.approx(found.predicted.step_time_s)
    assert again.pipeline == found.pipeline


def test_an_edited_cut_is_followed() -> None:
    edited = made().model_copy(update={"pipeline": Pipeline(stages=2, cuts=("blocks.1",))})
    result = simulate_plan(gpt().task, edited, model=gpt())
    assert [stage.modules for stage in result.stages] == [("",), ("blocks.1",)]
    assert {item.field for item in diff_plans(made(), edited)} == {"pipeline.cuts"}


@pytest.mark.parametrize(
    ("strategy", "asks"),
    [
        ("stage=2,data=2", r"2 pipeline stages \(1f1b\), which"),
        ("data=4,recompute=full", "full recomputation, which"),
        ("stage=2,data=2,schedule=zb-h1,recompute=selective", "and selective recomputation"),
    ],
)
def test_what_can_not_run_yet_is_refused(strategy: str, asks: str) -> None:
    with pytest.raises(PlanError, match=asks):
        parallelize(gpt().task, optimizer=sgd, plan=made(strategy), model=gpt(), device="cpu")
    with pytest.raises(PlanError, match=asks):
        verify(gpt().task, plan=made(strategy), model=gpt())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage=2,schedule=random", "known are gpipe, 1f1b, interleaved, zb-h1"),
        ("recompute=some", "known are none, selective, full"),
        ("data=2,schedule=1f1b", "without a stage axis"),
        ("data=2,virtual=2", "without a stage axis"),
        ("stage=2,virtual=2,schedule=1f1b", "can't order"),
        ("stage=2,schedule=interleaved", "each has one"),
    ],
)
def test_strategies_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        parse_strategy(text)


def test_virtual_stages() -> None:
    found = made("stage=2,data=2,virtual=2")
    assert found.pipeline is not None
    assert found.pipeline.schedule == "interleaved"
    assert len(found.pipeline.cuts) == 3


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ({"stages": 4}, "4 stages on a mesh with 2"),
        (None, "1 stages on a mesh with 2"),
        ({"stages": 2, "cuts": ["blocks.1", "blocks.2"]}, "2 cuts make 3 pieces"),
        ({"stages": 2, "schedule": "interleaved"}, "takes 2 or more"),
    ],
)
def test_a_damaged_pipeline(pipeline: Any, message: str) -> None:
    content = json.loads(made().model_dump_json())
    with pytest.raises(PlanError, match=message):
        parse_plan(json.dumps({**content, "pipeline": pipeline}))


def test_no_value_is_cut_over_stages() -> None:
    content = made().model_dump()
    content["decisions"][0]["axis"] = "stage"
    with pytest.raises(ValidationError, match="holds parts of the model"):
        Plan.model_validate(content)
