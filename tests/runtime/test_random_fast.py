"""Draws of the device's own generator: replicas alike, parts apart, and what may be verified."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from meshwright.api import Model, parallelize, plan, sgd, verify
from meshwright.cluster.mesh import Mesh
from meshwright.errors import UsageError
from meshwright.plan.file import load_plan, save_plan
from meshwright.runtime.local_ops import RandomKey, draw
from meshwright.runtime.lockstep import run_lockstep
from meshwright.task import Task

FAST = RandomKey(3, fast=True)
WHOLE = (8, 6)
REST = {"cuts": (), "dtype": "float32"}


def part(index: int, parts: int = 2) -> tuple[tuple[int, ...], ...]:
    return ((0, 1, 8, parts, index, 8),)


def drawn(kind: str, cuts: tuple[tuple[int, ...], ...] = (), stream: int = 0) -> Tensor:
    made: Tensor = draw(FAST, kind=kind, stream=stream, shape=WHOLE, cuts=cuts, dtype="float32")
    return made


@pytest.mark.parametrize("kind", ["rand", "randn"])
def test_replicas_draw_alike_and_parts_apart(kind: str) -> None:
    assert drawn(kind).shape == WHOLE
    assert drawn(kind, part(0)).shape == (4, 6)
    assert drawn(kind, ((0, 1, 8, 3, 2, 8),)).shape == (2, 6)
    assert torch.equal(drawn(kind, part(0)), drawn(kind, part(0)))
    assert not torch.equal(drawn(kind, part(0)), drawn(kind, part(1)))
    assert not torch.equal(drawn(kind, part(0)), drawn(kind, part(0), stream=1))


def test_dropout_keeps_and_scales() -> None:
    x = torch.ones(200, 50)
    args = {"kind": "native_dropout", "stream": 0, "shape": (200, 50), **REST}
    out, mask = draw(FAST, x, 0.25, True, **args)
    assert torch.equal(out, mask / 0.75)
    assert abs(float(mask.float().mean()) - 0.75) < 0.02
    same, every = draw(FAST, x, 0.25, False, **args)
    assert torch.equal(same, x)
    assert bool(every.all())


def test_bernoulli_follows_its_probabilities() -> None:
    odds = torch.linspace(0, 1, 5).expand(4000, 5)
    args = {"stream": 0, "shape": (4000, 5), **REST}
    made = draw(FAST, odds, kind="bernoulli", **args)
    assert torch.allclose(made.mean(0), odds[0], atol=0.04)
    made = draw(FAST, odds, 0.3, kind="bernoulli_p", **args)
    assert abs(float(made.mean()) - 0.3) < 0.02


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 32)
        self.second = nn.Linear(32, 1)
        self.rate = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.dropout(torch.relu(self.first(x)), self.rate))


def task(model: type[nn.Module] = Dropped) -> Task:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    return Task(model, lambda model, x: model(x).square().mean(), x, "dropped")


def losses(rng: str, strategy: str) -> list[float]:
    model = Model(task())
    made = plan(task(), "local:2", strategy, rng=rng, model=model)  # type: ignore[arg-type]

    def rank(communicator: object) -> list[float]:
        job = parallelize(
            task(), optimizer=sgd, plan=made, communicator=communicator, model=model, device="cpu"
        )  # type: ignore[arg-type]
        return [job.step(task().batch).loss for _ in range(2)]

    results = run_lockstep(Mesh(tuple(made.mesh.items())), rank)
    assert results[0] == results[1]
    return results[0]


def test_a_run_repeats_itself_and_only_exact_ones_agree_between_plans() -> None:
    assert losses("fast", "data=2") == losses("fast", "data=2")
    assert losses("fast", "data=2") != pytest.approx(losses("fast", "data=1,tensor=2"), rel=1e-3)
    assert losses("exact", "data=2") == pytest.approx(losses("exact", "data=1,tensor=2"), rel=1e-5)


def test_a_plan_keeps_how_it_draws(run_dir: Path) -> None:
    made = plan(task(), "local:2", "data=2", rng="fast")
    save_plan(made, run_dir / "plan.json")
    assert load_plan(run_dir / "plan.json").rng == "fast"
    with pytest.raises(UsageError, match="rng is 'quick'"):
        plan(task(), "local:2", "data=2", rng="quick")  # type: ignore[arg-type]


def test_what_draws_fast_can_not_be_verified() -> None:
    with pytest.raises(UsageError, match="draws random numbers by rng=fast"):
        verify(task(), "local:2", "data=2", rng="fast")
    assert verify(task(), "local:2", "data=2", rng="exact", steps=2).equal


def test_a_model_without_draws_is_verified_under_any_rng() -> None:
    plain = Task(
        lambda: nn.Linear(6, 1), lambda model, x: model(x).square().mean(), task().batch, "plain"
    )
    assert verify(plain, "local:2", "data=2", rng="fast", steps=2).equal
