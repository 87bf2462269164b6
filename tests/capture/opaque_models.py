"""Models with a part that can't be captured, marked to run as it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import meshwright
from meshwright.task import Task

WIDTH = 16


class Router(nn.Module):
    """Branches on the values of each example; a capacity that a loop counts up to."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, experts)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(experts))
        self.scale = torch.full((WIDTH,), 0.5)  # neither parameter nor buffer
        self.register_buffer("bias", torch.arange(experts) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for row in x:
            scores = self.gate(row).softmax(-1) + self.bias
            used: dict[int, int] = {}
            made = []
            for token, score in zip(row, scores, strict=True):
                chosen = int(score.argmax().item())
                if used.get(chosen, 0) >= 2:
                    chosen = (chosen + 1) % len(self.experts)
                used[chosen] = used.get(chosen, 0) + 1
                made.append(self.experts[chosen](token) * score[chosen] * self.scale)
            rows.append(torch.stack(made) * (2 if row.mean().item() > 0 else 1))
        return torch.stack(rows)


class ByNumpy(nn.Module):
    """Looks at values through NumPy, takes a keyword and gives several things."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, *, bound: float) -> dict[str, Any]:
        large = x.detach().numpy().max(axis=-1) > bound
        chosen = torch.from_numpy(large)
        y = torch.where(chosen[..., None], self.inner(x), x)
        return {"y": y, "chosen": chosen, "none": None, "name": "numpy"}


class Centred(nn.Module):
    """Examples influence each other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max().item() < 0:
            return x
        return (x - x.mean(0, keepdim=True)) * self.weight


class Counting(nn.Module):
    """Updates a buffer in a way that does not depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("fixed", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.inner(x) * self.fixed / float(self.steps.item())


class Averaging(Counting):
    """Updates a buffer from the whole batch, by assignment."""

    def forward(self, x: Tensor) -> Tensor:
        self.fixed = 0.9 * self.fixed + 0.1 * x.detach().mean((0, 1))
        return self.inner(x) * float(self.fixed.sum().item() > -1e9)


class Model(nn.Module):
    """A linear layer, the part, a feed-forward block and a head."""

    def __init__(self, part: nn.Module, call: Any = None) -> None:
        super().__init__()
        self.embed = nn.Linear(12, WIDTH)
        self.part = part
        self.up = nn.Linear(WIDTH, 32)
        self.down = nn.Linear(32, WIDTH)
        self.head = nn.Linear(WIDTH, 10)
        self.call = call or (lambda part, h: part(h))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.call(self.part, h)
        h = h + self.down(F.gelu(self.up(h)))
        return self.head(h)


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 5, 12, generator=generator)
    return x, torch.randint(10, (size, 5), generator=generator)


def classify(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(given[0]).flatten(0, 1), given[1].flatten())


def task(part: Any, call: Any = None, **options: Any) -> Task:
    """A task whose model is built when it is needed, its part marked."""

    def build() -> nn.Module:
        return Model(meshwright.opaque(part(), **options), call)

    return Task(build, classify, batch(), "routed")
