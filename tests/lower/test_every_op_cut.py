"""Every op of the table of rules, lowered and run cut along each of its factors.

Here the whole path runs: the choice of cuts, conversions, special lowerings,
draws by position, parts that hold nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pytest
import torch

from lower.one_op import run_cut
from meshwright.cluster.mesh import Mesh
from meshwright.lower.choose import allowed
from meshwright.lower.special_random import RANDOM
from meshwright.lower.special_table import SPECIAL
from meshwright.rules import FactorCut
from rules.brute_force import Recorded, cuts_of, record
from rules.rule_cases import Case, all_cases

UNDEFINED = frozenset({"empty.memory_format", "empty_like.default", "new_empty.default",
                       "new_empty_strided.default"})  # fmt: skip
CASES = [case for case in all_cases() if case.target not in UNDEFINED]
SPECIAL_CASES = [
    case
    for case in CASES
    if any(factor.special for factor in record(case).rule.factors)
    or f"aten.{case.target}" in RANDOM
]
ONE = {parts: Mesh((("x", parts),)) for parts in (2, 3, 4)}
SQUARE = Mesh((("x", 2), ("y", 2)))


def assert_as_whole(recorded: Recorded, mesh: Mesh, cuts: Mapping[str, FactorCut]) -> None:
    # Draws are by position and key: what one device draws is the whole.
    alone = Mesh((("x", 1),))
    random = recorded.op.target in RANDOM
    whole = run_cut(recorded, alone, {}) if random else recorded.whole
    for mine, theirs, dims in zip(
        run_cut(recorded, mesh, cuts), whole, recorded.rule.results, strict=True
    ):
        if mine is not None and theirs is not None and dims is not None:
            torch.testing.assert_close(
                mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True,
                msg=lambda text: f"{cuts} on {mesh.axes}: {text}",
            )  # fmt: skip


def whole_cuts(recorded: Recorded, special: bool) -> list[FactorCut]:
    return [cut for cut in cuts_of(recorded.rule, special) if cut.outer == 1]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_op_cut_over_one_axis(case: Case) -> None:
    recorded = record(case)
    for cut in whole_cuts(recorded, False):
        mesh = ONE[4 if recorded.rule.factors[cut.factor].size == 5 else 2]
        if allowed(recorded.rule, cut, mesh.size):
            assert_as_whole(recorded, mesh, {"x": cut})


@pytest.mark.parametrize(
    ("case", "parts"),
    # Three or four in turn, of which one divides unequally; two are beside another cut below.
    [
        pytest.param(
            case, parts, id=f"{case}-{parts}",
            marks=() if parts == 3 + turn % 2 else pytest.mark.all,
        )
        for turn, case in enumerate(SPECIAL_CASES)
        for parts in (2, 3, 4)
    ],
)  # fmt: skip
def test_a_special_lowering_over_one_axis(case: Case, parts: int) -> None:
    recorded = record(case)
    random = recorded.op.target in RANDOM
    for cut in cuts_of(recorded.rule, special=not random):
        if allowed(recorded.rule, cut, parts):
            assert_as_whole(recorded, ONE[parts], {"x": cut})


@pytest.mark.parametrize("case", SPECIAL_CASES, ids=str)
@pytest.mark.parametrize("turned", [False, pytest.param(True, marks=pytest.mark.all)])
def test_a_special_lowering_beside_another_cut(case: Case, turned: bool) -> None:
    """Two axes: on two factors, in one order and turned, and both on one."""
    recorded = record(case)
    plain, special = whole_cuts(recorded, False), whole_cuts(recorded, True)
    cuts = (*plain, *special)
    # Either of two comes first as often as the other.
    pairs = [
        pair if (k % 2 == 0) != turned else pair[::-1]
        for k, pair in enumerate(combinations(cuts, 2))
    ]
    for first, second in (*pairs, *(() if turned else zip(cuts, cuts, strict=True))):
        rule = recorded.rule
        fits = allowed(rule, first, 2) and allowed(rule, second, 2, {"x": first})
        if fits and (first in special or second in special or not special):
            assert_as_whole(recorded, SQUARE, {"x": first, "y": second})


def test_every_special_lowering_is_met() -> None:
    met = {
        factor.special for case in CASES for factor in record(case).rule.factors if factor.special
    }
    assert met == set(SPECIAL)
