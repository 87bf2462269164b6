"""Neural collaborative filtering (He et al., 2017): matrix factorisation beside an MLP."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo.checks import whole_numbers
from meshwright.zoo.sizes import config_of
from meshwright.zoo.synthetic import fixed, seeded


@dataclass(frozen=True)
class NCFConfig:
    """`mlp` are the widths of the layers; the first is that of a user and an item, joined."""

    users: int = 138_493
    items: int = 26_744
    factors: int = 64
    mlp: str = "256-256-128-64"
    global_batch: int = 1_048_576


SIZES = {
    "tiny": NCFConfig(64, items=48, factors=8, mlp="16-16-8", global_batch=32),
    "small": NCFConfig(6040, items=3706, factors=32, mlp="128-64-32", global_batch=1024),
    "full": NCFConfig(),
}


class NCF(nn.Module):
    """`model(users, items) -> logits`, all [B]."""

    def __init__(self, config: NCFConfig) -> None:
        super().__init__()
        self.config = config
        widths = whole_numbers("mlp", config.mlp)
        self.user_factors = nn.Embedding(config.users, config.factors)
        self.item_factors = nn.Embedding(config.items, config.factors)
        self.user_embedding = nn.Embedding(config.users, widths[0] // 2)
        self.item_embedding = nn.Embedding(config.items, widths[0] // 2)
        layers: list[nn.Module] = []
        for features, out in itertools.pairwise(widths):
            layers += [nn.Linear(features, out), nn.ReLU()]
        self.mlp = nn.Sequential(*layers)
        self.predict = nn.Linear(config.factors + widths[-1], 1)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        product = self.user_factors(users) * self.item_factors(items)
        joined = torch.cat([self.user_embedding(users), self.item_embedding(items)], dim=-1)
        logits: Tensor = self.predict(torch.cat([product, self.mlp(joined)], dim=-1))
        return logits.squeeze(-1)


def seen_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Batch is (users, items, seen): who, what, and 1 if they met; all [B]."""
    users, items, seen = batch
    return F.binary_cross_entropy_with_logits(model(users, items), seen)


def draw(config: NCFConfig, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Users and items have hidden tastes; a pair was seen where they agree."""
    batch = config.global_batch
    users = torch.randint(config.users, (batch,), generator=generator)
    items = torch.randint(config.items, (batch,), generator=generator)
    tastes = fixed(config.users + config.items, 4)
    agree = (tastes[users] * tastes[config.users + items]).sum(-1) + tastes[config.users + items, 0]
    seen = torch.sigmoid(3 * agree) > torch.rand(batch, generator=generator)
    return users, items, seen.float()


def ncf_task(
    size: str = "small",
    users: int | None = None,
    items: int | None = None,
    factors: int | None = None,
    mlp: str | None = None,
    global_batch: int | None = None,
) -> Task:
    """Who has seen what; `size=full` has the tables of MovieLens-20M."""
    config = config_of(
        SIZES, size, users=users, items=items, factors=factors, mlp=mlp, global_batch=global_batch
    )
    widths = whole_numbers("mlp", config.mlp)
    if len(widths) < 2 or widths[0] % 2:
        raise ModelError(
            f"mlp is {config.mlp!r}, but its first width is halved between user and item, and "
            "there must be a second.",
            "Give mlp=64-32, say.",
        )
    return Task(
        model=partial(NCF, config), loss=seen_loss, batch=draw(config, seeded(0)), name="ncf"
    )
