"""`register_rule`: texts, what is refused, and that a rule is held against the op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import meshwright
from meshwright.errors import RuleError, UsageError
from meshwright.lower.probing import Probing
from meshwright.rules import user
from meshwright.rules.pattern import PatternError, parse_pattern
from meshwright.rules.registry import Call, rule_of
from meshwright.rules.types import OpRule
from rules.test_probing import call_of, rand


@pytest.fixture(autouse=True)
def _no_rules_stay() -> Iterator[None]:
    before = dict(user._RULES)
    yield
    user._RULES.clear()
    user._RULES.update(before)


def rule_for(call: Call) -> OpRule:
    return rule_of(call.op, call.values, Probing())


SCALE = call_of("scale", rand(8, 16, 32), rand(32))


@pytest.mark.parametrize("text", ["b s h, h -> b s h", "[b,s,h],[h] -> [b,s,h]"])
@pytest.mark.parametrize(
    "op",
    [
        "probed::scale", "probed.scale", "probed::scale.default", torch.ops.probed.scale,
        torch.ops.probed.scale.default,
    ],
)  # fmt: skip
def test_an_op_is_meant_by_any_of_its_names(op: Any, text: str) -> None:
    meshwright.register_rule(op, text)
    rule = rule_for(SCALE)
    assert rule.origin == f"rule registered: {text}"
    assert [factor.size for factor in rule.factors] == [8, 16, 32]
    assert rule.operands == (((0,), (1,), (2,)), ((2,),))


def test_an_op_of_custom_op_is_meant_itself() -> None:
    @torch.library.custom_op("probed::own", mutates_args=())
    def own(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    meshwright.register_rule(own, "a b -> a b")
    assert user.find("probed.own.default") is not None


@pytest.mark.parametrize(
    ("name", "args", "text", "options"),
    [
        ("peak", (rand(8, 16, 32),), "a b c -> a b", {"combine": {"c": "max"}}),
        ("norm", (rand(8, 16, 32), rand(32), 1e-6), "b s h, h -> b s h", {"fixed": ["h"]}),
        ("flat", (rand(8, 16, 32),), "b s h -> (b s) h", {}),
        ("widened", (rand(8, 16, 32), 64), "b s h -> b s w", {"sizes": {"width": "w"}}),
        ("shaped", (rand(8, 16, 32), [8, 16, 32]), "a b c -> a b c",
         {"sizes": {"size": ("a", "b", "c")}}),
        ("square", (rand(8, 16), rand(16, 4)), "a k, k b -> a b", {"linear": "unary"}),
        ("table", (rand(9, 4), torch.randint(9, (6,))), ". d, n -> n d", {}),
    ],
)  # fmt: skip
def test_a_rule_that_is_right_is_taken(
    name: str, args: tuple[Any, ...], text: str, options: dict[str, Any]
) -> None:
    meshwright.register_rule(f"probed::{name}", text, **options)
    assert rule_for(call_of(name, *args)).origin


@pytest.mark.parametrize(
    ("name", "args", "text", "options", "message"),
    [
        ("norm", (rand(8, 16, 32), rand(32), 1e-6), "b s h, h -> b s h", {}, "'h' is cut in 2"),
        ("peak", (rand(8, 16, 32),), "a b c -> a b", {}, "is not the sum of its parts"),
        ("moved", (rand(8, 8),), "a b -> a b", {}, "not cut along with it"),
        ("heads", (rand(8, 16, 32), 4), "a b c -> a b c", {}, "'c' is cut in 2"),
        ("widened", (rand(8, 16, 32), 64), "b s h -> b s w", {}, "'w' is cut"),
        ("scale", (rand(8, 16, 32), rand(32)), "b s h, h -> b s h", {"linear": "joint"}, "linear"),
        ("clipped", (rand(8, 16),), "a b -> a b", {}, "'a' is cut in 2"),
        ("broken", (rand(8, 16),), "a b -> a b", {}, "could not be checked"),
        ("some", (rand(8, 16),), "a b -> a", {"combine": {"b": "max"}}, "true and false"),
        ("scale", (rand(8, 16, 32), rand(32)), "b s h, s -> b s h", {}, "could not be checked"),
    ],
)  # fmt: skip
def test_a_rule_that_is_wrong_is_refused(
    name: str, args: tuple[Any, ...], text: str, options: dict[str, Any], message: str
) -> None:
    meshwright.register_rule(f"probed::{name}", text, **options)
    with pytest.raises(RuleError, match=message) as caught:
        rule_for(call_of(name, *args))
    assert f"probed.{name}.default in model.layer (user.py:3)" in caught.value.message
    assert caught.value.remedy


def test_an_unchecked_rule_is_taken_at_its_word() -> None:
    meshwright.register_rule("probed::broken", "a b -> a b", check=False)
    assert len(rule_for(call_of("broken", rand(8, 16))).factors) == 2


def test_an_op_can_be_run_whole() -> None:
    meshwright.register_rule("probed::broken", whole=True)
    rule = rule_for(call_of("broken", rand(8, 16)))
    assert not rule.factors
    assert "whole on every device" in rule.origin


@pytest.mark.parametrize(
    ("op", "text", "options", "message"),
    [
        ("probed::scale", None, {}, "takes a text, or whole=True"),
        ("probed::scale", "a -> a", {"whole": True}, "takes a text, or whole=True"),
        ("scale", "a -> a", {}, "no name of an op"),
        ("probed::scale.other", "a, b -> a", {}, "no overload 'other'"),
        ("aten::mm", "a b, b c -> a c", {}, "rule of Meshwright's own"),
        ("probed::scale", "a b", {}, "one '->'"),
        ("probed::scale", "a b -> a b", {}, "takes 2 tensors"),
        ("probed::scale", "a b, b -> a b, a", {}, "gives 1"),
        ("probed::scale", "a a, a -> a a", {}, "holds 'a' twice"),
        ("probed::scale", "[a,b, b -> a b", {}, "bracket is not closed"),
        ("probed::scale", "a b, b -> a b", {"fixed": ["z"]}, "no factor 'z'"),
        ("probed::scale", "a b, b -> a", {"combine": {"b": "mean"}}, "can't be combined"),
        ("probed::scale", "a b, b -> a b", {"sizes": {"width": "a"}}, "no argument 'width'"),
        ("probed::scale", "a b, b -> a b", {"linear": "yes"}, "linear is 'yes'"),
    ],
)
def test_nonsense_is_refused_at_once(
    op: str, text: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        meshwright.register_rule(op, text, **options)


def test_a_text_says_what_it_says() -> None:
    made = parse_pattern("[(b s),h],[.] -> [b,s,h],_", fixed=["h"])
    assert made.operands == ((("b", "s"), ("h",)), ((),))
    assert made.results == ((("b",), ("s",), ("h",)), None)
    assert made.text == "[(b s),h],[.] -> [b,s,h],_ (h whole)"
    with pytest.raises(PatternError, match="sizes of b and s"):
        parse_pattern("[(b s)] -> [(b s)]").rule(((6,),), ((6,),))
    with pytest.raises(PatternError, match="5 and 6"):
        parse_pattern("a, a -> a").rule(((5,), (6,)), ((5,),))
