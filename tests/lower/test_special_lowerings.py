"""Ops that change when they are cut, in small models under decisions made by hand.

Uneven parts throughout: five classes over four devices, a batch of six over four,
three heads over two; labels that are ignored, on some devices or all; class weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.api import Model, plan, verify
from meshwright.plan.types import Decision, Plan
from meshwright.task import Task

IGNORED = -100


def by_hand(model: Model, mesh: dict[str, int], *decisions: tuple[str, str, int]) -> Plan:
    """A plan of exactly these decisions: (axis, value, dim), with the dim viewed whole."""
    alone = plan(model.task, "local:1", "data=1", model=model)
    made = tuple(Decision(axis=axis, value=value, dim=dim) for axis, value, dim in decisions)
    return alone.model_copy(update={"mesh": mesh, "decisions": made, "parameters": {}})


def check(
    task: Task, mesh: dict[str, int], *decisions: tuple[str, str, int], **options: Any
) -> None:
    model = Model(task)
    made = by_hand(model, mesh, *decisions)
    result = verify(task, plan=made, model=model, steps=2, **options)
    assert result.equal, result


BATCHED = [("data", "batch[0]", 0), ("data", "batch[1]", 0)]
CLASSES = [("tensor", "head.weight", 0)]
MESHES: dict[str, tuple[dict[str, int], list[tuple[str, str, int]]]] = {
    "batch over 2": ({"data": 2}, BATCHED),
    "batch over 4": ({"data": 4}, BATCHED),
    "classes over 2": ({"tensor": 2}, CLASSES),
    "classes over 4": ({"tensor": 4}, CLASSES),
    "both": ({"data": 2, "tensor": 2}, [*BATCHED, *CLASSES]),
    "both, tensor first": ({"tensor": 2, "data": 2}, [*CLASSES, *BATCHED]),
    "one after the other": (
        {"data": 2, "tensor": 2},
        [*BATCHED, *((("tensor", value, dim)) for _, value, dim in BATCHED)],
    ),
}


class Classifier(nn.Module):
    def __init__(self, classes: int = 5, tail: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, classes)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(torch.tanh(self.body(x)))
        return scores.movedim(-1, 1) if self.tail else scores


def labels(ignored: str, size: int = 6, tail: tuple[int, ...] = (), classes: int = 5) -> Tensor:
    made = torch.randint(classes, (size, *tail), generator=torch.Generator().manual_seed(5))
    if ignored == "some":
        made[::3] = IGNORED
    elif ignored == "all of the first device":
        made[: -(-size // 2)] = IGNORED
    return made


def classifier_task(
    loss: Callable[[Tensor, Tensor], Tensor], y: Tensor, tail: tuple[int, ...] = ()
) -> Task:
    x = torch.randn(y.shape[0], *tail, 4, generator=torch.Generator().manual_seed(6))

    def compute(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(model(batch[0]), batch[1])

    return Task(lambda: Classifier(tail=tail), compute, (x, y), "classifier")


@pytest.mark.parametrize("where", MESHES)
@pytest.mark.parametrize("ignored", ["none", "some", "all of the first device"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(where: str, ignored: str, weighted: bool, reduction: str) -> None:
    weight = torch.linspace(0.5, 2, 5) if weighted else None

    def loss(scores: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(scores, y, weight=weight, reduction=reduction)
        return (each * torch.linspace(1, 2, len(y))).mean() if reduction == "none" else each

    mesh, decisions = MESHES[where]
    check(classifier_task(loss, labels(ignored)), mesh, *decisions)


@pytest.mark.parametrize("where", MESHES)
@pytest.mark.parametrize("tail", [(3,), (2, 3)])
def test_cross_entropy_of_every_pixel(where: str, tail: tuple[int, ...]) -> None:
    mesh, decisions = MESHES[where]
    check(classifier_task(F.cross_entropy, labels("some", tail=tail), tail), mesh, *decisions)


@pytest.mark.parametrize("where", ["classes over 2", "classes over 4"])
def test_cross_entropy_of_one_example(where: str) -> None:
    mesh, decisions = MESHES[where]
    check(classifier_task(F.cross_entropy, labels("none", size=1)), mesh, *decisions)


@pytest.mark.parametrize("where", MESHES)
@pytest.mark.parametrize(
    "loss",
    [
        lambda scores, y: F.mse_loss(scores, scores.detach() * 0.5 + 1),
        lambda scores, y: (scores.softmax(-1) ** 2).mean(),
        lambda scores, y: scores.softmax(0).square().sum(),
        lambda scores, y: scores.log_softmax(-1).mean(0).square().sum(),
        lambda scores, y: scores.logsumexp(-1).mean(),
        lambda scores, y: scores.var(0).sum() + scores.std(-1).mean(),
        lambda scores, y: F.smooth_l1_loss(scores, scores.detach() + 1),
        lambda scores, y: F.binary_cross_entropy_with_logits(scores, scores.detach().sigmoid()),
        lambda scores, y: scores.amax(-1).mean() + scores.amin().square(),
        lambda scores, y: F.layer_norm(scores, (5,)).square().mean((0, 1)),
        lambda scores, y: scores.cumsum(0).tril().mean() + scores.flip(1).triu().mean(),
        lambda scores, y: scores.max(-1).values.sum() + scores.sort(-1).values[:, 1].sum(),
        lambda scores, y: torch.cat([scores, 2 * scores], 1).square().mean(),
        lambda scores, y: F.pad(scores, (1, 2)).square().mean() + scores[1:4, 2:].sum(),
        lambda scores, y: scores.norm() + scores.prod(1).mean(),
    ],
    ids=[
        "mse", "softmax of classes", "softmax of the batch", "log softmax", "logsumexp", "variance",
        "smooth l1", "binary", "extremes", "layer norm", "cumulative", "sorted", "joined", "padded",
        "norm",
    ],
)  # fmt: skip
def test_losses_that_mix_what_is_cut(where: str, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    mesh, decisions = MESHES[where]
    check(classifier_task(loss, labels("none")), mesh, *decisions)


class Tables(nn.Module):
    """A table with padding beside one whose rows are scaled by frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6, padding_idx=2)
        self.other = nn.Embedding(5, 6, scale_grad_by_freq=True)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.other(ids % 5)
        return self.head(self.norm(x.mean(1)))


@pytest.mark.parametrize(
    ("mesh", "decisions"),
    [
        ({"tensor": 2}, [("tensor", "table.weight", 0)]),
        ({"tensor": 4}, [("tensor", "table.weight", 0), ("tensor", "other.weight", 0)]),
        ({"tensor": 4}, [("tensor", "table.weight", 1)]),
        ({"data": 4}, BATCHED),
        ({"data": 2, "tensor": 2}, [*BATCHED, ("tensor", "table.weight", 0)]),
        ({"data": 2, "tensor": 2}, [("tensor", "table.weight", 0), ("data", "table.weight", 0)]),
        ({"data": 2, "tensor": 2}, [("tensor", "table.weight", 0), ("data", "table.weight", 1)]),
        ({"data": 2}, [("data", "batch[0]", 1)]),
    ],
)
def test_tables_and_batch_normalisation(
    mesh: dict[str, int], decisions: list[tuple[str, str, int]]
) -> None:
    ids = torch.randint(7, (6, 3), generator=torch.Generator().manual_seed(7))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    check(Task(Tables, loss, (ids, labels("some")), "tables"), mesh, *decisions)


class Convolutions(nn.Module):
    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.ConvTranspose2d(6, 3, 2, stride=2)
        self.third = nn.Conv2d(3, 6, 3)
        self.group = nn.GroupNorm(3, 6)
        self.attention = nn.Linear(6, 18)
        self.out = nn.Linear(6, 5)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.second(F.relu(self.norm(self.first(x)))), 2)
        x = self.group(self.third(x)).flatten(2).mT
        q, k, v = self.attention(x).chunk(3, -1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        return self.out(F.dropout(mixed.transpose(1, 2).flatten(2).mean(1), 0.2))


@pytest.mark.parametrize(
    ("mesh", "decisions"),
    [
        ({"tensor": 2}, [("tensor", "first.weight", 0), ("tensor", "second.weight", 1)]),
        ({"tensor": 4}, [("tensor", "first.weight", 0), ("tensor", "third.weight", 0)]),
        ({"tensor": 4}, [("tensor", "first.weight", 1), ("tensor", "third.weight", 1)]),
        ({"tensor": 2}, [("tensor", "out.weight", 1)]),
        ({"tensor": 2}, [("tensor", "attention.weight", 1)]),
        ({"data": 4}, BATCHED),
        ({"data": 2, "tensor": 2}, [*BATCHED, ("tensor", "first.weight", 0)]),
        ({"data": 2, "tensor": 2}, [*BATCHED, ("tensor", "third.weight", 1)]),
        ({"tensor": 2, "data": 2}, [("tensor", "third.weight", 1), *BATCHED]),
    ],
)
def test_convolutions_normalisation_attention_and_dropout(
    mesh: dict[str, int], decisions: list[tuple[str, str, int]]
) -> None:
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(8))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    check(Task(Convolutions, loss, (images, labels("some")), "convolutions"), mesh, *decisions)


@pytest.mark.parametrize("parts", [2, 4])
def test_three_heads_over_two_and_four_devices(parts: int) -> None:
    """Of a projection for queries, keys and values at once: each device gets its heads of all."""
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(8))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    task = Task(Convolutions, loss, (images, labels("none", size=2)), "convolutions")
    model = Model(task)
    heads = Decision(axis="tensor", value="attention.weight", dim=0, outer=3, extent=3)
    made = by_hand(model, {"tensor": parts}).model_copy(update={"decisions": (heads,)})
    result = verify(task, plan=made, model=model, steps=2)
    assert result.equal, result


class OverLastDim(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x).tanh().square().mean()


def test_a_pending_product_is_not_cut_across_its_rows() -> None:
    """Rows lie by dim 1 of [4, 3, 6]; the plan wants them by a part that crosses it."""
    batch = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(5))
    task = Task(OverLastDim, lambda model, x: model(x), batch)
    model = Model(task)
    alone = plan(task, "local:1", "data=1", model=model)
    made = (
        Decision(axis="b", value="lin/addmm", dim=0, outer=6, extent=3),
        Decision(axis="a", value="batch", dim=1),
        Decision(axis="b", value="batch", dim=3),
    )
    crossing = alone.model_copy(
        update={"mesh": {"a": 3, "b": 2}, "decisions": made, "parameters": {}}
    )
    result = verify(task, plan=crossing, model=model, steps=1)
    assert result.equal, result
