"""Scaled dot product attention, one rule for every backend's op."""

from __future__ import annotations

from meshwright.rules.build import einsum
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule

_MASK = "bhst"


def _mask_letters(rank: int) -> str:
    return _MASK[4 - rank :]


@rule("aten._scaled_dot_product_flash_attention_for_cpu.default")
def flash_for_cpu(call: Call) -> OpRule:
    """(query, key, value, dropout, is_causal, *, attn_mask, scale) -> (output, logsumexp).

    Query positions can be cut unless the causal mask counts them.
    """
    mask = [_mask_letters(len(shape)) for shape in call.shapes[3:]]
    fixed = "dte" + ("s" if call.arg(4, "is_causal", False) else "")
    if call.shapes[0][1] != call.shapes[1][1]:
        raise ValueError("grouped-query attention reaches this op with repeated heads")
    return einsum(
        ",".join(["bhsd", "bhtd", "bhte", *mask]) + "->bhse,bhs",
        call.shapes,
        call.results,
        fixed=fixed,
    )


@rule("aten._scaled_dot_product_flash_attention_for_cpu_backward.default")
def flash_for_cpu_backward(call: Call) -> OpRule:
    """(grad, query, key, value, output, logsumexp, dropout, is_causal, *, attn_mask, scale)."""
    mask = [_mask_letters(len(shape)) for shape in call.shapes[6:]]
    fixed = "dte" + ("s" if call.arg(7, "is_causal", False) else "")
    return einsum(
        ",".join(["bhse", "bhsd", "bhtd", "bhte", "bhse", "bhs", *mask]) + "->bhsd,bhtd,bhte",
        call.shapes,
        call.results,
        fixed=fixed,
    )
