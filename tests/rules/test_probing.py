"""Rules found by running ops: what holds is found, what does not is never taken."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from meshwright.errors import RuleError
from meshwright.lower.probe_cache import ProbeCache
from meshwright.lower.probing import Probing
from meshwright.program.types import Argument, Op, Ref, Source, Value
from meshwright.rules.registry import Call
from rules import probe_ops

WHERE = Source("model.layer", "user.py", 3)


def call_of(name: str, *args: Any) -> Call:
    """The call of one of the ops of `probe_ops`; one that raises is taken to keep its shape."""
    try:
        output = getattr(torch.ops.probed, name)(*args)
    except RuntimeError:
        output = args[0]
    outputs = output if isinstance(output, tuple) else (output,)
    values: dict[str, Value] = {}

    def value(stem: str, x: Tensor) -> str:
        made = f"{stem}{len(values)}"
        values[made] = Value(made, tuple(x.shape), str(x.dtype).removeprefix("torch."), made)
        return made

    def argument(item: Any) -> Argument:
        if isinstance(item, Tensor):
            return Ref(value("operand", item))
        return tuple(item) if isinstance(item, list) else item

    given = tuple(argument(item) for item in args)
    results = tuple(value("result", item) for item in outputs)
    op = Op(
        "op", f"probed.{name}.default", given, (), results, isinstance(output, tuple), "forward",
        WHERE,
    )  # fmt: skip
    shapes = tuple(values[name].shape for name in op.operands())
    return Call(op, shapes, tuple(values[name].shape for name in results), values)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape)


@pytest.mark.parametrize(
    ("name", "args", "found"),
    [
        ("scale", (rand(8, 16, 32), rand(32)), "[a,b,c],[c] -> [a,b,c]"),
        ("norm", (rand(8, 16, 32), rand(32), 1e-6), "[a,b,.],[.] -> [a,b,.]"),
        ("product", (rand(8, 16, 32), rand(64, 32)), "[a,b,c],[d,c] -> [a,b,d] (sum over c)"),
        ("peak", (rand(8, 16, 32),), "[a,b,c] -> [a,b] (max over c)"),
        ("square", (rand(8, 16), rand(16, 32)), "[a,b],[b,c] -> [a,c] (sum over b)"),
        ("square", (rand(8, 8), rand(8, 8)), "[a,b],[b,c] -> [a,c] (sum over b)"),
        ("heads", (rand(8, 16, 32), 4), "[a,b,.] -> [a,b,.]"),
        ("heads", (rand(4, 16, 32), 4), "[a,b,.] -> [a,b,.]"),
        ("flat", (rand(8, 16, 32),), "[a,b,c] -> [(a b),c]"),
        ("table", (rand(100, 32), torch.randint(100, (8, 16))), "[.,a],[b,c] -> [b,c,a]"),
        ("shaped", (rand(8, 16, 32), [8, 16, 32]), "[a,b,c] -> [a,b,c]"),
        ("shaped", (rand(8, 16, 32), [8, 16, 4, 8]), "[a,b,.] -> [a,b,.,.]"),
        ("gated", (rand(8, 16, 64),), "[a,b,.] -> [a,b,.]"),
        ("sorted_rows", (rand(8, 16),), "[a,.] -> [a,.]"),
        ("several", (rand(8, 16), rand(8, 16)), "[a,b],[a,b] -> [a,b],[b] (sum over a)"),
        ("attention", (rand(2, 4, 16, 8),) * 3, "[a,b,c,.],[a,b,.,.],[a,b,.,d] -> [a,b,c,d]"),
        ("attention", (rand(8, 8, 8, 8),) * 3, "[a,b,c,.],[a,b,.,.],[a,b,.,d] -> [a,b,c,d]"),
        ("moved", (rand(8, 8),), "[a,b] -> [b,a]"),
        ("moved", (rand(8, 1, 4),), "[a,.,b] -> [.,a,b]"),
        ("big_only", (rand(8, 256),), "[a,.] -> [a,.]"),
        ("convolved", (rand(4, 6, 20), rand(8, 6, 3)), "[a,b,.],[c,b,.] -> [a,c,.] (sum over b)"),
        (
            "scattered",
            (rand(40, 8), torch.randint(12, (40,)), 12),
            "[a,b],[a] -> [.,b] (sum over a)",
        ),
        ("some", (rand(8, 16),), "[a,.] -> [a]"),
        ("gram", (rand(8, 8),), "[.,a] -> [.,.] (sum over a)"),
    ],
)
def test_what_an_op_can_be_cut_along_is_found(name: str, args: tuple[Any, ...], found: str) -> None:
    told: list[str] = []
    call = call_of(name, *args)
    rule = Probing(told.append).probe(call)
    assert told == [f"probed probed.{name}: {found}"] == [rule.origin]
    for dims, shape in zip(rule.operands, call.shapes, strict=True):
        for factors, size in zip(dims, shape, strict=True):
            sizes = torch.tensor([rule.factors[factor].size for factor in factors])
            assert not factors or int(sizes.prod()) == size


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("tangled", (rand(8, 16),)),  # every element depends on all
        ("clipped", (rand(8, 16),)),  # elementwise as long as the norm is small
    ],
)
def test_what_can_be_cut_nowhere_is_said_to_run_whole(name: str, args: tuple[Any, ...]) -> None:
    rule = Probing().probe(call_of(name, *args))
    assert rule.origin == f"probed probed.{name}: can be cut nowhere"
    assert not any(factor.shardable for factor in rule.factors)


def test_arguments_that_hold_sizes_follow_the_cut() -> None:
    call = call_of("widened", rand(8, 16, 32), 64)
    rule = Probing().probe(call)
    width = rule.results[0][2][0]  # type: ignore[index]
    assert rule.factors[width].size == 64
    assert rule.localize is not None
    args = rule.localize(call.op, call.shapes, ((8, 16, 21),))
    assert args[1] == 21


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "no kernel for these sizes"),
        ("noise", "draws random numbers"),
        ("unstable", "gives other results when it is run again"),
    ],
)
def test_what_can_not_be_probed_is_named(name: str, message: str) -> None:
    with pytest.raises(RuleError, match=message) as caught:
        Probing().probe(call_of(name, rand(8, 4)))
    assert f"probed.{name}.default in model.layer (user.py:3)" in caught.value.message
    assert caught.value.remedy


def test_what_was_found_is_kept_on_disk_and_checked_when_read(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = call_of("scale", rand(8, 16, 32), rand(32))
    found = Probing(cache=ProbeCache(tmp_path)).probe(call)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["op"] == "probed.scale.default"

    # A second process reads it, for other sizes as well, and need not search.
    other = call_of("scale", rand(4, 10, 6), rand(6))
    monkeypatch.setattr(Probing, "_search", lambda self, call: pytest.fail("searched again"))
    assert Probing(cache=ProbeCache(tmp_path)).probe(call) == found
    assert Probing(cache=ProbeCache(tmp_path)).probe(other).operands == found.operands
    monkeypatch.undo()

    # One that is damaged, or no longer what the op does, is found anew.
    for content in (
        "{", "[]", '{"op": "probed.scale.default"}',
        json.dumps({**json.loads(file.read_text()), "operands": [[["a"], [], []], [["a"]]]}),
        json.dumps({**json.loads(file.read_text()), "operands": [[["c"], ["b"], ["a"]], [["c"]]]}),
    ):  # fmt: skip
        file.write_text(content)
        assert Probing(cache=ProbeCache(tmp_path)).probe(call) == found


def test_the_cache_is_where_the_environment_says(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHWRIGHT_PROBE_CACHE", "off")
    assert ProbeCache.from_environment() is None
    monkeypatch.setenv("MESHWRIGHT_PROBE_CACHE", str(tmp_path))
    assert ProbeCache.from_environment().folder == tmp_path  # type: ignore[union-attr]


def test_sizes_that_are_equal_or_not_are_kept_apart() -> None:
    alike, apart = call_of("moved", rand(8, 8)), call_of("moved", rand(8, 4))
    assert ProbeCache.key(alike) != ProbeCache.key(apart)
    assert ProbeCache.key(alike) == ProbeCache.key(call_of("moved", rand(6, 6)))
    double = replace(
        alike, values={k: replace(v, dtype="float64") for k, v in alike.values.items()}
    )
    assert ProbeCache.key(alike) != ProbeCache.key(double)


def test_the_ops_are_registered() -> None:
    assert probe_ops.LIBRARY == "probed"
