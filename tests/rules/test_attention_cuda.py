"""Rules of the accelerators' attention ops, by PyTorch's schemas and shape functions.

The kernels need a device; their shapes don't. Every cut's local op is run on
meta tensors, and must give the local shapes that the rule says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.errors import RuleError
from meshwright.layout.types import Layout, local_shape
from meshwright.program.types import Argument, Op, Ref, Value
from meshwright.rules import rule_of
from meshwright.rules.attention_cuda import _DROPOUT, TARGETS
from meshwright.rules.types import FactorCut, OpRule

MESH = Mesh((("x", 2),))
B, H, S, D = 4, 8, 16, 32
HEADS = (8, 2, 1)  # of keys: as many as of queries, groups of four, one for all


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.float16)


def arguments(target: str, keys: int, bias: bool) -> tuple[Any, ...]:
    q, k, grad = meta(B, H, S, D), meta(B, keys, S, D), meta(B, H, S, D)
    lse = torch.empty((B, H, S), device="meta")
    state = torch.empty((), dtype=torch.int64, device="meta")
    mask = meta(B, H, S, S) if bias else None
    name = target.split(".")[1]
    return {
        "_scaled_dot_product_flash_attention": (q, k, k, 0.0, True),
        "_scaled_dot_product_flash_attention_backward": (
            grad, q, k, k, q, lse, None, None, S, S, 0.0, True, state, state,
        ),
        "_scaled_dot_product_efficient_attention": (q, k, k, mask, True, 0.0, True),
        "_scaled_dot_product_efficient_attention_backward": (
            grad, q, k, k, mask, q, lse, state, state, 0.0, [True, True, True, bias], False,
        ),
        "_scaled_dot_product_cudnn_attention": (q, k, k, mask, True, 0.0, True),
        "_scaled_dot_product_cudnn_attention_backward": (
            grad, q, k, k, q, lse.unsqueeze(-1), state, state, mask, None, None, S, S, 0.0, True,
        ),
        "_scaled_dot_product_fused_attention_overrideable": (q, k, k, mask, 0.0, True),
        "_scaled_dot_product_fused_attention_overrideable_backward": (
            grad, q, k, k, mask, [True, True, True, bias], q, lse, None, None, S, S, 0.0, True,
            state, state,
        ),
    }[name]  # fmt: skip


def run(target: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(getattr(torch.ops.aten, target.split(".")[1]).default(*args))


def as_op(target: str, args: tuple[Any, ...]) -> tuple[Op, dict[str, Value]]:
    values: dict[str, Value] = {}

    def declare(name: str, x: Tensor) -> str:
        values[name] = Value(name, tuple(x.shape), "float16", name)
        return name

    def argument(item: Any) -> Argument:
        if isinstance(item, Tensor):
            return Ref(declare(f"operand{len(values)}", item))
        return tuple(item) if isinstance(item, list) else item

    given = tuple(argument(item) for item in args)
    results = tuple(
        declare(f"result{k}", x) if isinstance(x, Tensor) else None
        for k, x in enumerate(run(target, args))
    )
    return Op("op", target, given, (), results, True, "forward"), values


def local(rule: OpRule, dims: Any, shape: tuple[int, ...], cut: FactorCut) -> tuple[int, ...]:
    split = rule.to_split(dims, cut)
    return local_shape(shape, Layout((("x", split),) if split else ()), MESH, {"x": 0})


@pytest.mark.parametrize("keys", HEADS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_cut_op_gives_the_local_shapes_of_its_rule(target: str, keys: int, bias: bool) -> None:
    if bias and "flash" in target:
        pytest.skip("flash attention takes no bias")
    if keys != H and "efficient" in target:
        pytest.skip("efficient attention takes repeated heads")
    args = arguments(target, keys, bias)
    op, values = as_op(target, args)
    rule = rule_of(op, values)
    names = [item.name for item in op.args if isinstance(item, Ref)]
    cut_something = 0
    for factor, about in enumerate(rule.factors):
        if about.size < 2:
            continue
        cut = FactorCut(factor, 1, about.size)
        shapes = iter(
            local(rule, dims, values[name].shape, cut)
            for name, dims in zip(names, rule.operands, strict=True)
        )
        parts = tuple(
            torch.empty(next(shapes), dtype=item.dtype, device="meta")
            if isinstance(item, Tensor) else item
            for item in args
        )  # fmt: skip
        for name, dims, made in zip(op.results, rule.results, run(target, parts), strict=True):
            assert (name is None) == (not isinstance(made, Tensor))
            if name is not None and dims is not None:
                assert tuple(made.shape) == local(rule, dims, values[name].shape, cut)
        cut_something += 1
    assert cut_something >= 2  # batch, and heads of one kind or the other


def test_a_group_of_queries_needs_one_head_of_keys() -> None:
    target = "aten._scaled_dot_product_flash_attention_backward.default"
    op, values = as_op(target, arguments(target, 2, bias=False))
    rule = rule_of(op, values)
    queries, keys = rule.operands[1][1], rule.operands[2][1]
    assert queries[:1] == keys
    group = queries[1]
    # Cutting queries within a group leaves terms of the keys' gradients to add.
    assert [rule.reduces(k, group) for k in range(3)] == [False, True, True]


@pytest.mark.parametrize("target", TARGETS)
def test_the_dropout_is_where_the_schema_has_it(target: str) -> None:
    schema = getattr(torch.ops.aten, target.split(".")[1]).default._schema
    position, name = _DROPOUT[target]
    assert schema.arguments[position].name == name


def test_dropout_inside_the_kernel_is_refused() -> None:
    target = "aten._scaled_dot_product_flash_attention.default"
    op, values = as_op(target, arguments(target, H, bias=False))
    with pytest.raises(RuleError, match="inside the kernel"):
        rule_of(replace(op, args=(*op.args[:3], 0.1, *op.args[4:])), values)
