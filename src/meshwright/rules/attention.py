"""Scaled dot product attention on a CPU."""

from __future__ import annotations

from meshwright.rules.build import einsum
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule, Shape


def _letters(call: Call, query: Shape, key: Shape, masks: tuple[Shape, ...]) -> tuple[str, str]:
    """Letters of keys' positions, and of a mask [B, H, S, T] or its last dims.

    Where there are as many keys as queries, both are cut alike and a lowering
    brings every query the keys it sees; elsewhere keys stay whole, and queries too
    where a causal mask counts them. A mask's columns stay whole.
    """
    if query[1] != key[1]:
        raise ValueError("grouped-query attention reaches this op with repeated heads")
    same = query[2] == key[2]
    return "s" if same else "t", "".join(
        "," + ("bhs." if same else "bhst")[4 - len(shape) :] for shape in masks
    )


@rule("aten._scaled_dot_product_flash_attention_for_cpu.default")
def flash_for_cpu(call: Call) -> OpRule:
    """(query, key, value, dropout, is_causal, *, attn_mask, scale) -> (output, logsumexp)."""
    query, key = call.shapes[:2]
    t, mask = _letters(call, query, key, call.shapes[3:])
    fixed = "dte" + ("s" if t == "t" and call.arg(4, "is_causal", False) else "")
    return einsum(
        f"bhsd,bh{t}d,bh{t}e{mask}->bhse,bhs",
        call.shapes,
        call.results,
        fixed=fixed,
        special={"s": "attention"} if t == "s" else None,
    )


@rule("aten._scaled_dot_product_flash_attention_for_cpu_backward.default")
def flash_for_cpu_backward(call: Call) -> OpRule:
    """(grad, query, key, value, output, logsumexp, dropout, is_causal, *, attn_mask, scale)."""
    query, key = call.shapes[1:3]
    t, mask = _letters(call, query, key, call.shapes[6:])
    fixed = "dte" + ("s" if t == "t" and call.arg(7, "is_causal", False) else "")
    return einsum(
        f"bhse,bhsd,bh{t}d,bh{t}e,bhse,bhs{mask}->bhsd,bh{t}d,bh{t}e",
        call.shapes,
        call.results,
        fixed=fixed,
        special={"s": "attention_backward"} if t == "s" else None,
    )
