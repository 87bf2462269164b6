"""Small models as users write them, each with what one kind of plan finds hard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.task import Task

BATCH = 8
CLASSES = 10


def labelled(
    features: int = 12, classes: int = CLASSES, size: int = BATCH
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, features, generator=generator)
    return x, torch.randint(classes, (size,), generator=generator)


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class SeparateAttention(nn.Module):
    """Query, key and value by a linear layer each, an untied table, no fused loss."""

    def __init__(self, heads: int = 4, width: int = 16, vocab: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocab, width)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        h = self.norm(x)
        q, k, v = (
            part(h).view(*h.shape[:2], self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(mixed))


def tokens(vocab: int = 12, length: int = 5, size: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(vocab, (size, length + 1), generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def next_token(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


class Twice(nn.Module):
    """One module used twice: its gradients add up."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Partly(nn.Module):
    """An unused parameter and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.unused = nn.Linear(12, 16)
        self.frozen = nn.Linear(16, 16)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.frozen(F.relu(self.first(x)))))


class Grouped(nn.Module):
    """Convolutions in groups, of each channel alone, and plain ones, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.gelu(self.grouped(x)), 2)
        x = self.point(F.gelu(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


class Regression(nn.Module):
    """Takes a mapping, returns its own loss; a parameter computed from another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.raw = nn.Parameter(torch.randn(3, 16))
        self.shift = nn.Parameter(torch.zeros(3, 16))

    def forward(self, inputs: Tensor, targets: Tensor) -> Any:
        weight = F.softplus(self.raw) + self.shift
        return {"loss": F.mse_loss(F.linear(F.silu(self.first(inputs)), weight), targets)}


class Normed(nn.Module):
    """Batch normalisation of vectors, in a stack with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16), nn.PReLU(), nn.Dropout(0.3),
            nn.Linear(16, 16), nn.BatchNorm1d(16, affine=False), nn.ReLU(),
            nn.Linear(16, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Scaled(nn.Module):
    """Parameters that are numbers, one of them the loss's own factor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, CLASSES)
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) / self.temperature


def separate_attention() -> Task:
    return Task(SeparateAttention, next_token, tokens(), "separate-attention")


def twice() -> Task:
    return Task(Twice, classify, labelled(), "twice")


def partly() -> Task:
    return Task(Partly, classify, labelled(), "partly")


def summed_loss() -> Task:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    return Task(Twice, loss, labelled(), "summed-loss")


def grouped() -> Task:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(BATCH, 4, 6, 6, generator=generator)
    return Task(Grouped, classify, (images, labelled()[1]), "grouped")


def regression() -> Task:
    generator = torch.Generator().manual_seed(4)
    batch = {
        "inputs": torch.randn(BATCH, 12, generator=generator),
        "targets": torch.randn(BATCH, 3, generator=generator),
    }
    return Task(Regression, None, batch, "regression")


def normed() -> Task:
    return Task(Normed, classify, labelled(), "normed")


def scaled() -> Task:
    return Task(Scaled, classify, labelled(), "scaled")


TASKS: dict[str, Callable[[], Task]] = {
    make.__name__: make
    for make in (
        separate_attention, twice, partly, summed_loss, grouped, regression, normed, scaled,
    )
}  # fmt: skip
