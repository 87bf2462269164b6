"""Arithmetic of the matmul-like ops, a multiply and an add counted as two FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from meshwright.cost.families import family_of
from meshwright.cost.opaque import counted
from meshwright.program.types import Op, Value

# Which positional argument says that attention is causal.
_CAUSAL_AT: Mapping[str, int] = {
    "scaled_dot_product_attention": 5,
    "_scaled_dot_product_flash_attention": 4,
    "_scaled_dot_product_flash_attention_backward": 11,
    "_scaled_dot_product_flash_attention_for_cpu": 4,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 7,
    "_scaled_dot_product_efficient_attention": 6,
    "_scaled_dot_product_efficient_attention_backward": 11,
    "_scaled_dot_product_cudnn_attention": 6,
    "_scaled_dot_product_cudnn_attention_backward": 14,
    "_scaled_dot_product_attention_math": 5,
    "_flash_attention_forward": 8,
    "_flash_attention_backward": 11,
}

# Forward does two matmuls; backward does those two again, and three more.
_ATTENTION_BACKWARD = 2.5


def op_flops(op: Op, values: Mapping[str, Value]) -> float:
    """FLOPs of one op; 0 for every op that memory or launches bound."""
    family = family_of(op.target)
    name = op.target.split(".")[1]
    if family == "matmul":
        return _matmul(name, op, values)
    if family == "convolution":
        return _convolution(name, op, values)
    if family == "attention":
        return _attention(op, values)
    if family == "opaque":
        return counted(op)[0]
    if family == "recurrent":
        return _recurrent(name, op, values)
    return 0.0


def _matmul(name: str, op: Op, values: Mapping[str, Value]) -> float:
    operands = [values[operand] for operand in op.operands()]
    result = next((values[item] for item in op.results if item is not None), None)
    if result is None:
        return 0.0
    if name == "linear_backward":
        # (input, grad_output, weight): one product for each gradient asked for.
        products = sum(item is not None for item in op.results[:2])
        return 2.0 * products * operands[1].numel * operands[0].shape[-1]
    # A leading summand, as in addmm(bias, a, b).
    left = operands[1] if name.startswith(("add", "_addmm", "baddbmm")) else operands[0]
    if name in ("ger", "outer", "addr"):
        return 2.0 * result.numel
    depth = left.shape[-1] if left.shape else 1
    if name == "_grouped_mm" and len(result.shape) == 3 and len(left.shape) == 2:
        # The groups divide the reduction between them.
        return 2.0 * result.numel * depth / max(result.shape[0], 1)
    if name == "addbmm":
        depth *= left.shape[0]
    return 2.0 * result.numel * depth


def _convolution(name: str, op: Op, values: Mapping[str, Value]) -> float:
    operands = [values[operand] for operand in op.operands()]
    backward = name == "convolution_backward"
    if backward:
        output, source, weight = operands[0], operands[1], operands[2]
        products = sum(item is not None for item in op.results[:2])
    else:
        source, weight = operands[0], operands[1]
        output = next(values[item] for item in op.results if item is not None)
        products = 1
    at = 7 if backward else 6
    if name in ("convolution", "_convolution", "convolution_backward", "convolution_overrideable"):
        transposed = len(op.args) > at and op.args[at] is True
    else:
        transposed = name.startswith("conv_transpose")
    # Each output element (each input element, transposed) meets one filter.
    filters = source.numel if transposed else output.numel
    return 2.0 * products * filters * weight.numel / max(weight.shape[0], 1)


class Attention(NamedTuple):
    """Sizes of one call: `heads` counts all examples' heads."""

    heads: int
    queries: int
    keys: int
    width: int  # of a query and of a value, together
    causal: bool
    backward: bool


def attention_of(op: Op, values: Mapping[str, Value]) -> Attention:
    name = op.target.split(".")[1]
    operands = [values[operand] for operand in op.operands()]
    backward = name.endswith("_backward")
    query, key = operands[1:3] if backward else operands[:2]
    if name.startswith("attention_step"):  # keys and values come side by side
        width = key.shape[-1]
    else:
        width = query.shape[-1] + operands[3 if backward else 2].shape[-1]
    # The inner ops take [B, S, H, D], the public ones [B, H, S, D].
    if name.startswith(("_flash_attention", "_efficient_attention")) and len(key.shape) == 4:
        heads, queries, keys = query.shape[0] * query.shape[2], query.shape[1], key.shape[1]
    else:
        heads, queries, keys = prod(query.shape[:-2]), query.shape[-2], key.shape[-2]
    return Attention(heads, queries, keys, width, is_causal(op), backward)


def _attention(op: Op, values: Mapping[str, Value]) -> float:
    sizes = attention_of(op, values)
    flops = 2.0 * sizes.heads * sizes.queries * sizes.keys * sizes.width
    if sizes.causal:
        flops /= 2  # the kernels skip the blocks above the diagonal
    return flops * (_ATTENTION_BACKWARD if sizes.backward else 1.0)


def is_causal(op: Op) -> bool:
    """Whether an attention op was told to mask what lies above the diagonal."""
    at = _CAUSAL_AT.get(op.target.split(".")[1])
    given = at is not None and len(op.args) > at and op.args[at] is True
    return given or dict(op.kwargs).get("is_causal") is True


def _recurrent(name: str, op: Op, values: Mapping[str, Value]) -> float:
    operands = [values[operand] for operand in op.operands()]
    source = operands[0]
    steps = source.numel / max(source.shape[-1], 1) if source.shape else 0.0
    weights = sum(item.numel for item in operands[1:] if len(item.shape) == 2)
    return 2.0 * steps * weights * (2.0 if name.endswith("_backward") else 1.0)
