"""DLRM (Naumov et al., 2019): recommendation with large embedding tables."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.task import Task
from meshwright.zoo.checks import require_one_of, whole_numbers
from meshwright.zoo.sizes import config_of
from meshwright.zoo.synthetic import fixed, seeded

LOOKUPS = ("bag", "embedding")


@dataclass(frozen=True)
class DLRMConfig:
    """The largest table has `rows`; each example names `hots` rows of every table.

    `lookup` is the module that tables are: `nn.EmbeddingBag`, or `nn.Embedding` with a sum.
    """

    tables: int = 26
    rows: int = 40_000_000
    width: int = 128
    dense: int = 13
    hots: int = 1
    bottom: str = "512-256"
    top: str = "1024-1024-512-256"
    lookup: str = "bag"
    global_batch: int = 65_536


SIZES = {
    "tiny": DLRMConfig(
        4, rows=96, width=16, dense=4, hots=2, bottom="16", top="32-16", global_batch=32
    ),
    "small": DLRMConfig(
        8, rows=10_000, width=32, hots=4, bottom="64", top="128-64", global_batch=512
    ),
    "full": DLRMConfig(),
}  # fmt: skip


def table_rows(config: DLRMConfig) -> list[int]:
    """Rows of each table: few are large, as in advertising logs."""
    return [max(4, config.rows // 4 ** (index % 8)) for index in range(config.tables)]


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for features, out in itertools.pairwise(widths):
        layers += [nn.Linear(features, out), nn.ReLU()]
    return nn.Sequential(*layers)


class DLRM(nn.Module):
    """`model(dense, sparse) -> logits [B]`, dense [B, dense], sparse [B, tables, hots] int64."""

    def __init__(self, config: DLRMConfig) -> None:
        super().__init__()
        self.config = config
        self.tables = nn.ModuleList(self.table(rows) for rows in table_rows(config))
        self.bottom = mlp(config.dense, *whole_numbers("bottom", config.bottom), config.width)
        vectors = config.tables + 1
        pairs = vectors * (vectors - 1) // 2
        hidden = whole_numbers("top", config.top)
        self.top = mlp(config.width + pairs, *hidden)
        self.head = nn.Linear(hidden[-1], 1)

    def table(self, rows: int) -> nn.Module:
        made: nn.EmbeddingBag | nn.Embedding
        if self.config.lookup == "bag":
            made = nn.EmbeddingBag(rows, self.config.width, mode="sum")
        else:
            made = nn.Embedding(rows, self.config.width)
        nn.init.uniform_(made.weight, -(rows**-0.5), rows**-0.5)
        return made

    def look_up(self, sparse: Tensor) -> list[Tensor]:
        if self.config.lookup == "bag":
            return [table(sparse[:, index]) for index, table in enumerate(self.tables)]
        return [table(sparse[:, index]).sum(dim=1) for index, table in enumerate(self.tables)]

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        vectors = torch.stack([bottom, *self.look_up(sparse)], dim=1)  # [B, tables + 1, width]
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        row, column = torch.tril_indices(
            vectors.size(1), vectors.size(1), offset=-1, device=dense.device
        )
        pairs = products[:, row, column]
        logits: Tensor = self.head(self.top(torch.cat([bottom, pairs], dim=1)))
        return logits.squeeze(1)


def click_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Batch is (dense [B, dense], sparse [B, tables, hots], clicks [B] of 0 and 1)."""
    dense, sparse, clicks = batch
    return F.binary_cross_entropy_with_logits(model(dense, sparse), clicks)


def draw(config: DLRMConfig, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows are much more frequent than others; each has a taste of its own."""
    batch = config.global_batch
    dense = torch.rand(batch, config.dense, generator=generator).log1p()
    rows = torch.tensor(table_rows(config)).view(1, -1, 1)
    popular = torch.rand(batch, config.tables, config.hots, generator=generator) ** 4
    sparse = (popular * rows).long().clamp(max=rows - 1)
    taste = torch.sin(sparse * 1.7 + torch.arange(config.tables).view(1, -1, 1)).mean((1, 2))
    score = dense @ fixed(config.dense) + 6 * taste
    clicks = (torch.sigmoid(4 * score) > torch.rand(batch, generator=generator)).float()
    return dense, sparse, clicks


def dlrm_task(
    size: str = "small",
    tables: int | None = None,
    rows: int | None = None,
    width: int | None = None,
    dense: int | None = None,
    hots: int | None = None,
    bottom: str | None = None,
    top: str | None = None,
    lookup: str | None = None,
    global_batch: int | None = None,
) -> Task:
    """Click prediction; `size=full` has 26 tables of up to 40 million rows, 108 GB in all."""
    config = config_of(
        SIZES, size, tables=tables, rows=rows, width=width, dense=dense, hots=hots,
        bottom=bottom, top=top, lookup=lookup, global_batch=global_batch,
    )  # fmt: skip
    require_one_of("lookup", config.lookup, LOOKUPS)
    whole_numbers("bottom", config.bottom)
    whole_numbers("top", config.top)
    return Task(
        model=partial(DLRM, config), loss=click_loss, batch=draw(config, seeded(0)), name="dlrm"
    )
