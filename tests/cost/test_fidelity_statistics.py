"""The figures that the fidelity benchmark states."""

from __future__ import annotations

import pytest
from benchmarks.fidelity.__main__ import summary
from benchmarks.fidelity.pairs import PAIRS
from benchmarks.fidelity.statistics import (
    at_equal_load,
    fastest_is_right,
    median_absolute,
    relative_error,
    spread,
    worst,
)
from benchmarks.ranks import rank_correlation

from meshwright.search.strategy import parse_strategy


def test_errors() -> None:
    assert relative_error(1.1, 1.0) == pytest.approx(0.1)
    assert median_absolute([-0.3, 0.1, 0.2]) == 0.2
    assert worst([-0.3, 0.1, 0.2]) == -0.3


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # Two share the ranks 1 and 2: 1.5 each; worked out by hand.
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)
    assert rank_correlation([1.0], [2.0]) is None
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None


def test_spread_is_between_quartiles() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread([1.0]) == 0.0


def test_equal_load() -> None:
    assert at_equal_load([2.0, 2.0], [1.0, 1.0, 3.0]) == pytest.approx([2.0, 1.0])


def test_the_fastest_plan() -> None:
    assert fastest_is_right([(1.0, 1.0, 0.0), (2.0, 3.0, 0.0)])
    assert not fastest_is_right([(1.0, 1.5, 0.1), (2.0, 1.0, 0.1)])
    assert fastest_is_right([(1.0, 1.05, 0.1), (2.0, 1.0, 0.0)])


def row(predicted: float, measured: float) -> dict[str, object]:
    return {
        "model": "m", "cluster": "local:2",
        "step_time": {"predicted": predicted, "measured": measured, "spread": 0.0,
                      "error": predicted / measured - 1, "at_equal_load": 0.0},
        "memory": {"predicted": 1.0, "measured": 1.0, "error": 0.0},
    }  # fmt: skip


def test_summary() -> None:
    found = summary([row(1.0, 1.0), row(2.2, 2.0)])
    assert found["step_time"]["median"] == pytest.approx(0.05)
    assert found["step_time"]["worst"] == pytest.approx(0.1)
    assert found["step_time"]["rank"] == pytest.approx(1.0)
    assert found["fastest"] == {"m on local:2": True}
    assert summary([]) == {}


def test_pairs_are_many_and_of_all_kinds() -> None:
    assert len(PAIRS) >= 24
    assert len(set(map(str, PAIRS))) == len(PAIRS)
    assert {pair.cluster for pair in PAIRS} == {"local:2", "local:4"}
    kinds = {pair.model.kind for pair in PAIRS}
    assert {"transformer", "convolution", "graph network", "mixture of experts"} <= kinds
    text = " ".join(pair.strategy for pair in PAIRS)
    for word in ("data=", "zero=", "tensor=", "sequence"):
        assert word in text
    for pair in PAIRS:
        parse_strategy(pair.strategy)
