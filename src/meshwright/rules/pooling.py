"""Pooling: batch and channels pass, spatial dims are cut with the rows that windows reach."""

from __future__ import annotations

from meshwright.program.types import Op
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule, Shape
from meshwright.rules.windows import Window, per_dim, spatial_rank, spatial_rule


def max_windows(op: Op, data: Shape) -> tuple[Window, ...]:
    """Windows of (input, kernel, stride, padding, dilation, …); backward after the gradient."""
    rank = spatial_rank(op.target)
    first = 2 if "_backward" in op.target else 1

    def numbers(position: int, default: int) -> tuple[int, ...]:
        given = op.args[position] if position < len(op.args) else ()
        given = given if isinstance(given, tuple) else (given,)
        return per_dim(tuple(int(n) for n in given if isinstance(n, int)), rank, default)

    kernel = numbers(first, 1)
    stride, padding, dilation = (
        numbers(first + k, default) for k, default in ((1, 0), (2, 0), (3, 1))
    )
    sizes = data[len(data) - rank :]
    return tuple(
        Window(sizes[k], kernel[k], stride[k] or kernel[k], padding[k], dilation[k])
        for k in range(rank)
    )


@rule("aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def max_pool(call: Call) -> OpRule:
    """(input, …) -> (output, indices), which count positions of the whole plane."""
    return spatial_rule(call, "i", "oo", "spatial_max_pool")


@rule(
    "aten.max_pool2d_with_indices_backward.default",
    "aten.max_pool3d_with_indices_backward.default",
)
def max_pool_backward(call: Call) -> OpRule:
    """(grad, input, …, indices)."""
    return spatial_rule(call, "oio", "i", "spatial_max_pool_backward")


@rule("aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def adaptive_max_pool(call: Call) -> OpRule:
    """(input, output_size) -> (output, indices)."""
    return spatial_rule(call, "i", "oo", "spatial_max_pool")


@rule("aten.adaptive_max_pool2d_backward.default", "aten.adaptive_max_pool3d_backward.default")
def adaptive_max_pool_backward(call: Call) -> OpRule:
    """(grad, input, indices)."""
    return spatial_rule(call, "oio", "i", "spatial_max_pool_backward")


@rule(
    "aten.avg_pool2d.default",
    "aten.avg_pool3d.default",
    "aten._adaptive_avg_pool2d.default",
    "aten._adaptive_avg_pool3d.default",
)
def average_pool(call: Call) -> OpRule:
    """A linear map of each spatial dim."""
    return spatial_rule(call, "i", "o", "spatial_resample", both=True)


@rule(
    "aten.avg_pool2d_backward.default",
    "aten.avg_pool3d_backward.default",
    "aten._adaptive_avg_pool2d_backward.default",
    "aten._adaptive_avg_pool3d_backward.default",
)
def average_pool_backward(call: Call) -> OpRule:
    """(grad, input, …)."""
    return spatial_rule(call, "oi", "i", "spatial_resample_backward", both=True)
