"""The oracle's costs are the simulator's, and nothing that can be laid out beats it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from meshwright.cluster.mesh import Mesh
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster
from meshwright.cost.table import table_for
from meshwright.errors import StrategyError, UsageError
from meshwright.layout.assignment import Assignment, assign
from meshwright.layout.groups import Analysis
from meshwright.lower.alone import Alone
from meshwright.lower.lower import lower
from meshwright.model import Model
from meshwright.search.named import candidate
from meshwright.search.oracle import Choice, Problem, objective
from meshwright.search.oracle_solve import solve
from meshwright.search.strategy import mesh_for, parse_strategy
from meshwright.simulate.step import simulate
from meshwright.task import Task
from meshwright.zoo.convnet import convnet_task
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.mlp import mlp_task

BUCKETS = 1 << 20


@cache
def analysis(name: str) -> Analysis:
    make = {
        "mlp": lambda: mlp_task(features=64, hidden=128, layers=1, classes=10, global_batch=16),
        "gpt": lambda: gpt_task(layers=1, width=64, heads=4, seq_len=32, vocab=96, global_batch=8),
        "convnet": lambda: convnet_task(global_batch=4),
    }
    return Model(make[name]()).whole(1)


@cache
def cluster(text: str) -> Cluster:
    return parse_cluster(text)


def named(name: str, text: str) -> Assignment:
    strategy = parse_strategy(text)
    mesh = Mesh(tuple(item for item in mesh_for(strategy, 4).axes if item[1] > 1))
    made = candidate(
        analysis(name), mesh, zero=strategy.zero or 0, microbatches=1, sequence=strategy.sequence
    )
    return assign(analysis(name), mesh, made.decisions, made.parameters)


def simulated(name: str, assignment: Assignment, where: str, buckets: int = BUCKETS) -> float:
    lowered = lower(analysis(name), assignment, assignment.mesh.coordinate(0), buckets)
    return simulate(
        lowered, cluster(where), microbatches=1, optimizer="adamw", memory_curve=False
    ).step_time_s


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("mlp", "data", "local:4"),
        ("mlp", "tensor", "1x4:h100-sxm"),
        ("gpt", "data", "1x4:h100-sxm"),
        ("gpt", "tensor", "local:4"),
        ("gpt", "tensor,sequence", "1x4:h100-sxm"),
        ("gpt", "zero=1", "local:4"),
        ("convnet", "zero=1", "1x4:h100-sxm"),
        ("mlp", "data=2,tensor=2", "local:4"),
    ],
)
def test_the_objective_of_a_plan_is_its_simulated_time(name: str, text: str, where: str) -> None:
    assignment = named(name, text)
    alone = Alone(analysis(name), assignment.mesh, table_for(cluster(where)), bucket_bytes=BUCKETS)
    found = objective(*alone.planned(assignment))
    assert found == pytest.approx(simulated(name, assignment, where), rel=1e-9)


@pytest.mark.parametrize("text", ["zero=2", "zero=3"])
def test_so_it_is_with_parameters_gathered_at_each_use_where_nothing_is_merged(text: str) -> None:
    assignment = named("gpt", text)
    alone = Alone(analysis("gpt"), assignment.mesh, table_for(cluster("local:4")), bucket_bytes=0)
    found = objective(*alone.planned(assignment))
    assert found == pytest.approx(simulated("gpt", assignment, "local:4", 0), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "where"), [("mlp", "local:4"), ("gpt", "local:4"), ("mlp", "1x4:h100-sxm")]
)
def test_what_it_finds_runs_in_the_time_it_says_and_is_not_beaten(name: str, where: str) -> None:
    mesh = Mesh((("data", 4),))
    alone = Alone(analysis(name), mesh, table_for(cluster(where)), bucket_bytes=BUCKETS)
    problem = alone.problem()
    found = solve(problem, seconds=60)
    assert found.proved
    again = simulated(name, alone.assignment(found.choice, problem), where)
    assert found.seconds == pytest.approx(again, rel=1e-9)
    for text in ("data", "tensor", "tensor,sequence", "zero=1"):
        try:
            assignment = named(name, text)
        except StrategyError:  # a model without sequences has none to cut
            continue
        assert found.seconds <= simulated(name, assignment, where) * 1.001


class Product(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(x @ self.weight)


@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        (512, (96,)),
        pytest.param(4, (96, 64), marks=pytest.mark.all),
        pytest.param(2048, (96, 64), marks=pytest.mark.all),
    ],
)
def test_of_a_tiny_program_it_is_the_best_of_all(rows: int, shape: tuple[int, ...]) -> None:
    """Every combination of forms, inputs and ways to store is lowered and simulated."""
    task = Task(
        lambda: Product(*shape), loss=lambda model, batch: model(batch), batch=torch.ones(rows, 96)
    )
    found = Model(task).whole(1)
    mesh = Mesh((("data", 2),))
    tables = {where: table_for(cluster(where)) for where in ("local:2", "1x2:h100-sxm")}
    alones = {
        where: Alone(found, mesh, costs, bucket_bytes=BUCKETS) for where, costs in tables.items()
    }
    alone = alones["local:2"]
    problem = alone.problem()
    plans = [
        lower(found, alone.assignment(choice, problem), mesh.coordinate(0), BUCKETS)
        for choice in every_choice(problem)
    ]
    assert len(plans) > 100
    for where, costs in tables.items():
        solution = solve(alones[where].problem(), seconds=20)
        least = min(
            simulate(
                lowered, cluster(where), microbatches=1, optimizer="adamw",
                memory_curve=False, costs=costs,
            ).step_time_s
            for lowered in plans
        )  # fmt: skip
        assert solution.proved
        assert solution.seconds == pytest.approx(least, rel=1e-4)


def every_choice(problem: Problem) -> Iterator[Choice]:
    for forms in product(*(op.forms for op in problem.ops)):
        for inputs in product(*problem.inputs.values()):
            for stored in product(*(item.options for item in problem.parameters)):
                yield Choice(
                    {op.name: form for op, form in zip(problem.ops, forms, strict=True)},
                    dict(zip(problem.inputs, inputs, strict=True)),
                    {i.path: how for i, how in zip(problem.parameters, stored, strict=True)},
                )


class Picks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[x[:, 0] > 0]).square().sum()


def test_lists_of_rows_are_not_covered() -> None:
    task = Task(model=Picks, loss=lambda model, batch: model(batch), batch=torch.ones(8, 4))
    with pytest.raises(UsageError, match="does not cover"):
        Alone(Model(task).whole(1), Mesh((("data", 4),)), table_for(cluster("local:4")))
