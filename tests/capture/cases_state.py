"""Models by what they hold: parameters in every role, buffers read and changed, modes, dtypes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from usercase import Case, ids, noise, on_noise, square

from meshwright.task import Task


class Roles(nn.Module):
    """Used several times, tied, unused, frozen, in lists and dicts, made from others."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(16, 8)
        self.shared = nn.Linear(8, 8)
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.scales = nn.ParameterList([nn.Parameter(torch.full((8,), 0.5 + i)) for i in range(2)])
        self.by_name = nn.ParameterDict(
            {"a": nn.Parameter(torch.eye(8)), "b": nn.Parameter(torch.ones(8))}
        )
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.emb.weight
        self.gates = nn.ModuleDict({"x": nn.Linear(8, 8)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.emb(x)
        for scale in self.scales:
            h = self.shared(h * scale).tanh()
        h = h @ (self.by_name["a"] + torch.diag(self.by_name["b"]))
        h = self.frozen(h) + self.gates["x"](h).sigmoid()
        joined = torch.cat([self.shared.weight, self.frozen.weight], 0)
        h = F.linear(h, joined)[..., :8]
        return self.head(h)


class BatchNorms(nn.Module):
    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8, momentum=momentum)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.fc(x)).relu())


class Buffers(nn.Module):
    """A counter, an EMA, a ring written in place, a buffer assigned anew, one of no floats."""

    ema: Tensor
    steps: Tensor
    ring: Tensor
    last: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("ema", torch.zeros(8))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("ring", torch.zeros(4, 8))
        self.register_buffer("last", torch.zeros(8))
        self.register_buffer("seen", torch.zeros(8, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        with torch.no_grad():
            self.ema.mul_(0.9).add_(h.mean(0), alpha=0.1)
            self.steps += 1
            self.ring[1:] = self.ring[:-1].clone()
            self.ring[0].copy_(h.sum(0))
            self.seen |= h.mean(0) > 0
            self.last = h[0].detach() * self.steps
        return h - self.ema + self.ring.mean(0) / self.steps + self.last


class Rotary(nn.Module):
    """Tables made at the first forward and kept: as a buffer, as an attribute, in a dict."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(8, 8)
        self.cos: Tensor | None = None
        self.cache: dict[int, Tensor] = {}
        if kind == "buffer":
            del self.cos
            self.register_buffer("cos", None, persistent=False)

    def table(self, n: int) -> Tensor:
        t = torch.arange(n, dtype=torch.float32)
        return torch.outer(t, 1.0 / 100 ** (torch.arange(8) / 8)).cos()

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        if self.kind == "dict":
            if n not in self.cache:
                self.cache[n] = self.table(n)
            table = self.cache[n]
        elif self.kind == "late":
            if not hasattr(self, "made"):
                self.register_buffer("made", self.table(n), persistent=False)
            table = self.made
        else:
            if self.cos is None or self.cos.shape[0] < n:
                self.cos = self.table(n)
            table = self.cos[:n]
        return self.fc(x) * table


class Checkpointed(nn.Module):
    def __init__(self, kind: str, reentrant: bool) -> None:
        super().__init__()
        inner = {
            "linear": [nn.Linear(8, 8), nn.Tanh()],
            "dropout": [nn.Linear(8, 8), nn.Dropout(0.3), nn.Tanh(), nn.Dropout(0.1)],
            "norm": [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()],
            "cumulative": [nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 8), nn.Dropout(0.2)],
        }[kind]
        self.first = nn.Linear(8, 8)
        self.inner = nn.Sequential(*inner)
        self.again = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2 if kind == "dropout" else 0.0))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = checkpoint(self.inner, h, use_reentrant=self.reentrant)
        return checkpoint(lambda y: self.again(y) + y, h, use_reentrant=self.reentrant)


class CountedCheckpoint(nn.Module):
    """A buffer that the checkpointed part changes."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def inner(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class FrozenBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)
        )
        self.backbone.requires_grad_(False).eval()
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1))

    def train(self, mode: bool = True) -> FrozenBackbone:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.backbone(x)
        return self.head(h)


def _double() -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    finally:
        torch.set_default_dtype(before)


def _meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))


class Tower(nn.Module):
    """EMA copy of the encoder as a target, as in BYOL: parameters that aren't trained, updated."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Linear(8, 8)
        self.target = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            t = self.target(x)
        return (self.online(x) - t).abs()


def _next(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch).flatten(0, 1), batch.flatten())


def on_module(make: Any, *shape: int, dtype: torch.dtype = torch.float32) -> Case:
    return Case(lambda: Task(make(), square, noise(*(shape or (4, 8))).to(dtype)))


CASES: dict[str, Case] = {
    "roles": Case(lambda: Task(Roles, _next, ids(4, 6))),
    "roles-module": Case(lambda: Task(Roles(), _next, ids(4, 6))),
    "batch-norm": on_noise(lambda: BatchNorms(0.1)),
    "batch-norm-cumulative": on_noise(lambda: BatchNorms(None)),
    "buffers": on_noise(Buffers),
    **{
        f"rotary-{k}": on_noise(lambda k=k: Rotary(k), 4, 6, 8)
        for k in ("buffer", "attribute", "dict", "late")
    },
    **{
        f"checkpoint-{k}-{'reentrant' if r else 'plain'}": on_noise(
            lambda k=k, r=r: Checkpointed(k, r)
        )
        for k in ("linear", "dropout", "norm", "cumulative")
        for r in (False, True)
    },
    "checkpoint-counter": on_noise(CountedCheckpoint),
    "frozen-backbone": on_noise(FrozenBackbone),
    "eval": on_noise(lambda: BatchNorms(0.1).eval()),
    "double": on_module(_double, dtype=torch.float64),
    "meta": on_module(_meta),
    "built": on_module(lambda: BatchNorms(0.1)),
    "tower": on_noise(Tower),
}
