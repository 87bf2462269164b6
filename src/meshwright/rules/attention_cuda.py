"""Scaled dot product attention on an accelerator: batch and heads are cut.

The kernels take fewer heads of keys and values than of queries (grouped-query
attention); a device that holds some groups' queries needs their keys alone.
These rules are checked against PyTorch's schemas and shape functions; they
have not run on a device.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshwright.errors import RuleError
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Dims, Factor, OpRule, Shape

_BATCH, _KEY_HEADS, _GROUP = range(3)
_SOLE = "."  # a dim that holds no factor


def _rule(call: Call, operands: Sequence[str], results: Sequence[str]) -> OpRule:
    """A rule from one letter a dim: b batch, q heads of queries, k heads of keys.

    A result without any letter is a kernel's own state, such as its random
    state: every device has its own, and nothing is summed.
    """
    if call.arg(*_DROPOUT[call.op.target]):
        raise RuleError(
            f"{call.op.target} in {call.op.source} drops out inside the kernel, so that its draws "
            "would depend on the plan.",
            "Apply dropout to the attention's weights outside, or set the dropout to 0.",
        )
    batch, heads = next(s for s, n in zip(call.shapes, operands, strict=True) if n[:2] == "bq")[:2]
    keys = next(s for s, n in zip(call.shapes, operands, strict=True) if n[:2] == "bk")[1]
    if heads % keys:
        raise ValueError(f"{heads} heads of queries for {keys} of keys")
    factors = tuple(Factor(size, combine="sum") for size in (batch, keys, heads // keys))
    parts = {"b": (_BATCH,), "k": (_KEY_HEADS,), "q": (_KEY_HEADS, _GROUP)}

    def dims(names: str, shape: Shape) -> Dims:
        return tuple(
            tuple(f for f in parts.get(name, ()) if factors[f].size != 1) if size != 1 else ()
            for name, size in zip(names.ljust(len(shape), _SOLE), shape, strict=True)
        )

    made = tuple(
        None if shape is None else dims(names, shape)
        for names, shape in zip(results, call.results, strict=True)
    )
    state = frozenset(
        (position, factor)
        for position, names in enumerate(results)
        if not names.strip(_SOLE)
        for factor in range(len(factors))
    )
    return OpRule(
        factors,
        tuple(dims(names, shape) for names, shape in zip(operands, call.shapes, strict=True)),
        made,
        unreduced=state,
    )


# Position and name of the dropout among an op's arguments.
_DROPOUT: dict[str, tuple[int, str]] = {
    "aten._scaled_dot_product_flash_attention.default": (3, "dropout_p"),
    "aten._scaled_dot_product_flash_attention_backward.default": (10, "dropout_p"),
    "aten._scaled_dot_product_efficient_attention.default": (5, "dropout_p"),
    "aten._scaled_dot_product_efficient_attention_backward.default": (9, "dropout_p"),
    "aten._scaled_dot_product_cudnn_attention.default": (5, "dropout_p"),
    "aten._scaled_dot_product_cudnn_attention_backward.default": (13, "dropout_p"),
    "aten._scaled_dot_product_fused_attention_overrideable.default": (4, "dropout_p"),
    "aten._scaled_dot_product_fused_attention_overrideable_backward.default": (12, "dropout_p"),
}
TARGETS = tuple(_DROPOUT)
_BIAS = "bq"


@rule(
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten._scaled_dot_product_fused_attention_overrideable.default",
)
def forward(call: Call) -> OpRule:
    """(query [B, H, S, D], key, value, bias?, …) -> (output, logsumexp [B, H, …], states…)."""
    bias = [_BIAS] * (len(call.shapes) - 3)
    states = [""] * (len(call.results) - 2)
    return _rule(call, ["bq", "bk", "bk", *bias], ["bq", "bq", *states])


@rule(
    "aten._scaled_dot_product_flash_attention_backward.default",
    "aten._scaled_dot_product_efficient_attention_backward.default",
    "aten._scaled_dot_product_cudnn_attention_backward.default",
    "aten._scaled_dot_product_fused_attention_overrideable_backward.default",
)
def backward(call: Call) -> OpRule:
    """(grad, query, key, value, bias?, output, logsumexp, states…) -> gradients of q, k, v, bias.

    The gradient of a bias that is the same for all of a batch or all heads sums over them.
    """
    names = _backward_operands(call)
    bias = ["bq"] if len(call.results) == 4 else []
    return _rule(call, names, ["bq", "bk", "bk", *bias])


def _backward_operands(call: Call) -> list[str]:
    """Letters of the operands, by where the schema puts output and logsumexp."""
    target = call.op.target
    if "flash" in target:
        lead = ["bq", "bq", "bk", "bk", "bq", "bq"]
    elif "efficient" in target or "overrideable" in target:
        lead = ["bq", "bq", "bk", "bk"] + ["bq"] * (call.has(4, "attn_bias") + 2)
    else:
        lead = ["bq", "bq", "bk", "bk", "bq", "bq"]
        # Output and logsumexp, the random state, then the bias.
        return (
            lead
            + ["", ""]
            + ["bq"] * call.has(8, "attn_bias")
            + [""] * (len(call.shapes) - 8 - call.has(8, "attn_bias"))
        )
    return lead + [""] * (len(call.shapes) - len(lead))
