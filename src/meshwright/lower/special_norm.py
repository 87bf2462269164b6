"""Batch normalisation over a cut batch: statistics of the global batch, as one device has."""

from __future__ import annotations

from typing import cast

from meshwright.layout.types import Layout, Split
from meshwright.lower.special import Site
from meshwright.program.types import Argument, Ref


def _channel_layout(layout: Layout) -> Layout:
    """The layout of a per-channel vector beside a tensor whose dim 1 is channels."""
    return Layout(
        tuple(
            (axis, Split(0, split.outer, split.extent))
            for axis, split in layout.shards
            if split.dim == 1
        )
    )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for dim, size in enumerate(shape):
        count *= 1 if dim == 1 else size
    return count


def _optional(site: Site, positions: tuple[int, ...]) -> dict[int, Ref | None]:
    """Local names of optional tensor arguments by their position in the op's arguments."""
    names = iter(site.operands)
    found: dict[int, Ref | None] = {}
    for position, argument in enumerate(site.op.args):
        here = Ref(next(names)) if isinstance(argument, Ref) else None
        if position in positions:
            found[position] = here
    return found


def batch_norm(site: Site) -> tuple[str | None, ...]:
    """Two reductions of one number a channel: the sum, then the squares about the mean."""
    x = site.operand(0)
    layout, shape = site.layout(x), site.shape(x)
    stats = "no_stats" in site.op.target
    given = _optional(site, (1, 2) if stats else (1, 2, 3, 4))
    momentum, eps = (
        cast(float, site.op.args[position]) for position in ((4, 5) if stats else (6, 7))
    )
    count, channels = _count(shape), (shape[1],)
    vector = _channel_layout(layout)
    others = tuple(dim for dim in range(len(shape)) if dim != 1)
    narrow = tuple(size if dim == 1 else 1 for dim, size in enumerate(shape))
    narrow_layout = Layout(tuple(item for item in layout.shards if item[1].dim == 1))
    pending = site.pending(vector, "sum", *site.special_factors())

    def per_channel(target: str, *args: Argument) -> Ref:
        return site.emit(target, args, channels, vector)

    total = site.settle(site.emit("aten.sum.dim_IntList", (x, others), channels, pending))
    mean = per_channel("aten.div.Scalar", total, count)
    spread = site.emit(
        "aten.view.default",
        (mean, site.b.local(narrow, narrow_layout)),
        narrow,
        narrow_layout,
    )
    centred = site.emit("aten.sub.Tensor", (x, spread), shape, layout)
    squares = site.emit("aten.mul.Tensor", (centred, centred), shape, layout)
    total = site.settle(site.emit("aten.sum.dim_IntList", (squares, others), channels, pending))
    variance = per_channel("aten.div.Scalar", total, count)
    inverse = per_channel("aten.rsqrt.default", per_channel("aten.add.Scalar", variance, eps))
    output = site.emit(
        "mesh.batch_norm_apply", (x, given[1], given[2], mean, variance, eps), shape, layout
    )
    results: list[str | None] = [output.name, mean.name, inverse.name]
    if len(site.op.results) > 3:
        corrected = per_channel("aten.mul.Scalar", variance, count / max(count - 1, 1))
        for position, new in ((3, mean), (4, corrected)):
            old = given[position]
            if old is None:
                results.append(None)
                continue
            kept = per_channel("aten.mul.Scalar", old, 1 - momentum)
            taken = per_channel("aten.mul.Scalar", new, momentum)
            results.append(per_channel("aten.add.Tensor", kept, taken).name)
    return tuple(results)


def batch_norm_backward(site: Site) -> tuple[str | None, ...]:
    """One reduction of two numbers a channel; the parameters' gradients stay pending."""
    given = _optional(site, (2, 5, 6))
    gradient, x = site.operand(0), site.operand(1)
    weight, mean, inverse = given[2], given[5], given[6]
    assert mean is not None and inverse is not None
    layout, shape = site.layout(x), site.shape(x)
    count, channels = _count(shape), shape[1]
    vector = _channel_layout(layout)
    others = tuple(dim for dim in range(len(shape)) if dim != 1)
    narrow = tuple(size if dim == 1 else 1 for dim, size in enumerate(shape))
    narrow_layout = Layout(tuple(item for item in layout.shards if item[1].dim == 1))
    factors = site.special_factors()

    def full(target: str, *args: Argument) -> Ref:
        return site.emit(target, args, shape, layout)

    def spread(value: Ref) -> Ref:
        return site.emit(
            "aten.view.default",
            (value, site.b.local(narrow, narrow_layout)),
            narrow,
            narrow_layout,
        )

    hat = full("aten.mul.Tensor", full("aten.sub.Tensor", x, spread(mean)), spread(inverse))
    pending = site.pending(vector, "sum", *factors)
    sums = site.emit("aten.sum.dim_IntList", (gradient, others), (channels,), pending)
    products = site.emit(
        "aten.sum.dim_IntList",
        (full("aten.mul.Tensor", gradient, hat), others),
        (channels,),
        pending,
    )
    both_layout = Layout(
        tuple((axis, Split(1, split.outer, split.extent)) for axis, split in vector.shards),
        pending.partial,
    )
    both = site.settle(
        site.emit("aten.stack.default", ((sums, products), 0), (2, channels), both_layout)
    )
    both = site.emit("aten.div.Scalar", (both, count), (2, channels), site.layout(both))
    mean_gradient, mean_product = (
        spread(site.emit("aten.select.int", (both, 0, k), (channels,), vector)) for k in (0, 1)
    )
    inner = full("aten.sub.Tensor", gradient, mean_gradient)
    inner = full("aten.sub.Tensor", inner, full("aten.mul.Tensor", hat, mean_product))
    scale = inverse
    if weight is not None:
        scale = site.emit("aten.mul.Tensor", (inverse, weight), (channels,), vector)
    result = full("aten.mul.Tensor", inner, spread(scale))
    return (
        result.name,
        products.name if site.op.results[1] else None,
        sums.name if site.op.results[2] else None,
    )
