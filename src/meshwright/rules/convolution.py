"""Convolution and pooling: batch, channels and groups; spatial dims stay whole."""

from __future__ import annotations

from meshwright.program.types import Argument, Op
from meshwright.rules.build import einsum
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Dims, Factor, Localize, OpRule, Shape

_N, _G, _C, _O = range(4)


def _channel_factors(
    data: Shape, weight: Shape, groups: int, transposed: bool, bias: bool
) -> tuple[tuple[Factor, ...], Dims, Dims, tuple[int, ...]]:
    """Factors batch, group, in and out within a group; dims of input, weight; out channels."""
    inside = data[1] // groups
    outside = weight[1] if transposed else weight[0] // groups
    factors = (
        Factor(data[0]),
        Factor(groups),
        Factor(inside, combine="sum", special="bias_once" if bias else None),
        Factor(outside),
    )

    def keep(*numbers: int) -> tuple[int, ...]:
        return tuple(number for number in numbers if factors[number].size != 1)

    spatial: Dims = ((),) * (len(data) - 2)
    left = (keep(_N), keep(_G, _C), *spatial)
    kernel = (
        (keep(_G, _C), keep(_O), *spatial) if transposed else (keep(_G, _O), keep(_C), *spatial)
    )
    return factors, left, kernel, keep(_G, _O)


def _local_groups(call: Call, position: int) -> int:
    return call.integer(position, "groups")


@rule("aten.convolution.default")
def convolution(call: Call) -> OpRule:
    """(input, weight, bias?, stride, padding, dilation, transposed, output_padding, groups)."""
    groups, transposed = call.integer(8, "groups"), bool(call.arg(6, "transposed"))
    bias = call.has(2, "bias")
    factors, data, kernel, out = _channel_factors(
        call.shapes[0], call.shapes[1], groups, transposed, bias
    )
    operands = (data, kernel, (out,)) if bias else (data, kernel)
    result = (data[0], out, *data[2:])
    within = call.shapes[0][1] // groups

    def localize(
        op: Op, shapes: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        # Either whole groups are cut, or there is one group whose channels are.
        local = max(1, shapes[0][1] // within) if groups > 1 else 1
        return (*op.args[:8], local)

    return OpRule(_one_cut_with_groups(factors, groups), operands, (result,), localize=localize)


def _one_cut_with_groups(factors: tuple[Factor, ...], groups: int) -> tuple[Factor, ...]:
    """Inside several groups neither in nor out channels can be cut: a group is whole."""
    if groups == 1:
        return factors
    return tuple(
        Factor(factor.size, factor.combine, shardable=index in (_N, _G), special=factor.special)
        for index, factor in enumerate(factors)
    )


@rule("aten.convolution_backward.default")
def convolution_backward(call: Call) -> OpRule:
    """(grad, input, weight, bias_sizes, stride, …, transposed, output_padding, groups, mask).

    The gradient of the input sums over output channels, those of weight and
    bias over the batch; the bias has nothing to do with input channels.
    """
    groups, transposed = call.integer(9, "groups"), bool(call.arg(7, "transposed"))
    factors, data, kernel, out = _channel_factors(
        call.shapes[1], call.shapes[2], groups, transposed, bias=False
    )
    gradient = (data[0], out, *data[2:])
    within = call.shapes[1][1] // groups
    factors = tuple(Factor(factor.size, "sum") for factor in factors)

    def localize(
        op: Op, shapes: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        local = max(1, shapes[1][1] // within) if groups > 1 else 1
        sizes = None if op.args[3] is None else (shapes[0][1],)
        return (*op.args[:3], sizes, *op.args[4:9], local, *op.args[10:])

    return OpRule(
        _one_cut_with_groups(factors, groups),
        (gradient, data, kernel),
        (data, kernel, (out,)),
        localize=localize,
        unreduced=frozenset({(2, _C)}),
    )


_POOLS = {3: "nc.", 4: "nc..", 5: "nc..."}


@rule(
    "aten.max_pool2d_with_indices.default",
    "aten.max_pool3d_with_indices.default",
    "aten.avg_pool2d.default",
    "aten.avg_pool3d.default",
    "aten._adaptive_avg_pool2d.default",
    "aten._adaptive_avg_pool3d.default",
    "aten.max_pool2d_with_indices_backward.default",
    "aten.max_pool3d_with_indices_backward.default",
    "aten.avg_pool2d_backward.default",
    "aten.avg_pool3d_backward.default",
    "aten._adaptive_avg_pool2d_backward.default",
    "aten._adaptive_avg_pool3d_backward.default",
)
def pool(call: Call) -> OpRule:
    """Batch and channels pass; every tensor here has the same leading dims."""
    return einsum(
        ",".join(_POOLS[len(shape)] for shape in call.shapes)
        + "->"
        + ",".join(_POOLS[len(shape)] for shape in call.results if shape is not None),
        call.shapes,
        call.results,
    )


def _input_size(position: int) -> Localize:
    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        return (*op.args[:position], results[0], *op.args[position + 1 :])

    return localize


_UPSAMPLES = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
)  # fmt: skip


@rule(*(f"aten.{name}.default" for name in _UPSAMPLES))
def upsample(call: Call) -> OpRule:
    """(input, output_size of the spatial dims, …)."""
    names = _POOLS[len(call.shapes[0])]
    return einsum(f"{names}->{names}", call.shapes, call.results)


@rule(*(f"aten.{name}_backward.default" for name in _UPSAMPLES))
def upsample_backward(call: Call) -> OpRule:
    """(grad, output_size, input_size of all dims, …)."""
    names = _POOLS[len(call.shapes[0])]
    return einsum(f"{names}->{names}", call.shapes, call.results, localize=_input_size(2))
