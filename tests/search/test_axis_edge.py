"""The edge axis: which dims of the batch it cuts, what it moves, and that numbers stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meshwright.api import Model, plan, verify
from meshwright.errors import StrategyError
from meshwright.task import Task
from meshwright.zoo.reference import load_task

STEPS = 3


@pytest.fixture(scope="module")
def graph() -> Model:
    return Model(load_task("zoo:gns", {"size": "tiny", "steps": str(STEPS)}))


def collectives(made: Any, part: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for origin in made.origins:
        if origin.part == part:
            found[origin.kind] = found.get(origin.kind, 0) + origin.count
    return found


def test_one_reduction_a_step_of_messages_each_way(graph: Model) -> None:
    made = plan(graph.task, "local:4", "edge=4", model=graph)
    assert [(d.axis, d.value, d.dim) for d in made.decisions] == [("edge", "batch[1]", 1)]
    # The messages' sum forward; backward the gradients of both ends of all edges together.
    assert collectives(made, "forward") == {"all_reduce": STEPS}
    assert collectives(made, "backward") == {"all_reduce": STEPS}


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({}, "edge=4"),
        ({"side": "7"}, "edge=3"),
        ({"global_batch": "2"}, "data=2,edge=2"),
        ({"global_batch": "2"}, "edge=2,tensor=2"),
        ({"global_batch": "2"}, "data=2,zero=3,edge=2"),
    ],
)
def test_numbers_are_those_of_one_device(options: dict[str, str], strategy: str) -> None:
    task = load_task("zoo:gns", {"size": "tiny", **options})
    result = verify(task, "local:3" if strategy == "edge=3" else "local:4", strategy, steps=2)
    assert result.equal, result


class Scattered(nn.Module):
    """Edges as rows of two numbers, added up by scatter_add; a mean by the number of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(8, 4)

    def forward(self, nodes: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        ends = nodes.index_select(0, edges[:, 0]) * features
        messages = self.message(torch.cat([ends, nodes[edges[:, 1]]], -1))
        to = edges[:, 1:].expand_as(messages)
        added = torch.zeros_like(nodes).scatter_add(0, to, messages)
        ones = nodes.new_ones(len(edges))
        count = nodes.new_zeros(len(nodes)).index_add(0, edges[:, 1], ones)
        return nodes + added / count.clamp(min=1)[:, None]


def scattered(edges: int = 11) -> Task:
    torch.manual_seed(0)
    batch = (torch.randn(5, 4), torch.randint(5, (edges, 2)), torch.randn(edges, 4))
    return Task(Scattered, lambda model, batch: model(*batch).square().mean(), batch, "scattered")


def test_edges_are_found_by_what_is_done_with_them() -> None:
    made = plan(scattered(), "local:4", "edge=4")
    assert {(d.value, d.dim) for d in made.decisions} == {("batch[1]", 0)}
    assert "all_gather" not in collectives(made, "forward") | collectives(made, "backward")
    assert verify(scattered(), "local:4", plan=made, steps=2).equal


def test_too_few_edges_and_none() -> None:
    with pytest.raises(StrategyError, match="have 3 entries, fewer than the 4"):
        plan(scattered(3), "local:4", "edge=4")
    with pytest.raises(StrategyError, match="Nothing in this model can be cut over an edge axis"):
        plan(load_task("zoo:mlp", {}), "local:4", "edge=4")
