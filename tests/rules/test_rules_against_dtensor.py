"""Every rule beside what PyTorch's DTensor would do with the same op.

A failure of the table means that a rule, a case or PyTorch changed. See what changed
(`git diff` after `python tests/rules/dtensor_tables.py`), explain what is new, and
commit it: docs/internals/rules-and-dtensor.md.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch.distributed.tensor.placement_types import Placement

from rules import dtensor_comparison as comparison
from rules import dtensor_oracle as oracle
from rules import dtensor_tables as tables
from rules.dtensor_comparison import LISTED, Cut, Table
from rules.rule_cases import Case

AGAIN = "run `python tests/rules/dtensor_tables.py`, look at the change and explain it"


@functools.cache
def kept() -> Table:
    return tables.kept()


def test_what_dtensor_is_asked_through_is_still_there() -> None:
    known = oracle.propagator()
    for name in (
        "op_strategy_funcs", "op_single_dim_strategy_funcs", "op_to_rules", "op_to_schema_info",
        "op_to_schema_info_for_single_dim_strategy",
    ):  # fmt: skip
        assert isinstance(getattr(known, name), dict), name
    assert callable(known.propagate_op_sharding_non_cached)
    assert callable(known.decomp_strategy._propagate_through_decomp)
    assert oracle.mesh().size() == oracle.PARTS
    assert oracle.registered("mm.default")
    assert not oracle.registered("block_diag.default")


@pytest.mark.parametrize("text", ["R", "S(1)", "S(0) in 3", "P(sum)", "P(max)"])
def test_placements_are_read_as_they_are_shown(text: str) -> None:
    placement = oracle.parsed(text)
    assert isinstance(placement, Placement)
    assert oracle.shown(placement) == text


def test_answers_that_are_known() -> None:
    """Of each kind, so that an oracle that always answers the same is found out."""
    x, y = torch.zeros(4, 6), torch.zeros(6, 8)

    def mm(*placements: str) -> oracle.Answer:
        return oracle.ask("mm.default", (x, y), {}, placements)

    assert mm("S(0)", "R") == oracle.Answer("accepts", ("S(0)",))
    assert mm("R", "S(1)") == oracle.Answer("accepts", ("S(1)",))
    assert mm("S(1)", "S(0)") == oracle.Answer("accepts", ("P(sum)",))
    assert mm("S(1)", "R").kind == "redistributes"
    assert mm("S(0)", "S(0)").kind == "redistributes"
    merged = oracle.ask("view.default", (torch.zeros(4, 6), [24]), {}, ["S(1)"])
    assert merged == oracle.Answer("accepts", ("S(0) in 4",))
    joined = oracle.ask("cat.default", ([x, x], 1), {}, ["S(0)", "S(0)"])
    assert joined == oracle.Answer("accepts", ("S(0)",))
    unknown = oracle.ask("block_diag.default", ([x, x],), {}, ["P(sum)", "P(sum)"])
    assert unknown.kind == "no strategy"
    # By its decomposition alone.
    assert not oracle.registered("dist.default")
    apart = oracle.ask("dist.default", (x, x), {}, ["S(0)", "S(0)"])
    assert apart == oracle.Answer("accepts", ("P(norm 2)",))


def test_numbers_tell_right_from_wrong() -> None:
    torch.manual_seed(0)
    case = Case("mean.default", (torch.randn(4, 6),))
    whole = (case.args[0].mean(),)
    assert comparison.numbers(case, whole, Cut(("S(0)",), ("P(avg)",))) == "equal"
    assert comparison.numbers(case, whole, Cut(("S(0)",), ("P(sum)",))) == "unequal"
    assert comparison.numbers(case, whole, Cut(("S(0)",), ("R",))) == "unequal"
    assert comparison.numbers(case, whole, Cut(("P(sum)",), ("P(sum)",))) == "equal"


@pytest.mark.parametrize("part", [4, pytest.param(1, marks=pytest.mark.all)])
def test_every_cut_of_every_case_comes_to_what_the_file_says(part: int) -> None:
    """Every cut of ours; what DTensor does beyond them, of a part of the ops."""
    expected, made = tables.without_explanations(kept()), comparison.found(part)
    expected["only DTensor"] = [
        entry for entry in expected["only DTensor"] if comparison.asked_in(part, entry["op"])
    ]
    version = torch.__version__.partition("+")[0]
    where = f"{AGAIN} (it was made with PyTorch {kept()['pytorch']}, this is {version})"
    changed = {
        op: (expected["ops"].get(op), made["ops"].get(op))
        for op in {*expected["ops"], *made["ops"]}
        if expected["ops"].get(op) != made["ops"].get(op)
    }
    assert not changed, f"(file, now) of {changed}: {where}"
    for name in LISTED:
        new = [entry for entry in made[name] if entry not in expected[name]]
        gone = [entry for entry in expected[name] if entry not in made[name]]
        assert not new, f"{name}: {new} is new: {where}"
        assert not gone, f"{name}: {gone} is gone: {where}"
    assert made == expected, where


def test_every_difference_is_explained() -> None:
    table = kept()
    texts = table["explanations"]
    rows = [row for kind in table["families"].values() for row in kind.values() if "why" in row]
    for item in (*rows, *(entry for name in LISTED for entry in table[name])):
        assert texts.get(item["why"], "").strip(), f"{item} has no explanation"
    unused = set(texts) - {
        item["why"] for item in (*rows, *(entry for name in LISTED for entry in table[name]))
    }
    assert not unused, f"explanations of nothing: {unused}"


def test_where_the_numbers_are_wrong_it_is_not_ours() -> None:
    """Entries whose DTensor placements give wrong numbers say that it is so."""
    table = kept()
    for name in LISTED:
        for entry in table[name]:
            wrong = entry["why"].startswith("DTensor is wrong")
            assert wrong == (entry["numbers"] == "unequal") or entry["numbers"] == "not run", entry


def test_the_page_has_the_tables_of_the_file() -> None:
    page = tables.PAGE.read_text()
    assert tables.filled(page, kept()) == page, AGAIN
