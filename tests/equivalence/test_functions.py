"""Functions of PyTorch in a model of one weight, batch and features both cut, against one device.

What these lists guard is breadth: that the step of a model that calls them has
rules for all its ops, forward and backward, and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.api import Model, plan, verify
from meshwright.plan.types import Decision
from meshwright.task import Task

Function = Callable[[Tensor], Tensor]


class Scaled(nn.Module):
    def __init__(self, function: Function | nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.weight)


def rows(x: Tensor, many: int = 4, high: int = 8) -> Tensor:
    return (torch.arange(many) * 3) % high


def square(x: Tensor) -> Tensor:
    """Positive definite matrices [2, 3, 3]."""
    y = x.reshape(2, 4, 6)[:, :3]
    return y @ y.mT + 4 * torch.eye(3)


def complex_of(x: Tensor) -> Tensor:
    return torch.complex(x, x.flip(0))


def written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = x[:, 1]
    y[2:4] = 1.0
    return y


FUNCTIONS: dict[str, Function] = {
    "glu": F.glu, "celu": F.celu, "logsigmoid": F.logsigmoid, "softmin": lambda x: F.softmin(x, 1),
    "threshold": lambda x: F.threshold(x, 0.4, 2.0), "rrelu": lambda x: F.rrelu(x, training=True),
    "clamp by tensors": lambda x: x.clamp(x.detach() - 1, x.detach().mean(0)),
    "cosine similarity": lambda x: F.cosine_similarity(x, x.flip(0)),
    "distance": lambda x: F.pairwise_distance(x, x.flip(0)), "pdist": F.pdist,
    "cdist": lambda x: torch.cdist(x[None], x[None, :5] + 1), "renorm": lambda x: x.renorm(2, 0, 1),
    "normalize": F.normalize, "cross": lambda x: torch.linalg.cross(x[:, :3], x[:, 3:]),
    "cumsum": lambda x: x.cumsum(0), "cumprod": lambda x: x.cumprod(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1), "cummax": lambda x: x.cummax(0).values,
    "sort": lambda x: x.sort(0).values, "topk": lambda x: x.topk(2).values,
    "median": lambda x: x.median(1).values, "kthvalue": lambda x: x.kthvalue(2, 0).values,
    "quantile": lambda x: x.quantile(0.3, dim=1), "logsumexp": lambda x: x.logsumexp(0),
    "variance": lambda x: x.var(0), "deviation": lambda x: x.std(), "norm": lambda x: x.norm(dim=0),
    "norm of all": lambda x: torch.linalg.vector_norm(x, 3), "max": lambda x: x.max(1).values,
    "min of rows": lambda x: x.min(0).values, "product": lambda x: x.prod(1),
    "flip": lambda x: x.flip(0, 1), "roll": lambda x: x.roll(1, 0), "rot90": torch.rot90,
    "triangles": lambda x: x.triu() + x.tril(-1), "diagonal": lambda x: x.diagonal(),
    "diag embed": torch.diag_embed, "windows": lambda x: x.unfold(1, 3, 1).mean(-1),
    "patches": lambda x: F.unfold(x[None, None], (2, 2)),
    "fold": lambda x: F.fold(x.reshape(1, 4, 12), (4, 5), (2, 2)),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.reshape(2, 4, 2, 3), 2),
    "sampling": lambda x: F.grid_sample(x.reshape(2, 3, 2, 4), x.detach().reshape(2, 3, 4, 2) / 2),
    "affine grid": lambda x: F.affine_grid(x.reshape(8, 2, 3), [8, 1, 3, 4]),
    "rows picked": lambda x: x[rows(x)], "rows selected": lambda x: x.index_select(0, rows(x)),
    "columns picked": lambda x: x[:, rows(x, 5, 6)],
    "pairs picked": lambda x: x[rows(x), [0, 1, 2, 3]],
    "gather": lambda x: x.gather(0, rows(x, 12).view(2, 6)),
    "rows added": lambda x: x.new_zeros(5, 6).index_add(0, rows(x, 8, 5), x),
    "scatter": lambda x: x.scatter(1, torch.tensor([[1], [0]] * 4), 2.0),
    "scatter add": lambda x: x.new_zeros(5, 6).scatter_add(0, rows(x, 48, 5).view(8, 6), x),
    "scatter max": lambda x: x.scatter_reduce(0, rows(x, 48).view(8, 6), 2 * x, "amax"),
    "written in place": written, "masked": lambda x: x.masked_fill(x > 0.5, 0.0),
    "one hot": lambda x: F.one_hot(rows(x, 8, 6), 6).float() * x,
    "bucketize": lambda x: torch.bucketize(x.detach(), torch.linspace(0, 1, 4)) * x,
    "fft": lambda x: torch.fft.fft2(x).abs(),
    "filter": lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2j),
    "rotation": lambda x: torch.view_as_real(
        torch.view_as_complex(x.reshape(8, 3, 2)) * torch.polar(torch.ones(3), torch.arange(3.0))
    ),
    "complex product": lambda x: (complex_of(x) @ complex_of(x).mH).real,
    "cholesky": lambda x: torch.linalg.cholesky(square(x)),
    "inverse": lambda x: square(x).inverse(),
    "determinant": lambda x: square(x).logdet(),
    "eigenvalues": lambda x: torch.linalg.eigvalsh(square(x)),
    "singular values": lambda x: torch.linalg.svdvals(square(x)),
    "solution": lambda x: torch.linalg.solve(square(x), x.reshape(2, 4, 6)[:, :3]),
    "triangular": lambda x: torch.linalg.solve_triangular(
        square(x).tril(), x.reshape(2, 4, 6)[:, :3], upper=False
    ),
    "einsum": lambda x: torch.einsum("ij,kj,lj->ikl", x, x, x),
    "bilinear": lambda x: F.bilinear(x, x, torch.ones(3, 6, 6)),
    "addmv": lambda x: torch.addmv(x[:, 0], x, x[0]), "outer": lambda x: torch.outer(x[:, 0], x[0]),
    "lerp": lambda x: torch.lerp(x, x.exp(), 0.3),
    "special": lambda x: torch.special.i0e(x) + x.lgamma(),
    "xlogy": lambda x: torch.xlogy(x, x.abs() + 1), "nan to num": lambda x: x.nan_to_num(0.0),
    "huber": lambda x: F.huber_loss(x, x.detach() + 1), "kl": lambda x: F.kl_div(
        x.log_softmax(1), x.detach().flip(1).softmax(1), reduction="batchmean"
    ),
    "poisson loss": lambda x: F.poisson_nll_loss(x, x.detach().abs()),
    "triplet": lambda x: F.triplet_margin_loss(x, x.flip(0), x.roll(1, 0)),
    "multi margin": lambda x: F.multi_margin_loss(x, rows(x, 8, 6)),
    "multi label": lambda x: F.multilabel_margin_loss(x, torch.tensor([[1, 2, -1, 0, 0, 0]] * 8)),
    "gumbel": lambda x: F.gumbel_softmax(x), "noise": lambda x: x * torch.randn_like(x).exp(),
    "numbers": lambda x: x * torch.randint(5, x.shape),
    "order": lambda x: x * torch.randperm(8)[:, None],
    "choices": lambda x: x * torch.multinomial(x.detach().softmax(-1), 1),
}  # fmt: skip

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Sequential(nn.Linear(6, 4), nn.Hardswish()),
    "RNN": lambda: First(nn.RNN(3, 5, batch_first=True)),
    "LSTM": lambda: First(nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True)),
    "GRU": lambda: First(nn.GRU(3, 5, batch_first=True)),
    "GRUCell": lambda: nn.GRUCell(6, 5),
    "alpha dropout": lambda: nn.AlphaDropout(0.3),
    "Mish": nn.Mish,
}


class First(nn.Module):
    """A recurrent layer on sequences of two, its first result alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x.view(8, 2, 3))[0]
        return made


def check(build: Callable[[], Function | nn.Module]) -> None:
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    task = Task(
        lambda: Scaled(build()), lambda model, x: model(x).float().square().mean(), x, "function"
    )
    model = Model(task)
    alone = plan(task, "local:1", "data=1", model=model)
    assert not alone.remarks, alone.remarks  # no op was probed
    cuts = tuple(
        Decision(axis=axis, value="batch", dim=k) for k, axis in enumerate(("data", "tensor"))
    )
    mesh = {"data": 2, "tensor": 2}
    made = alone.model_copy(update={"mesh": mesh, "decisions": cuts, "parameters": {}})
    result = verify(task, plan=made, model=model, steps=1)
    assert result.equal, result


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_cut_values(name: str) -> None:
    check(lambda: FUNCTIONS[name])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_cut_values(name: str) -> None:
    check(LAYERS[name])
