"""Any plan gives the loss, gradients, parameters and buffers of one device.

Ranks run in lockstep in this process. Every strategy meets every model; what
changes the shape of a step (microbatches, a smaller batch, clipping) meets every
model with a few strategies.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tasks import ALL, examples, model

from meshwright.api import plan, verify
from meshwright.runtime.compare import Comparison

STRATEGIES = (
    "data", "zero=1", "zero=2", "zero=3", "tensor", "data=2,tensor=2",
    "data=2,tensor=2,zero=3", "auto",
)  # fmt: skip
FEW = ("data", "zero=3", "tensor", "data=2,tensor=2,zero=2")


def often(strategies: tuple[str, ...], *chosen: str) -> list[Any]:
    """Strategies of which only the chosen run each time, the others in the longer sweep.

    Each part of a strategy is in a chosen one, and the matrix meets all of them.
    """
    return [s if s in chosen else pytest.param(s, marks=pytest.mark.all) for s in strategies]


def in_turn(*chosen: str) -> list[Any]:
    """Every model with one of the chosen strategies, in turn; all of FEW in the longer sweep."""
    return [
        pytest.param(name, s, marks=() if s == chosen[turn % len(chosen)] else pytest.mark.all)
        for turn, name in enumerate(ALL)
        for s in FEW
    ]


# PyTorch itself refuses to normalise a batch of one vector.
NORMALISES_VECTORS = "normed"


def assert_equal(result: Comparison) -> None:
    assert result.initial_equal
    assert result.equal, result


def check(name: str, strategy: str, cluster: str = "local:4", **options: Any) -> None:
    known = model(name)
    options.setdefault("steps", 2)
    assert_equal(verify(known.task, cluster, strategy, model=known, **options))


@pytest.mark.parametrize(
    "strategy", often(STRATEGIES, "zero=1", "tensor", "data=2,tensor=2,zero=3", "auto")
)
@pytest.mark.parametrize("name", ALL)
def test_every_strategy_on_every_model(name: str, strategy: str) -> None:
    check(name, strategy)


@pytest.mark.parametrize(("name", "strategy"), in_turn("zero=3", "data=2,tensor=2,zero=2"))
def test_microbatches_with_clipping(name: str, strategy: str) -> None:
    check(name, strategy, microbatches=2, clip_norm=0.5)


@pytest.mark.parametrize(("name", "strategy"), in_turn("data=2,tensor=2,zero=2", "zero=3"))
def test_smaller_batches_between_whole_ones(name: str, strategy: str) -> None:
    """Not divisible by the data axis, smaller than it, and one example alone."""
    whole = model(name).task.batch
    counts = (6, 3) if name == NORMALISES_VECTORS else (6, 3, 1)
    check(name, strategy, batches=[whole, *(examples(name, 1, k) for k in counts), whole])


@pytest.mark.parametrize("strategy", FEW)
@pytest.mark.parametrize("name", ["gpt_dropout", "regression", "partly"])
def test_microbatches_of_unequal_size(name: str, strategy: str) -> None:
    """Six examples in four microbatches are 2, 2 and 2; seven are 2, 2, 2 and 1."""
    whole = model(name).task.batch
    batches = [whole, examples(name, 0, 6), examples(name, 1, 7)]
    if strategy == "data":
        strategy = "data=2,tensor=1"
    cluster = "local:2" if strategy in ("data=2,tensor=1", "zero=3") else "local:4"
    check(name, strategy, cluster, batches=batches, microbatches=4, clip_norm=0.5)


@pytest.mark.parametrize("devices", [3, 8])
@pytest.mark.parametrize("name", ["gpt", "convnet", "separate_attention", "grouped", "normed"])
def test_parts_of_unequal_size(name: str, devices: int) -> None:
    """Heads, channels and classes that the tensor axis does not divide, down to empty parts."""
    check(name, "tensor", f"local:{devices}", steps=1)


def test_ten_steps() -> None:
    check("gpt_dropout", "data=2,tensor=2,zero=3", steps=10)


@pytest.mark.parametrize("strategy", ["zero=3", "data=2,tensor=2,zero=3"])
def test_a_frozen_parameter_is_stored_in_parts_and_stays_as_it_is(strategy: str) -> None:
    known = model("partly")
    made = plan(known.task, "local:4", strategy, model=known)
    assert made.parameters["frozen.weight"].residency == "use"
    assert made.parameters["frozen.weight"].storage_axes == ("data",)
    check("partly", strategy)


def test_a_difference_is_seen() -> None:
    """The comparison can fail: here each side has a learning rate of its own."""
    rates = iter((0.1, 0.2, 0.3))

    def optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=next(rates))

    known = model("mlp")
    result = verify(known.task, "local:2", "data", model=known, optimizer=optimizer, steps=1)
    assert result.initial_equal
    assert not result.equal
    assert result.parameter.relative > 0.01
