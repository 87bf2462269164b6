"""The search at op level: the best layout of single ops is a plan like any other."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest

from meshwright.api import verify
from meshwright.cluster.mesh import Mesh
from meshwright.cluster.parse import parse_cluster
from meshwright.cost.table import table_for
from meshwright.errors import PlanError
from meshwright.layout.assignment import assign
from meshwright.layout.types import Layout
from meshwright.lower.alone import Alone
from meshwright.lower.by_op import decided
from meshwright.lower.lower import lower
from meshwright.model import Model
from meshwright.plan.diff import diff_plans
from meshwright.plan.explain import decisions, lies
from meshwright.plan.file import parse_plan
from meshwright.plan.types import Decision, Plan
from meshwright.planner import plan
from meshwright.search.oracle import Cost, Form, Step
from meshwright.search.oracle_solve import solve
from meshwright.simulate.step import simulate
from meshwright.zoo.reference import load_task

OP = "each op by itself"

# Tables cut by columns over the axis that has the batch; sums that are kept pending.
CASES = {
    "ncf": ("zoo:ncf", {}),
    "gpt": ("zoo:gpt", {"layers": "1", "seq_len": "64", "global_batch": "8"}),
    "convnet": ("zoo:convnet", {"global_batch": "8"}),
    "mlp": ("zoo:mlp", {"features": "32", "hidden": "64", "layers": "2", "global_batch": "16"}),
}


@cache
def model(name: str) -> Model:
    return Model(load_task(*CASES[name]))


@cache
def planned(name: str, *constraints: str) -> Plan:
    task = model(name).task
    return plan(task, "local:4", model=model(name), constraints=constraints, microbatches=1,
                budget_s=20)  # fmt: skip


@pytest.mark.parametrize("name", ["ncf", "gpt", "convnet"])
def test_few_decisions_say_what_every_op_does(name: str) -> None:
    analysis, cluster = model(name).whole(1), parse_cluster("local:4")
    mesh = Mesh((("data", 4),))
    alone = Alone(analysis, mesh, table_for(cluster))
    problem = alone.problem()
    held = alone.assignment(solve(problem, tolerance=1e-2).choice, problem)
    made, parameters = decided(analysis, held)
    assert sum(item.op is not None for item in made) < len(analysis.program.ops) / 5

    again = lower(analysis, assign(analysis, mesh, made, parameters), mesh.coordinate(0))
    before = lower(analysis, held, mesh.coordinate(0))
    assert again.forward == before.forward
    assert again.backward == before.backward
    assert again.reduce == before.reduce


def test_it_is_found_and_is_as_good_as_the_oracle() -> None:
    found = planned("ncf")
    assert OP in found.strategy
    analysis, cluster = model("ncf").whole(1), parse_cluster("local:4")
    mesh = Mesh((("data", 4),))
    alone = Alone(analysis, mesh, table_for(cluster))
    problem = alone.problem()
    best = lower(
        analysis, alone.assignment(solve(problem).choice, problem), mesh.coordinate(0),
        found.bucket_bytes,
    )  # fmt: skip
    best_s = simulate(best, cluster, microbatches=1, optimizer="adamw").step_time_s
    assert found.predicted.step_time_s <= best_s * 1.01
    by_groups = found.alternatives[0]
    assert found.predicted.step_time_s < by_groups.step_time_s
    assert found.choices[0].slower_s == pytest.approx(
        by_groups.step_time_s - found.predicted.step_time_s
    )


@pytest.mark.parametrize("name", ["ncf", "gpt"])
def test_its_plan_computes_what_one_device_does(name: str) -> None:
    read = parse_plan(planned(name).model_dump_json())
    assert OP in read.strategy
    assert verify(model(name).task, "local:4", plan=read, model=model(name)).equal


@pytest.mark.parametrize(
    "name",
    ["mlp", pytest.param("gpt", marks=pytest.mark.all),
     pytest.param("convnet", marks=pytest.mark.all), pytest.param("ncf", marks=pytest.mark.all)],
)  # fmt: skip
def test_whatever_mix_of_layouts_computes_what_one_device_does(name: str) -> None:
    """Costs are drawn, so that ops are cut in ways that nobody would choose."""
    chance = random.Random(0)
    analysis, mesh = model(name).whole(1), Mesh((("data", 4),))
    alone = Alone(analysis, mesh, table_for(parse_cluster("local:4")))

    def drawn(form: Form) -> Form:
        return replace(form, cost=Cost(chance.random() * (0.3 if form.cuts else 1.0), 0.0))

    def cheap(value: str, source: Layout, target: Layout) -> tuple[Step, ...] | None:
        steps = alone.steps(value, source, target)
        return steps and tuple(Step(step.after, Cost(0.02, 0.0)) for step in steps)

    problem = alone.problem()
    ops = tuple(replace(op, forms=tuple(map(drawn, op.forms))) for op in problem.ops)
    problem = replace(problem, ops=ops, steps=cheap)
    choice = solve(problem, tolerance=0.05).choice
    cut = sum(bool(form.cuts) for form in choice.forms.values())
    assert cut > 0.7 * len(ops)
    made, parameters = decided(analysis, alone.assignment(choice, problem))
    task = model(name).task
    mixed = plan(task, "local:4", "data", model=model(name)).model_copy(
        update={"decisions": made, "parameters": parameters}
    )
    assert verify(task, "local:4", plan=mixed, model=model(name), steps=1).equal


def test_its_plan_says_what_it_does() -> None:
    found = planned("ncf")
    pin = next(item for item in found.decisions if item.op is not None)
    assert "this op alone" in str(found)
    assert any("this op alone" in item.cut for item in decisions(found))
    assert lies(found, pin.op or "").cuts[0][0] in found.mesh
    other = found.model_copy(update={"decisions": found.decisions[:-1]})
    assert any("this op alone" in item.first for item in diff_plans(found, other))


def test_constraints_hold_at_op_level() -> None:
    whole = "layout user_embedding.weight=whole"
    free = planned("ncf")
    assert free.parameters["user_embedding.weight"].cuts
    found = planned("ncf", whole)
    assert OP in found.strategy
    assert not found.parameters["user_embedding.weight"].cuts
    (axis,) = free.mesh
    assert axis not in planned("ncf", f"forbid {axis}").mesh


def test_what_is_not_there_is_refused() -> None:
    analysis = model("ncf").whole(1)
    mesh = Mesh((("data", 4),))
    with pytest.raises(PlanError, match="does not have"):
        assign(analysis, mesh, (Decision(axis="data", value="batch[0]", dim=0, op="no.op"),), {})
    op = next(op for op in analysis.program.ops if op.results[0])
    wrong = Decision(axis="data", value="user_embedding.weight", dim=0, op=analysis.program.loss)
    assert op.results[0] != analysis.program.loss
    with pytest.raises(PlanError, match="can't be cut along"):
        assign(analysis, mesh, (wrong,), {})


def test_where_nothing_can_be_divided_all_devices_compute_the_same() -> None:
    analysis, cluster = model("mlp").whole(1), parse_cluster("64x8:h100-sxm")
    alone = Alone(analysis, Mesh((("data", 512),)), table_for(cluster))
    found = solve(alone.problem())
    assert not any(form.cuts for form in found.choice.forms.values())
