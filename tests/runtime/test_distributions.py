"""Every random op draws from the distribution that PyTorch's own draws from.

Continuous ones by the two-sample Kolmogorov-Smirnov statistic, discrete ones by
chi-square; seeds are fixed, so that a test that passes keeps passing.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meshwright.draws import _MADE_OF
from meshwright.runtime.local_ops import RandomKey
from meshwright.runtime.reference import DrawByPosition

COUNT = 20_000
_KS_AT_0_001 = 1.95  # critical value of the statistic times sqrt(n/2)

Sample = Callable[[], Tensor]


def empty(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(COUNT, dtype=dtype)


CONTINUOUS: dict[str, Sample] = {
    "rand": lambda: torch.rand(COUNT),
    "rand_like": lambda: torch.rand_like(empty()),
    "randn": lambda: torch.randn(COUNT),
    "randn_like": lambda: torch.randn_like(empty()),
    "uniform": lambda: empty().uniform_(-2, 3),
    "normal_functional": lambda: empty().normal_(1, 2),
    "normal.float_float": lambda: torch.normal(1.0, 2.0, (COUNT,)),
    "normal.Tensor_float": lambda: torch.normal(torch.full((COUNT,), 1.0), 2.0),
    "normal.float_Tensor": lambda: torch.normal(1.0, torch.full((COUNT,), 2.0)),
    "normal.Tensor_Tensor": lambda: torch.normal(torch.ones(COUNT), torch.full((COUNT,), 2.0)),
    "log_normal": lambda: empty().log_normal_(0.5, 0.7),
    "exponential": lambda: empty().exponential_(1.5),
    "cauchy": lambda: empty().cauchy_(1, 2),
    "rrelu_with_noise_functional": lambda: F.rrelu(-torch.ones(COUNT), 0.1, 0.4, training=True),
    "gumbel_softmax": lambda: F.gumbel_softmax(torch.zeros(COUNT, 3))[:, 0],
    "alpha_dropout": lambda: F.alpha_dropout(torch.linspace(-1, 1, COUNT), 0.3, training=True),
    "native_dropout": lambda: F.dropout(torch.linspace(-1, 1, COUNT), 0.3),
}

P = torch.tensor([0.1, 0.2, 0.3, 0.4])

DISCRETE: dict[str, Sample] = {
    "bernoulli": lambda: torch.bernoulli(torch.full((COUNT,), 0.3)),
    "bernoulli_p": lambda: empty().bernoulli_(0.3),
    "geometric": lambda: empty().geometric_(0.4).clamp(max=8),
    "randint": lambda: torch.randint(7, (COUNT,)),
    "randint.low": lambda: torch.randint(-3, 4, (COUNT,)),
    "randint_like": lambda: torch.randint_like(empty(), 7),
    "randint_like.low_dtype": lambda: torch.randint_like(empty(), -3, 4),
    "random.to": lambda: empty(torch.int64).random_(7),
    "random.from": lambda: empty(torch.int64).random_(-3, 4),
    "randperm": lambda: torch.cat([torch.randperm(5)[:1] for _ in range(COUNT // 40)]),
    "multinomial": lambda: torch.multinomial(P.expand(COUNT, 4), 2)[:, 1],
    "multinomial with replacement": lambda: torch.multinomial(P, COUNT, replacement=True),
    "feature_dropout": lambda: F.dropout2d(torch.ones(COUNT, 1, 2, 2), 0.3)[:, 0, 0, 0],
}


def by_position(sample: Sample) -> Tensor:
    mode = DrawByPosition(RandomKey(5))
    with mode.marked(), mode:
        return sample()


def by_pytorch(sample: Sample) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return sample()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_continuous_distribution_is_pytorchs(name: str) -> None:
    mine, theirs = by_position(CONTINUOUS[name]), by_pytorch(CONTINUOUS[name])
    assert not torch.equal(mine, theirs)
    every = torch.cat([mine, theirs]).double().sort().values
    ours, other = (
        torch.searchsorted(x.double().sort().values, every, right=True) / len(x)
        for x in (mine, theirs)
    )
    assert float((ours - other).abs().max()) * sqrt(COUNT / 2) < _KS_AT_0_001


@pytest.mark.parametrize("name", DISCRETE)
def test_a_discrete_distribution_is_pytorchs(name: str) -> None:
    mine, theirs = by_position(DISCRETE[name]), by_pytorch(DISCRETE[name])
    values = torch.cat([mine, theirs]).unique()
    ours, other = (torch.stack([(x == v).sum() for v in values]).double() for x in (mine, theirs))
    statistic = float(((ours - other) ** 2 / (ours + other)).sum())
    freedom = len(values) - 1
    assert freedom > 0
    # Wilson and Hilferty's approximation of the chi-square's 0.999 quantile
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound


def test_every_op_made_of_draws_is_tested() -> None:
    assert set(_MADE_OF) <= {*CONTINUOUS, *DISCRETE}


def test_rrelu_draws_in_training_alone() -> None:
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(by_position(lambda: F.rrelu(x, 0.1, 0.3)), F.rrelu(x, 0.1, 0.3))
    made = by_position(lambda: torch.rrelu_(x.clone(), 0.1, 0.3, True))
    assert torch.equal(made[4:], x[4:])
    assert bool(((made / x)[:4] <= 0.3).all() and ((made / x)[:4] >= 0.1).all())


def test_a_permutation_holds_each_number_once() -> None:
    made = by_position(lambda: torch.randperm(100))
    assert torch.equal(made.sort().values, torch.arange(100))


def test_without_replacement_nothing_is_drawn_twice() -> None:
    made = by_position(lambda: torch.multinomial(torch.rand(50, 8), 8))
    assert torch.equal(made.sort(-1).values, torch.arange(8).expand(50, 8))
