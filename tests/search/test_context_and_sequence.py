"""What the context axis and `sequence` decide, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.api import Model, parallelize, plan, sgd, verify
from meshwright.cluster.mesh import Mesh
from meshwright.errors import StrategyError
from meshwright.layout.assignment import assign
from meshwright.lower.lower import lower
from meshwright.plan.types import Collective, Plan
from meshwright.runtime.comm import Communicator
from meshwright.runtime.lockstep import run_lockstep
from meshwright.task import Task
from meshwright.zoo.convnet import convnet_task
from meshwright.zoo.gpt import gpt_task


@cache
def gpt(layers: int, seq_len: int = 8, dropout: float = 0.0) -> Model:
    return Model(
        gpt_task(
            layers=layers, width=16, heads=4, vocab=20, seq_len=seq_len, global_batch=4,
            dropout=dropout,
        )
    )  # fmt: skip


def planned(model: Model, strategy: str, devices: int = 4) -> Plan:
    return plan(model.task, f"local:{devices}", strategy, model=model)


def counts(made: Plan, axis: str) -> dict[str, int]:
    return {item.kind: item.count for item in made.predicted.collectives if item.axis == axis}


class NoPositions(nn.Module):
    """A residual stream that starts as the embedding's pending sum."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(16, 32, bias=False) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(32, 16, bias=False) for _ in range(3))
        self.head = nn.Linear(16, 20)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(F.gelu(up(norm(x))))
        logits = self.head(x)
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


def test_residuals_lie_cut_along_the_sequence_though_the_embedding_is_a_sum() -> None:
    """Else each device would keep the whole stream, and save it in every layer."""
    task = Task(
        model=NoPositions, loss=lambda model, ids: model(ids), batch=torch.randint(20, (4, 8)),
        name="no positions",
    )  # fmt: skip
    model = Model(task)
    made = plan(task, "local:4", "tensor=4,sequence", model=model)
    analysis = model.microbatch(1)[1]
    mesh = Mesh((("tensor", 4),))
    local = lower(
        analysis, assign(analysis, mesh, made.decisions, made.parameters), mesh.coordinate(0)
    )
    residuals = [
        result
        for op in local.forward.ops
        if op.target == "aten.add.Tensor" and len(local.values[op.results[0]].shape) == 3
        for result in op.results
    ]
    assert [local.values[name].shape for name in residuals] == [(4, 2, 16)] * 3
    assert not any(local.layouts[name].partial for name in residuals)
    assert verify(task, plan=made, model=model).equal


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sequence_turns_each_reduction_into_a_scatter_and_a_gather(layers: int) -> None:
    """Four of each a layer. Beside them the embedding's rows are scattered and their gradient
    gathered; the head's input is gathered and its gradient scattered. What remains to reduce
    are the four of the loss over the vocabulary, and once a step the gradients of what acts on
    parts of the sequence: two norms a layer and the last (weight and bias), two biases a layer
    that are added to a sum, less those that are summed where the gradient is whole."""
    made = counts(planned(gpt(layers), "tensor=4,sequence"), "tensor")
    assert made["all_gather"] == made["reduce_scatter"] == 4 * layers + 2
    assert "all_to_all" not in made
    plain = counts(planned(gpt(layers), "tensor=4"), "tensor")
    assert plain == {"all_reduce": 4 * layers + 6}


@pytest.mark.parametrize("layers", [1, 2])
def test_a_context_axis_gathers_keys_and_values_and_nothing_else(layers: int) -> None:
    made = planned(gpt(layers), "context=4")
    found = counts(made, "context")
    assert found["all_gather"] == found["reduce_scatter"] == 2 * layers
    assert found.keys() == {"all_gather", "reduce_scatter", "all_reduce"}


@pytest.mark.parametrize("layers", [1, 2])
def test_a_ring_shifts_keys_and_values_and_once_more_their_gradients(layers: int) -> None:
    """Of 4 devices: 3 shifts forward; backward 3 again, and 4 of the gradients."""
    found = counts(planned(gpt(layers), "context=4,attention=ring"), "context")
    assert found["ring_shift"] == (3 + 3 + 4) * layers
    assert found.keys() == {"ring_shift", "all_reduce"}


@pytest.mark.parametrize("strategy", ["context=4,attention=ring", "data=2,tensor=2,sequence"])
def test_what_runs_is_what_the_plan_lists(strategy: str) -> None:
    model = gpt(2)
    made = planned(model, strategy)

    def rank(comm: Communicator) -> tuple[Collective, ...]:
        job = parallelize(
            model.task, optimizer=sgd, plan=made, communicator=comm, model=model, device="cpu"
        )
        job.reset_counts()
        job.step(model.task.batch)
        return job.executed()

    for ran in run_lockstep(Mesh(tuple(made.mesh.items())), rank):
        assert ran == made.predicted.collectives


def test_the_plan_says_how_attention_gets_its_keys() -> None:
    (gathered,) = planned(gpt(1), "context=4").decisions
    assert (gathered.outer, gathered.extent) == (2, 4)
    assert gathered.why == "context over 4: keys and values gathered, queries striped"
    (ring,) = planned(gpt(1), "context=4,attention=ring").decisions
    assert ring.attention == "ring"
    assert "passed round a ring" in ring.why
    (uneven,) = planned(gpt(1, seq_len=10), "context=4").decisions
    assert uneven.extent is None
    assert "10 positions are no multiple of 4" in uneven.why


def test_a_model_without_a_sequence_is_told_so() -> None:
    model = Model(convnet_task(width=4, residual_blocks=1, classes=5, global_batch=8))
    with pytest.raises(StrategyError, match="no sequence that a context axis could cut"):
        planned(model, "context=4")
    with pytest.raises(StrategyError, match="no sequence of 4 positions"):
        planned(model, "tensor=4,sequence")


def test_a_sequence_that_is_too_short_is_told_so() -> None:
    with pytest.raises(StrategyError, match="has 3 positions, too few for a context axis of 4"):
        planned(gpt(1, seq_len=3), "context=4")


EVERY = (
    "context=4", "context=4,attention=ring", "data=2,context=2", "context=2,tensor=2",
    "tensor=4,sequence", "data=2,tensor=2,sequence", "data=2,context=2,zero=3",
    "data=2,tensor=2,sequence,zero=1", "context=2,tensor=2,sequence",
)  # fmt: skip


def pairwise() -> Iterator[Any]:
    """Each strategy with both lengths, with dropout and without; the longer sweep has all four."""
    for turn, strategy in enumerate(EVERY):
        for seq_len, dropout in product((8, 10), (0.1, 0.0)):
            mine = (seq_len == 8) == (dropout > 0) if turn % 2 else (seq_len == 8) != (dropout > 0)
            marks = () if mine else pytest.mark.all
            yield pytest.param(strategy, seq_len, dropout, marks=marks)


@pytest.mark.parametrize(("strategy", "seq_len", "dropout"), list(pairwise()))
def test_equal_to_one_device_with_dropout_in_attention_and_without(
    strategy: str, seq_len: int, dropout: float
) -> None:
    model = gpt(1, seq_len, dropout)
    assert verify(model.task, "local:4", strategy, model=model).equal


class Shifted(nn.Module):
    """A language model that predicts tokens of its own input, by slices of it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 12)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        out: Tensor = self.head(self.mix(self.table(ids), src_mask=later))
        return out


def of_logits(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids)
    return F.cross_entropy(logits[:, :-1].reshape(-1, 12), ids[:, 1:].reshape(-1))


def of_ids(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1])
    targets = ids[:, 1:].clone()
    targets = targets.masked_fill(targets == 3, -100)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("loss", [of_logits, of_ids])
@pytest.mark.parametrize("strategy", ["context=4", "data=2,context=2", "tensor=2,data=2,sequence"])
def test_labels_shifted_by_slices(loss, strategy: str) -> None:
    ids = torch.randint(
        12, (4, 9 if loss is of_ids else 8), generator=torch.Generator().manual_seed(1)
    )
    task = Task(model=Shifted, loss=loss, batch=ids)
    assert verify(task, "local:4", strategy).equal
