"""Models and clusters for which experts know the strategy; nothing of their size is ever built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.api import Model
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster
from meshwright.task import Task
from meshwright.zoo.reference import load_task

SLOWER = 10.0


@dataclass(frozen=True)
class Dims:
    """Of a transformer with 9 parameter tensors a layer and an embedding, its head's as well."""

    layers: int
    width: int
    heads: int
    hidden: int
    vocab: int
    seq_len: int
    batch: int
    dtype: torch.dtype = torch.bfloat16


class Layer(nn.Module):
    def __init__(self, dims: Dims) -> None:
        super().__init__()
        width, hidden = dims.width, dims.hidden
        self.heads = dims.heads
        self.norm_1, self.norm_2 = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        y = F.rms_norm(x, (width,), self.norm_1)
        q, k, v = (
            linear(y).view(batch, seq, self.heads, -1).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, seq, width))
        y = F.rms_norm(x, (width,), self.norm_2)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Transformer(nn.Module):
    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.embedding = nn.Embedding(dims.vocab, dims.width)
        self.layers = nn.ModuleList(Layer(dims) for _ in range(dims.layers))
        self.to(dims.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return F.linear(x, self.embedding.weight)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


@cache
def transformer(**dims: Any) -> Model:
    given = Dims(**dims)
    ids = torch.zeros(given.batch, given.seq_len, dtype=torch.int64)
    return Model(Task(partial(Transformer, given), _loss, (ids, ids.clone()), "transformer"))


@cache
def zoo(name: str, **options: str) -> Model:
    return Model(load_task(f"zoo:{name}", options))


def slow_network(text: str) -> Cluster:
    """The cluster with a tenth of the bandwidth between its hosts."""
    cluster = parse_cluster(text)
    groups = tuple(
        group.model_copy(
            update={
                "levels": tuple(
                    level.model_copy(update={"bytes_per_s": level.bytes_per_s / SLOWER})
                    if level.devices > group.devices
                    else level
                    for level in group.levels
                )
            }
        )
        for group in cluster.groups
    )
    return cluster.model_copy(update={"groups": groups, "text": f"{text} slow network"})
