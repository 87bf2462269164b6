"""Batches of several shapes: one plan for all, each captured once, and told when there are many."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from usercase import ids

from meshwright.api import SHAPES_KEPT, Model, plan, verify
from meshwright.errors import PlanError
from meshwright.plan.types import Decision
from meshwright.task import Task


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(16, 8)
        self.fc = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        mask = torch.ones(n, n).tril()
        h = (mask / mask.sum(-1, keepdim=True)) @ self.emb(x)
        if n > 6:
            h = h.tanh()
        return self.fc(h)


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


@pytest.mark.parametrize("strategy", ["data=2,zero=3", "tensor=2"])
def test_lengths_and_a_last_batch(strategy: str) -> None:
    task = Task(Language, _loss, ids(4, 8))
    model = Model(task)
    batches = [ids(4, 8), ids(4, 5), ids(3, 12), ids(4, 5), ids(1, 7)]
    assert verify(task, "local:2", strategy, model=model, batches=batches).equal
    assert model.captures == 4


def test_a_plan_that_does_not_hold_names_shape_and_reason() -> None:
    task = Task(Language, _loss, ids(4, 8))
    model = Model(task)
    made = plan(task, "local:2", "data=2", model=model)
    name = next(
        op.results[0]
        for op in model.microbatch(1)[0].program.ops
        if op.target == "aten.tanh.default"
    )
    decision = Decision(value=name, dim=0, axis=made.decisions[0].axis)
    edited = made.model_copy(update={"decisions": (*made.decisions, decision)})
    with pytest.raises(
        PlanError, match=r"does not hold for a microbatch of batch \(4, 5\)"
    ) as told:
        verify(task, "local:2", model=model, plan=edited, batches=[ids(4, 8), ids(4, 5)])
    assert "does not have" in told.value.message
    assert "pad batches" in told.value.remedy


def test_many_shapes_are_told() -> None:
    task = Task(Language, _loss, ids(4, 8))
    model = Model(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length in range(2, 2 + SHAPES_KEPT):
            model.captured(ids(2, length))
    with pytest.warns(UserWarning, match="bucket"):
        model.captured(ids(2, 30))


def test_a_batch_of_another_dtype_is_another_program() -> None:
    task = Task(lambda: nn.Linear(8, 8), lambda m, x: m(x.float()).sum(), torch.ones(4, 8))
    model = Model(task)
    model.captured(torch.ones(4, 8))
    model.captured(torch.ones(4, 8, dtype=torch.int64))
    assert model.captures == 2
