"""Convolution and its gradients: batch, channels, groups, spatial dims with neighbours."""

from __future__ import annotations

from meshwright.program.types import Argument, Op
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Dims, Factor, OpRule, Shape
from meshwright.rules.windows import Window, per_dim, spatial_factors

_N, _G, _C, _O = range(4)


def windows(op: Op, data: Shape, kernel: Shape) -> tuple[Window, ...]:
    """The window of each spatial dim of a convolution, forward or backward.

    `data` and `kernel` are shapes of the whole input and weight.
    """
    first = 4 if op.target.startswith("aten.convolution_backward") else 3
    rank = len(data) - 2

    def numbers(position: int, default: int) -> tuple[int, ...]:
        given = op.args[position]
        assert isinstance(given, tuple)
        return per_dim(tuple(int(n) for n in given if isinstance(n, int)), rank, default)

    stride, padding, dilation = numbers(first, 1), numbers(first + 1, 0), numbers(first + 2, 1)
    transposed = bool(op.args[first + 3])
    return tuple(
        Window(data[k + 2], kernel[k + 2], stride[k], padding[k], dilation[k], transposed)
        for k in range(rank)
    )


def _factors(
    call: Call, data: Shape, weight: Shape, made: Shape, groups: int, transposed: bool, special: str
) -> tuple[tuple[Factor, ...], Dims, Dims, Dims, tuple[int, ...]]:
    """Factors batch, group, in, out, spatial; dims of input, weight, output; out channels."""
    inside = data[1] // groups
    outside = weight[1] if transposed else weight[0] // groups
    bias = not special.endswith("_backward") and call.has(2, "bias")
    channels: tuple[Factor, ...] = (
        Factor(data[0]),
        Factor(groups),
        Factor(inside, combine="sum", special="bias_once" if bias else None),
        Factor(outside),
    )
    if groups > 1:
        # Inside several groups neither in nor out channels can be cut: a group is whole.
        channels = tuple(
            Factor(factor.size, factor.combine, index in (_N, _G), factor.special)
            for index, factor in enumerate(channels)
        )

    def keep(*numbers: int) -> tuple[int, ...]:
        return tuple(number for number in numbers if channels[number].size != 1)

    found = windows(call.op, data, weight)
    # A window of one row that meets every row moves nothing between rows.
    plain = frozenset(
        position
        for position, window in enumerate(found)
        if (window.kernel, window.stride, window.padding) == (1, 1, 0)
    )
    spatial, inner, outer = spatial_factors(
        len(channels), tuple(zip(data[2:], made[2:], strict=True)), special, plain=plain
    )
    whole: Dims = ((),) * (len(data) - 2)
    kernel = (keep(_G, _C), keep(_O)) if transposed else (keep(_G, _O), keep(_C))
    return (
        (*channels, *spatial),
        (keep(_N), keep(_G, _C), *inner),
        (*kernel, *whole),
        (keep(_N), keep(_G, _O), *outer),
        keep(_G, _O),
    )


@rule("aten.convolution.default")
def convolution(call: Call) -> OpRule:
    """(input, weight, bias?, stride, padding, dilation, transposed, output_padding, groups)."""
    groups, transposed = call.integer(8, "groups"), bool(call.arg(6, "transposed"))
    made = call.results[0]
    assert made is not None
    factors, data, kernel, result, out = _factors(
        call, call.shapes[0], call.shapes[1], made, groups, transposed, "spatial_convolution"
    )
    operands = (data, kernel, (out,)) if call.has(2, "bias") else (data, kernel)
    within = call.shapes[0][1] // groups

    def localize(
        op: Op, shapes: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        # Either whole groups are cut, or there is one group whose channels are.
        local = max(1, shapes[0][1] // within) if groups > 1 else 1
        return (*op.args[:8], local)

    return OpRule(factors, operands, (result,), localize=localize)


@rule("aten.convolution_backward.default")
def convolution_backward(call: Call) -> OpRule:
    """(grad, input, weight, bias_sizes, stride, …, transposed, output_padding, groups, mask).

    The gradient of the input sums over output channels, those of weight and
    bias over the batch and the spatial dims; the bias has nothing to do with
    input channels.
    """
    groups, transposed = call.integer(9, "groups"), bool(call.arg(7, "transposed"))
    factors, data, kernel, gradient, out = _factors(
        call, call.shapes[1], call.shapes[2], call.shapes[0], groups, transposed,
        "spatial_convolution_backward",
    )  # fmt: skip
    within = call.shapes[1][1] // groups
    factors = tuple(
        Factor(factor.size, "sum", factor.shardable, factor.special, factor.ranged)
        for factor in factors
    )

    def localize(
        op: Op, shapes: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        local = max(1, shapes[1][1] // within) if groups > 1 else 1
        sizes = None if op.args[3] is None else (shapes[0][1],)
        return (*op.args[:3], sizes, *op.args[4:9], local, *op.args[10:])

    return OpRule(
        factors,
        (gradient, data, kernel),
        (data, kernel, (out,)),
        localize=localize,
        unreduced=frozenset({(2, _C)}),
    )
