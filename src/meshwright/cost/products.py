"""Matrix products that the matmul-like ops come down to."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from meshwright.cost.families import family_of
from meshwright.program.types import Op, Value


class Product(NamedTuple):
    """`batch` products of [m, k] by [k, n]."""

    m: int
    n: int
    k: int
    batch: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k * self.batch


def products_of(op: Op, values: Mapping[str, Value]) -> tuple[Product, ...]:
    """The products of a matmul or convolution; empty where nothing is multiplied.

    A convolution is the product that implicit GEMM makes of it (Chetlur et al.
    2014): positions by output channels by filter size, once for each group.
    """
    name = op.target.split(".")[1]
    operands = [values[operand] for operand in op.operands()]
    if family_of(op.target) == "convolution":
        return _convolution(name, op, operands, values)
    result = next((values[item] for item in op.results if item is not None), None)
    if result is None or not operands:
        return ()
    if name == "linear_backward":
        source, gradient = operands[0], operands[1]
        tokens = gradient.numel // max(gradient.shape[-1], 1)
        wide, narrow = gradient.shape[-1], source.shape[-1]
        both = (Product(tokens, narrow, wide), Product(wide, narrow, tokens))
        return tuple(item for item, made in zip(both, op.results, strict=False) if made is not None)
    added = name.startswith(("add", "_addmm", "baddbmm"))
    left = operands[1] if added else operands[0]
    right = operands[2] if added and len(operands) > 2 else operands[min(1, len(operands) - 1)]
    shape = result.shape
    if name in ("ger", "outer", "addr"):
        return (Product(shape[0], shape[1], 1),)
    if name in ("dot", "vdot"):
        return (Product(1, 1, left.numel),)
    depth = left.shape[-1] if left.shape else 1
    if name == "_grouped_mm":
        return _grouped(left, right, result)
    if name == "addbmm":
        return (Product(shape[0], shape[1], depth * left.shape[0]),)
    if name in ("mv", "addmv"):
        return (Product(left.shape[0], 1, depth),)
    if name == "linear":
        return (Product(result.numel // max(shape[-1], 1) if shape else 1, _last(shape), depth),)
    if name in ("bmm", "baddbmm") or (name == "matmul" and len(right.shape) > 2):
        if len(shape) < 2:
            return (Product(1, result.numel, depth),)
        return (Product(shape[-2], shape[-1], depth, prod(shape[:-2])),)
    columns = _last(shape)
    return (Product(result.numel // max(columns, 1), columns, depth),)


def _last(shape: tuple[int, ...]) -> int:
    return shape[-1] if shape else 1


def _grouped(left: Value, right: Value, result: Value) -> tuple[Product, ...]:
    """Groups of equal size stand for groups of any size."""
    if len(result.shape) == 3:  # the groups divide the reduction between them
        groups, rows, columns = result.shape
        depth = left.shape[-1] if len(left.shape) == 3 else max(left.shape[-1] // groups, 1)
        return (Product(rows, columns, depth, groups),)
    groups = right.shape[0] if len(right.shape) == 3 else max(left.shape[0], 1)
    rows, columns = result.shape[-2], result.shape[-1]
    if len(left.shape) == 3:  # the groups divide the columns
        return (Product(rows, max(columns // groups, 1), left.shape[-1], groups),)
    return (Product(max(rows // groups, 1), columns, left.shape[-1], groups),)


# Where a convolution's arguments say that it is transposed, and in how many groups.
_TRANSPOSED_AT, _GROUPS_AT = 6, 8


def _convolution(
    name: str, op: Op, operands: list[Value], values: Mapping[str, Value]
) -> tuple[Product, ...]:
    backward = name == "convolution_backward"
    if backward:
        output, source, weight = operands[0], operands[1], operands[2]
        made = [item is not None for item in op.results[:2]]
    else:
        source, weight = operands[0], operands[1]
        output = next(values[item] for item in op.results if item is not None)
        made = [True]
    shift = 1 if backward else 0
    transposed, groups = name.startswith("conv_transpose"), 1
    if name.endswith("convolution") or name in ("convolution_backward", "convolution_overrideable"):
        if len(op.args) > _TRANSPOSED_AT + shift:
            transposed = op.args[_TRANSPOSED_AT + shift] is True
        if len(op.args) > _GROUPS_AT + shift:
            given = op.args[_GROUPS_AT + shift]
            groups = given if isinstance(given, int) and given > 0 else 1
    if transposed:  # its forward is a plain one's gradient
        source, output = output, source
    channels = weight.shape[0] // groups
    depth = prod(weight.shape[1:])
    positions = output.numel // max(weight.shape[0], 1)
    plain = Product(max(positions, 1), max(channels, 1), max(depth, 1), groups)
    if not backward:
        return (plain,)
    of_source = Product(plain.m, plain.k, plain.n, groups)
    of_weight = Product(plain.n, plain.k, plain.m, groups)
    both = (of_source, of_weight)
    return tuple(item for item, wanted in zip(both, made, strict=False) if wanted)
