"""Every model under every strategy is what the page of the docs says it is: equal, or why not."""

from __future__ import annotations

from typing import Any

import pytest
from matrix import BY_KIND, EQUAL, PAIRS, ROWS, STRATEGIES, documented, outcome

DOCUMENTED = documented()
# Of each of these, so many a model run every time, in turn, and the others in the longer sweep.
ALIKE = (
    (1, ("data", "zero=1", "zero=2", "zero=3", "data=2,tensor=2")),
    (1, BY_KIND["sequence"]),
    (2, ("tensor", "data=2,tensor=2,zero=3", "auto")),
)


def often() -> list[Any]:
    found = []
    for turn, row in enumerate(ROWS):
        chosen = {
            group[(many * turn + k) % len(group)] for many, group in ALIKE for k in range(many)
        }
        for strategy in row.strategies:
            mine = strategy in chosen or not any(strategy in group for _, group in ALIKE)
            marks = () if mine else pytest.mark.all
            found.append(pytest.param(row.name, strategy, marks=marks))
    return found


def test_each_strategy_runs_often() -> None:
    each = [p.values for p in often() if not p.marks]
    for strategy in STRATEGIES:
        many = sum(strategy in row.strategies for row in ROWS)
        assert sum(found[1] == strategy for found in each) >= min(4, many), strategy
    assert {name for name, _ in each} == {row.name for row in ROWS}


@pytest.mark.parametrize(("name", "strategy"), often())
def test_a_pair_is_what_the_docs_say(name: str, strategy: str) -> None:
    assert outcome(name, strategy) == DOCUMENTED[name, strategy]


def test_the_page_has_every_pair_and_no_other() -> None:
    assert set(DOCUMENTED) == set(PAIRS)


def test_nearly_all_pairs_are_equal() -> None:
    assert not [pair for pair, said in DOCUMENTED.items() if said.startswith("differs")]
    equal = [pair for pair, said in DOCUMENTED.items() if said == EQUAL]
    assert len(equal) >= 0.95 * len(PAIRS)
    assert {(row.name, "auto") for row in ROWS} <= set(equal)
