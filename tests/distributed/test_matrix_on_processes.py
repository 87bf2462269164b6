"""Pairs of the matrix of `tests/equivalence` on four real gloo processes.

In `make test` every strategy once, by as many models; all pairs in `make test-all`.
The collectives that ran are the ones that the plan lists. The processes are forks of the
one that made the plans, so that a model is captured once and not by each of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[1] / "equivalence"))

from matrix import BY_NAME, EQUAL, ROWS, STRATEGIES, documented, model
from planned import run_plans

from distributed import fork_processes
from meshwright.api import plan

Pair = tuple[str, str]
EQUAL_PAIRS = [pair for pair, said in documented().items() if said == EQUAL]


def every_strategy_once() -> list[Pair]:
    """Each strategy by a model of its own: the one that is left with the fewest others."""
    left = {row.name: row.strategies for row in ROWS}
    chosen: list[Pair] = []
    # What few models have is given out first.
    for strategy in sorted(STRATEGIES, key=lambda s: sum(s in row.strategies for row in ROWS)):
        options = [name for name in left if (name, strategy) in EQUAL_PAIRS]
        options = options or [name for name, each in EQUAL_PAIRS if each == strategy]
        name = min(options, key=lambda name: len(left.get(name, ())))
        left.pop(name, None)
        chosen.append((name, strategy))
    return chosen


def run_pairs(payload: dict[str, Any]) -> list[dict[str, Any]] | None:
    return run_plans(payload, model)


def check(pairs: list[Pair], run_dir: Path) -> None:
    plans = [
        plan(BY_NAME[name].make(), "local:4", strategy, model=model(name))
        for name, strategy in pairs
    ]
    payload = {
        "plans": [
            (name, made.model_dump(mode="json"))
            for (name, _), made in zip(pairs, plans, strict=True)
        ]
    }
    seen = fork_processes(run_pairs, 4, run_dir, payload, timeout_s=250)[0]
    assert len(seen) == len(pairs)
    for pair, made, item in zip(pairs, plans, seen, strict=True):
        assert item["equal"], (pair, item["seen"])
        planned = [c.model_dump() for c in made.predicted.collectives]
        assert item["executed"] == planned, pair


def test_the_part_has_every_strategy_and_many_models() -> None:
    pairs = every_strategy_once()
    assert {strategy for _, strategy in pairs} == set(STRATEGIES)
    assert len({name for name, _ in pairs}) >= 0.8 * len(pairs)


@pytest.mark.processes
@pytest.mark.parametrize(("name", "strategy"), every_strategy_once())
def test_every_strategy_once(name: str, strategy: str, run_dir: Path) -> None:
    check([(name, strategy)], run_dir)


@pytest.mark.all
@pytest.mark.processes
@pytest.mark.parametrize("name", BY_NAME)
def test_every_pair(name: str, run_dir: Path) -> None:
    check([pair for pair in EQUAL_PAIRS if pair[0] == name], run_dir)
