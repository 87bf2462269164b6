"""Models by what they do with tensors: made in the forward, written to, complex, mixed dtypes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from usercase import Case, ids, noise, on_noise, square

from meshwright.task import Task


class Fc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)


class Made(Fc):
    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        h = self.fc(x) + torch.arange(n) * 0.1 + torch.eye(n)[0] + torch.full((n,), 2.0)
        mask = torch.tril(torch.ones(n, n)).bool()
        h = h @ torch.zeros(n, n).masked_fill(mask, 1.0)
        h = h + torch.tensor([float(i) for i in range(n)]) + torch.tensor(3)
        h = h + h.new_zeros(n) + h.new_full((n,), 0.5) + h.new_ones(1) + h.new_empty(n).fill_(1)
        h = h * torch.linspace(0, 1, n) + torch.ones_like(h) + torch.full_like(h, 0.1)
        return h + torch.zeros(x.shape[0], 1) + F.one_hot(torch.arange(n), n)[0]


class Writes(Fc):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        h = h.relu_().clone()
        h[..., 0] = 1
        h[:, 2:4] += x[:, 2:4]
        h[:, 4:].mul_(2)
        h.view(-1)[0:4].zero_()
        h = h.clone()
        h[torch.arange(x.shape[0]), torch.arange(x.shape[0])] = 0.25
        h.masked_fill_(h > 2, 2.0)
        out = torch.empty_like(h)
        out.copy_(h)
        out.index_add_(1, torch.tensor([1, 3]), x[:, :2])
        out.scatter_(1, torch.tensor([[0]] * x.shape[0]), 0.5)
        a, b = out[:, :4], out[:, 4:]
        a.add_(1)
        b -= a
        return out.t().contiguous().t()


class InPlaceBatch(Fc):
    """Changes the batch that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        x[:, 0] = 1
        return self.fc(x)


class InPlaceDict(Fc):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        batch["x"] = batch["x"] * 2
        labels = batch.pop("labels")
        batch["more"] = labels
        return F.cross_entropy(self.fc(batch["x"]), labels)


class Complex(Fc):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, dtype=torch.cfloat) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        z = torch.view_as_complex(h.view(*h.shape[:-1], 4, 2).contiguous())
        turned = z * torch.polar(torch.ones(4), torch.arange(4) * 0.3) * self.filter
        return (
            torch.view_as_real(turned).flatten(-2)
            + z.abs().repeat(1, 2)
            + torch.cat((z.real, z.imag), -1)
        )


class NoGrad(Fc):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        with torch.no_grad():
            top = h.amax(-1, keepdim=True)
            target = h.detach().softmax(-1)
        with torch.set_grad_enabled(True):
            h = h - top
        with torch.inference_mode(False):
            return F.kl_div(h.log_softmax(-1), target, reduction="none") + h


class StraightThrough(Fc):
    """Vector quantisation: nearest code, straight-through gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        nearest = torch.cdist(h, self.codes.weight).argmin(-1)
        q = self.codes(nearest)
        return h + (q - h).detach() + (q - h.detach()).pow(2) + (q.detach() - h).pow(2)


class Autocast(Fc):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.fc(x).relu()
            with torch.autocast("cpu", enabled=False):
                h = h.float() * 2
            return self.out(h)


def _autocast_loss(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(batch).float().pow(2).mean()


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8).bfloat16()
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 8).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.fc(x.bfloat16()).float())
        return self.out(h.double()).float()


class Random(Fc):
    """Draws of many kinds."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        k = self.kind
        if k == "rand":
            return h + torch.rand(h.shape) + torch.randn_like(h) + torch.rand_like(h[0])
        if k == "normal":
            return h + torch.normal(0.0, 1.0, size=h.shape)
        if k == "normal_":
            return h + torch.empty_like(h).normal_()
        if k == "normal-tensor":
            return torch.normal(h.detach(), 0.5) + h
        if k == "uniform_":
            return h + torch.empty_like(h).uniform_(-1, 1)
        if k == "bernoulli_":
            return h * torch.empty(h.shape[0], 1).bernoulli_(0.7)
        if k == "bernoulli":
            return h * torch.bernoulli(torch.full_like(h, 0.5))
        if k == "randint":
            return h + torch.randint(0, 5, (h.shape[0], 1))
        if k == "randint_like":
            return h + torch.randint_like(x, 0, 5)
        if k == "randperm":
            return h[:, torch.randperm(8)]
        if k == "exponential_":
            return (h + -torch.empty_like(h).exponential_().log()).softmax(-1)
        if k == "gumbel":
            return F.gumbel_softmax(h, tau=0.7)
        if k == "multinomial":
            return h + torch.multinomial(h.detach().softmax(-1), 2).sum(-1, keepdim=True)
        if k == "poisson":
            return h + torch.poisson(h.detach().abs())
        if k == "rrelu":
            return F.rrelu(h, training=True)
        if k == "alpha_dropout":
            return F.alpha_dropout(h, 0.2, True)
        if k == "feature_dropout":
            return F.dropout1d(h.unsqueeze(1).expand(-1, 4, -1), 0.3, True).sum(1)
        if k == "distribution":
            return torch.distributions.Normal(h, 1.0).rsample()
        if k == "categorical":
            d = torch.distributions.Categorical(logits=h)
            return h * d.log_prob(d.sample()).unsqueeze(-1)
        if k == "generator":
            g = torch.Generator().manual_seed(3)
            return h + torch.rand(8, generator=g)
        raise AssertionError(k)


RANDOM = (
    "rand", "normal", "normal_", "normal-tensor", "uniform_", "bernoulli_", "bernoulli", "randint",
    "randint_like", "randperm", "exponential_", "gumbel", "multinomial", "rrelu", "alpha_dropout",
    "feature_dropout", "distribution", "categorical", "generator",
)  # fmt: skip


def _on_dict(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch)


class SparseEmbedding(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.emb = nn.Embedding(16, 8, **options)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.emb(x))


class Gaussian(Fc):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return F.gaussian_nll_loss(h, x, torch.full_like(h, 0.5), reduction="none")


CASES: dict[str, Case] = {
    "made": on_noise(Made),
    "writes": on_noise(Writes),
    "in-place-batch": on_noise(InPlaceBatch),
    "in-place-batch-parts": Case(lambda: Task(InPlaceBatch, square, noise(8, 8)), microbatches=2),
    "in-place-dict": Case(
        lambda: Task(InPlaceDict, _on_dict, {"x": noise(4, 8), "labels": ids(4, below=8)})
    ),
    "complex": on_noise(Complex),
    "no-grad": on_noise(NoGrad),
    "straight-through": on_noise(StraightThrough),
    "autocast": on_noise(Autocast),
    "autocast-loss": Case(
        lambda: Task(
            lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8)),
            _autocast_loss,
            noise(4, 8),
        )
    ),
    "mixed": on_noise(Mixed),
    "padding": Case(lambda: Task(lambda: SparseEmbedding(padding_idx=0), square, ids(4, 6))),
    "sparse": Case(lambda: Task(lambda: SparseEmbedding(sparse=True), square, ids(4, 6))),
    "max-norm": Case(
        lambda: Task(lambda: SparseEmbedding(max_norm=1.0), square, ids(4, 6)), refused="max_norm"
    ),
    "by-frequency": Case(
        lambda: Task(lambda: SparseEmbedding(scale_grad_by_freq=True), square, ids(4, 6))
    ),
    "gaussian": on_noise(Gaussian),
    **{f"random-{k}": on_noise(lambda k=k: Random(k)) for k in RANDOM},
    "random-poisson": on_noise(lambda: Random("poisson"), refused="draws random numbers"),
}
