"""A plan as a file: written, read, damaged, and held against another model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meshwright.api import Model, parallelize, plan, sgd, simulate_plan
from meshwright.cluster.mesh import Mesh
from meshwright.errors import PlanError
from meshwright.plan.check import check_devices, check_plan
from meshwright.plan.file import load_plan, parse_plan, save_plan
from meshwright.plan.types import FORMAT_VERSION, Decision, ParameterPlan, Plan
from meshwright.runtime.lockstep import run_lockstep
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.mlp import mlp_task

TIMINGS = ("capture_s", "search_s", "lower_s")


@cache
def mlp(hidden: int = 16) -> Model:
    return Model(mlp_task(features=12, hidden=hidden, layers=1, classes=5, global_batch=8))


@cache
def made() -> Plan:
    return plan(mlp().task, "local:4", "data=2,tensor=2,zero=3", model=mlp(), clip_norm=1.0)


def damaged(**changes: Any) -> str:
    return json.dumps({**json.loads(made().model_dump_json()), **changes})


def test_a_plan_survives_its_file(run_dir: Path) -> None:
    path = run_dir / "deeper" / "plan.json"
    save_plan(made(), path)
    assert load_plan(path) == made()
    save_plan(load_plan(path), path)
    assert load_plan(path) == made()
    assert [item.name for item in path.parent.iterdir()] == ["plan.json"]


def test_a_plan_that_was_read_runs(run_dir: Path) -> None:
    path = run_dir / "plan.json"
    save_plan(made(), path)
    model = mlp()

    def rank(comm: Any) -> float:
        job = parallelize(
            model.task, optimizer=sgd, plan=path, communicator=comm, model=model, device="cpu"
        )
        return job.step(model.task.batch).loss

    losses = run_lockstep(Mesh(tuple(made().mesh.items())), rank)
    assert len(set(losses)) == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file(share: float, run_dir: Path) -> None:
    text = made().model_dump_json(indent=2)
    path = run_dir / "plan.json"
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(PlanError, match="not whole JSON"):
        load_plan(path)


def test_a_file_that_is_missing_or_no_text(run_dir: Path) -> None:
    with pytest.raises(PlanError, match="can't be read"):
        load_plan(run_dir / "plan.json")
    (run_dir / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="can't be read"):
        load_plan(run_dir / "plan.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "no Meshwright plan"),
        ("{}", "no Meshwright plan"),
        ("null", "no Meshwright plan"),
        (damaged(format_version=FORMAT_VERSION + 1), "plan format 2"),
        (damaged(format_version=0), "plan format 0"),
        (damaged(format_version="1"), "plan format '1'"),
        (damaged(mesh="data"), "wrong value at 'mesh'"),
        (damaged(microbatches="many"), "wrong value at 'microbatches'"),
        (damaged(surprise=1), "wrong value at 'surprise'"),
        (damaged(decisions=[{"axis": "data"}]), "wrong value at 'decisions.0.value'"),
        (damaged(parameters={"head.weight": {"residency": "never"}}), "head.weight.residency"),
    ],
)
def test_a_wrong_field_is_named(text: str, says: str) -> None:
    with pytest.raises(PlanError, match=says) as caught:
        parse_plan(text)
    assert caught.value.remedy


def test_a_plan_for_another_model_names_the_difference() -> None:
    check_plan(made(), mlp().microbatch(1)[0].program)
    with pytest.raises(PlanError, match="other shapes"):
        check_plan(made(), mlp(32).microbatch(1)[0].program)
    gpt = Model(gpt_task(layers=1, width=8, heads=2, vocab=8, seq_len=4, global_batch=4))
    with pytest.raises(PlanError, match=r"plans for 'embed\.bias'"):
        check_plan(made(), gpt.microbatch(1)[0].program)


def test_a_plan_for_another_number_of_devices() -> None:
    check_devices(made(), 4)
    with pytest.raises(PlanError, match=r"for 4 devices \(data 2 x tensor 2\), but there are 8"):
        check_devices(made(), 8)


@pytest.mark.parametrize(
    ("decision", "says"),
    [
        (Decision(axis="tensor", value="nobody.weight", dim=0), "'nobody.weight'"),
        (Decision(axis="tensor", value="head.weight", dim=2), "dim 2 of head.weight"),
        (Decision(axis="tensor", value="head.weight", dim=-1), "dim -1 of head.weight"),
        (Decision(axis="stage", value="head.weight", dim=0), "the axis 'stage'"),
        (Decision(axis="tensor", value="head.weight", dim=0, outer=2), "does not divide it"),
        (Decision(axis="tensor", value="head.weight", dim=0, outer=0), "does not divide it"),
        (Decision(axis="tensor", value="head.weight", dim=0, extent=0), "does not divide it"),
        (Decision(axis="tensor", value="head.weight", dim=0, extent=3), "does not divide it"),
    ],
)
def test_a_decision_on_what_does_not_exist(decision: Decision, says: str) -> None:
    edited = made().model_copy(update={"decisions": (decision,)})
    with pytest.raises(PlanError, match=says):
        simulate_plan(mlp().task, edited, model=mlp())


def test_storage_over_an_axis_that_does_not_exist() -> None:
    parameters = {**made().parameters, "head.weight": ParameterPlan(storage_axes=("stage",))}
    edited = made().model_copy(update={"parameters": parameters})
    with pytest.raises(PlanError, match=r"head\.weight over the axis 'stage'"):
        simulate_plan(mlp().task, edited, model=mlp())


def test_storage_along_a_dim_that_does_not_exist() -> None:
    entry = ParameterPlan(residency="use", storage_axes=("data",), storage_dim=2)
    edited = made().model_copy(update={"parameters": {**made().parameters, "head.weight": entry}})
    with pytest.raises(PlanError, match="along dim 2"):
        simulate_plan(mlp().task, edited, model=mlp())


def test_an_entry_for_a_parameter_that_does_not_exist() -> None:
    parameters = {**made().parameters, "head.wieght": ParameterPlan()}
    edited = made().model_copy(update={"parameters": parameters})
    with pytest.raises(PlanError, match=r"'head\.wieght'") as caught:
        simulate_plan(mlp().task, edited, model=mlp())
    assert "'head.weight'" in caught.value.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("microbatches", 0),
        ("microbatches", -1),
        ("microbatches", 10**20),
        ("microbatches", True),
        ("mesh", {"data": -2, "tensor": -2}),
        ("mesh", {"data": 10**30}),
        ("mesh", {"data": "2"}),
        ("clip_norm", -1.0),
        ("clip_norm", float("nan")),
        ("global_batch", 0),
    ],
)
def test_a_nonsense_number_is_refused_where_it_is_read(field, value):
    text = json.loads(made().model_dump_json()) | {field: value}
    with pytest.raises(PlanError, match=field):
        parse_plan(json.dumps(text))


def test_a_file_nested_without_end_is_refused():
    with pytest.raises(PlanError, match="nested"):
        parse_plan("[" * 100_000)
