"""From a strategy's text to a mesh and candidates, and the choice between candidates."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

from meshwright.api import Model, plan, verify
from meshwright.errors import NoPlanFits, StrategyError
from meshwright.plan.types import Prediction
from meshwright.search.search import Found, search
from meshwright.search.strategy import factorisations, mesh_for, parse_strategy
from meshwright.search.types import Candidate
from meshwright.task import Task
from meshwright.zoo.mlp import mlp_task


@cache
def mlp() -> Model:
    return Model(mlp_task(features=12, hidden=16, layers=1, classes=5, global_batch=8))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "means nothing"),
        ("dat", "means nothing"),
        ("data=2,,tensor=2", "means nothing"),
        ("data=2,data=2", "'data' twice"),
        ("data=two", "whole number"),
        ("data=0", "at least 1"),
        ("data=-1", "whole number"),
        ("data=", "whole number"),
        ("zero=4", "stages are 0, 1, 2 and 3"),
        ("zero", "whole number"),
        ("microbatches=0", "at least 1"),
        ("auto=2", "means nothing"),
        ("offload=2", "can't run yet"),
    ],
)
def test_what_does_not_parse_is_named(text: str, says: str) -> None:
    with pytest.raises(StrategyError, match=says) as caught:
        parse_strategy(text)
    assert caught.value.remedy


def test_a_near_miss_gets_a_suggestion() -> None:
    with pytest.raises(StrategyError) as caught:
        parse_strategy("tensr=2")
    assert "tensor" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "devices", "axes"),
    [
        ("data", 4, (("data", 4),)),
        ("zero=3", 4, (("data", 4),)),
        ("tensor", 4, (("tensor", 4),)),
        ("data=2,tensor=2", 4, (("data", 2), ("tensor", 2))),
        ("tensor=2,data=2", 4, (("data", 2), ("tensor", 2))),
        ("tensor=2,zero=1", 8, (("data", 4), ("tensor", 2))),
        ("data,tensor=2", 8, (("data", 4), ("tensor", 2))),
        ("data=2,tensor", 8, (("data", 2), ("tensor", 4))),
        ("data,tensor", 8, (("data", 8), ("tensor", 1))),
        ("data=1", 1, (("data", 1),)),
    ],
)
def test_a_strategy_lays_out_a_mesh(
    text: str, devices: int, axes: tuple[tuple[str, int], ...]
) -> None:
    assert mesh_for(parse_strategy(text), devices).axes == axes


@pytest.mark.parametrize(
    ("text", "devices"), [("data=3", 4), ("data=2", 4), ("data=2,tensor=2", 6), ("tensor=8", 4)]
)
def test_a_misfit_says_both_sizes(text: str, devices: int) -> None:
    with pytest.raises(StrategyError, match=f"cluster has {devices}") as caught:
        mesh_for(parse_strategy(text), devices)
    assert f"product is {devices}" in caught.value.remedy


def test_factorisations_are_all_pairs() -> None:
    assert [mesh.axes for mesh in factorisations(6)] == [
        (("data", 6), ("tensor", 1)), (("data", 3), ("tensor", 2)),
        (("data", 2), ("tensor", 3)), (("data", 1), ("tensor", 6)),
    ]  # fmt: skip


def searched(
    text: str,
    cost: Callable[[Candidate], tuple[float, int]],
    devices: int = 4,
    memory: int = 100,
) -> Found:
    """A search over the little classifier with made-up seconds and bytes."""

    def evaluate(candidate: Candidate) -> Prediction:
        seconds, nbytes = cost(candidate)
        return Prediction(step_time_s=seconds, peak_memory_bytes=nbytes, memory={"parameters": 1})

    return search(
        parse_strategy(text), devices, memory, 8, lambda count: mlp().microbatch(count)[1], evaluate
    )


def test_auto_takes_the_fastest_that_fits() -> None:
    seen: list[Candidate] = []

    def cost(candidate: Candidate) -> tuple[float, int]:
        seen.append(candidate)
        tensor = dict(candidate.mesh.axes).get("tensor", 1)
        # The fastest needs too much; of what fits, two-way tensor parallelism is fastest.
        return {1: (1.0, 200), 2: (2.0, 100), 4: (3.0, 50)}[tensor]

    found = searched("auto", cost)
    assert dict(found.best.candidate.mesh.axes)["tensor"] == 2
    assert found.best.prediction.step_time_s == min(
        item.prediction.step_time_s for item in (found.best, *found.others) if item.fits
    )
    assert found.evaluated == len(seen)
    assert len({candidate.name for candidate in seen}) == len(seen)
    order = [(not item.fits, item.prediction.step_time_s) for item in found.others]
    assert order == sorted(order)


def test_of_equals_the_simplest_is_taken() -> None:
    found = searched("auto", lambda candidate: (1.0, 10))
    assert found.best.candidate.zero == 0


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("zero=2,auto", lambda c: c.zero == 2),
        ("tensor=2,auto", lambda c: dict(c.mesh.axes)["tensor"] == 2),
        ("data=4,auto", lambda c: dict(c.mesh.axes)["data"] == 4),
    ],
)
def test_auto_keeps_what_was_fixed(text: str, allowed: Callable[[Candidate], bool]) -> None:
    found = searched(text, lambda candidate: (1.0, 10))
    assert all(allowed(item.candidate) for item in (found.best, *found.others))


def test_more_microbatches_are_tried_while_nothing_fits() -> None:
    found = searched("auto", lambda candidate: (1.0, 400 // candidate.microbatches))
    assert found.best.candidate.microbatches == 4
    assert found.best.fits
    assert not any(item.fits for item in found.others if item.candidate.microbatches < 4)


def test_nothing_fits_says_what_came_closest_and_what_would_fit() -> None:
    with pytest.raises(NoPlanFits, match="No plan fits") as caught:
        searched("auto", lambda candidate: (1.0, 3 << 30), memory=1 << 30)
    assert "3.00 GiB" in caught.value.message
    assert "2.00 GiB too much" in caught.value.message
    assert "3 times as many devices" in caught.value.remedy


def test_a_named_strategy_that_does_not_fit_is_no_plan_either() -> None:
    with pytest.raises(NoPlanFits):
        searched("data", lambda candidate: (1.0, 101))


def test_a_batch_that_the_data_axis_does_not_divide() -> None:
    with pytest.raises(StrategyError, match="8 examples") as caught:
        searched("data", lambda candidate: (1.0, 1), devices=3)
    assert "multiple of 3" in caught.value.remedy
    # The search leaves such meshes out, and says so.
    found = searched("auto", lambda candidate: (1.0, 1), devices=3)
    assert "data" not in found.best.candidate.mesh.names


def test_microbatches_that_do_not_divide_the_batch() -> None:
    with pytest.raises(StrategyError, match="3 equal microbatches"):
        searched("data,microbatches=3", lambda candidate: (1.0, 1))
    with pytest.raises(StrategyError, match="a microbatch") as caught:
        searched("data,microbatches=4", lambda candidate: (1.0, 1))
    assert "multiple of 16" in caught.value.remedy


def test_nothing_to_cut_over_a_tensor_axis() -> None:
    with pytest.raises(StrategyError, match="tensor axis of 64"):
        searched("tensor", lambda candidate: (1.0, 1), devices=64)


def test_auto_on_a_cluster_is_its_own_best_alternative() -> None:
    made = plan(mlp().task, "local:4", "auto", model=mlp())
    times = [item.step_time_s for item in made.alternatives if item.fits]
    assert made.predicted.step_time_s <= min(times)
    for text in ("data", "zero=1", "tensor", "data=2,tensor=2"):
        named = plan(mlp().task, "local:4", text, model=mlp())
        assert made.predicted.step_time_s <= named.predicted.step_time_s


def test_further_axes_lie_between_data_and_tensor() -> None:
    mesh = mesh_for(parse_strategy("tensor=2,context=2,attention=ring"), 4)
    assert mesh.axes == (("context", 2), ("tensor", 2))
    assert parse_strategy("tensor=2,sequence").sequence


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data,sequence", "without a tensor axis"),
        ("data,attention=ring", "without a context axis"),
        ("context,attention=tree", "one of gather, ring"),
    ],
)
def test_what_acts_on_an_axis_needs_it(text: str, says: str) -> None:
    with pytest.raises(StrategyError, match=says):
        parse_strategy(text)


def test_auto_keeps_axes_that_are_named() -> None:
    found = factorisations(8, parse_strategy("spatial=2,tensor=2,auto").axes)
    assert [mesh.axes for mesh in found] == [(("data", 2), ("spatial", 2), ("tensor", 2))]
    sizes = [
        dict(mesh.axes)["edge"] for mesh in factorisations(4, parse_strategy("edge,auto").axes)
    ]
    assert sizes == [2, 2, 4]


def test_leaves_that_are_no_examples_stay_whole() -> None:
    """Class weights beside a batch: their first dim is not the batch's."""

    def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=batch[2])

    batch = (torch.randn(8, 6), torch.arange(8) % 5, torch.linspace(0.5, 1.5, 5))
    made = plan(Task(lambda: nn.Linear(6, 5), loss, batch), "local:4", "data")
    assert [d.value for d in made.decisions] == ["batch[0]", "batch[1]"]
    assert "batch[2] with another first dim: whole" in made.decisions[0].why
    assert verify(Task(lambda: nn.Linear(6, 5), loss, batch), "local:4", plan=made).equal
