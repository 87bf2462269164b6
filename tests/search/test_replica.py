"""The replica axis: cuts the batch outside `data`; parameters are stored over `data` alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.api import Model, parallelize, plan, sgd, verify
from meshwright.cluster.mesh import Mesh
from meshwright.errors import StrategyError
from meshwright.plan.types import Collective, Plan
from meshwright.runtime.comm import Communicator
from meshwright.runtime.lockstep import run_lockstep
from meshwright.search.strategy import mesh_for, parse_strategy
from meshwright.task import Task
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.mlp import mlp_task
from meshwright.zoo.reference import load_task


@cache
def gpt() -> Model:
    return Model(
        gpt_task(
            layers=2, width=16, heads=4, vocab=20, seq_len=8, global_batch=8, dropout=0.1,
        )
    )  # fmt: skip


def counts(made: Plan) -> dict[tuple[str, str], tuple[int, int]]:
    """With a collective for each tensor."""
    return {(c.kind, c.axis): (c.count, c.bytes) for c in made.predicted.before_merging}


def test_it_lies_outside_of_data() -> None:
    assert mesh_for(parse_strategy("data=8,replica=8,zero=3"), 64).axes == (
        ("replica", 8),
        ("data", 8),
    )
    assert mesh_for(parse_strategy("replica=8,zero=3"), 64).axes == (("replica", 8), ("data", 8))
    assert mesh_for(parse_strategy("stage=2,replica=2,tensor=2"), 8).names == (
        "stage", "replica", "tensor",
    )  # fmt: skip


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_parameters_are_stored_over_data_alone(zero: int) -> None:
    model = gpt()
    made = plan(model.task, "local:4", f"replica=2,data=2,zero={zero}", model=model)
    axes = {axis for item in made.parameters.values() for axis in item.storage_axes}
    assert axes == ({"data"} if zero else set())
    assert {cut.axis for item in made.parameters.values() for cut in item.cuts} == axes
    assert [(item.axis, item.dim) for item in made.decisions] == [
        *[("replica", 0)] * 2,
        *[("data", 0)] * 2,
    ]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_gradients_are_scattered_over_data_and_their_parts_reduced_over_replica(
    microbatches: int,
) -> None:
    """Over replica once a step, however many microbatches: what waits is a part already."""
    model = gpt()
    strategy = f"replica=2,data=2,zero=3,microbatches={microbatches}"
    made = plan(model.task, "local:4", strategy, model=model)
    found = counts(made)
    merged = {(c.kind, c.axis): c.count for c in made.predicted.collectives}
    assert merged["all_reduce", "replica"] == 1 + microbatches * 2
    # The gradient of the positions is summed whole, before it is put into its table's rows.
    parameters = dict(model.task.model().named_parameters())
    nbytes = {name: 4 * parameter.numel() for name, parameter in parameters.items()}
    positions = nbytes.pop("position_embedding.weight")
    assert found["reduce_scatter", "data"] == (
        microbatches * len(nbytes),
        microbatches * sum(nbytes.values()),
    )
    # Beside them, for each microbatch, those positions and the loss with its count of targets.
    count, reduced = found["all_reduce", "replica"]
    assert count == len(nbytes) + microbatches * 2
    halves = sum(nbytes.values()) // 2 + microbatches * positions
    assert halves < reduced <= halves + microbatches * 16
    assert found["all_reduce", "data"] == (microbatches * 2, reduced - sum(nbytes.values()) // 2)
    assert found["all_gather", "data"][0] > microbatches * len(nbytes)


def test_what_runs_is_what_the_plan_lists() -> None:
    model = gpt()
    made = plan(
        model.task, "local:4", "replica=2,data=2,zero=3,microbatches=2", model=model, clip_norm=0.1
    )

    def rank(comm: Communicator) -> tuple[Collective, ...]:
        job = parallelize(
            model.task, optimizer=sgd, plan=made, communicator=comm, model=model, device="cpu"
        )
        job.reset_counts()
        job.step(model.task.batch)
        return job.executed()

    for ran in run_lockstep(Mesh(tuple(made.mesh.items())), rank):
        assert ran == made.predicted.collectives


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("zoo:convnet", {"width": "4", "global_batch": "8"}),
        ("zoo:moe", {"size": "tiny", "router": "loop"}),
        ("zoo:moe", {"size": "tiny", "router": "batched"}),
    ],
)
def test_batch_statistics_and_routing_are_those_of_one_device(
    model: str, options: dict[str, str]
) -> None:
    assert verify(load_task(model, options), "local:4", "replica=2,data=2,zero=3", steps=2).equal


@pytest.mark.parametrize(
    "strategy",
    [
        "replica=2,data=2", "replica=2,data=2,zero=1", "replica=2,data=2,zero=2,microbatches=2",
        "replica=2,data=2,zero=3", "replica=4", "replica=2,tensor=2", "replica=2,context=2",
        "replica=2,tensor=2,sequence",
    ],
)  # fmt: skip
def test_numbers_are_those_of_one_device_with_dropout_and_clipping(strategy: str) -> None:
    model = gpt()
    assert verify(model.task, "local:4", strategy, model=model, clip_norm=0.05, steps=2).equal


class Odd(nn.Module):
    """A tied weight, a scalar, a parameter that can't be divided, one that has no use."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.table.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.zeros(1))
        self.fixed = nn.Parameter(torch.ones(5), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.norm = nn.BatchNorm1d(5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.table(ids) * self.scale + self.shift) * self.fixed)


@pytest.mark.parametrize("zero", ["", ",zero=2,microbatches=2", ",zero=3"])
def test_odd_parameters(zero: str) -> None:
    ids = torch.randint(7, (16,), generator=torch.Generator().manual_seed(0))
    task = Task(Odd, lambda model, ids: F.cross_entropy(model(ids), ids.roll(1)), ids, "odd")
    assert verify(task, "local:4", "replica=2,data=2" + zero, steps=2).equal


def test_a_batch_that_both_axes_together_cannot_divide() -> None:
    task = mlp_task(features=12, hidden=16, layers=1, classes=5, global_batch=6)
    with pytest.raises(StrategyError, match="which 4 data-parallel devices can't divide"):
        plan(task, "local:4", "replica=2,data=2")
