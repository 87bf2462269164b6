"""Group and layer normalisation over cut dims: statistics of the whole, as one device has.

Both take two reductions forward (the sum, then the squares about the mean) and
one backward, of numbers that are few: one for each group or normalised run.
"""

from __future__ import annotations

from typing import cast

from meshwright.layout.types import Layout
from meshwright.lower.spatial import emit_all
from meshwright.lower.special import Site
from meshwright.program.types import Argument, Ref

Shape = tuple[int, ...]


def _moments(site: Site, name: str, x: Ref, arguments: tuple[Argument, ...], count: int) -> Ref:
    """One statistic of all terms: local sums by the op `name`, reduced, over `count`."""
    layout, shape = site.layouts[1], site.shapes[1]
    assert layout is not None and shape is not None
    layout = Layout(layout.shards)
    pending = site.pending(layout, "sum", *site.special_factors())
    dtype = site.dtypes[1]
    total = site.settle(site.emit(name, (x, *arguments), shape, pending, dtype))
    return site.emit("aten.div.Scalar", (total, count), shape, layout, dtype)


def _inverse(site: Site, variance: Ref, eps: float) -> Ref:
    shape, layout = site.shape(variance), site.layout(variance)
    moved = site.emit("aten.add.Scalar", (variance, eps), shape, layout, site.dtypes[1])
    return site.emit("aten.rsqrt.default", (moved,), shape, layout, site.dtypes[1])


def _affine(site: Site, first: int, positions: tuple[int, ...]) -> tuple[Ref | None, ...]:
    """Local names of optional vectors, which follow `first` operands in order."""
    names = iter(site.operands[first:])
    return tuple(
        Ref(next(names)) if isinstance(site.op.args[position], Ref) else None
        for position in positions
    )


def _normalise(site: Site, kind: str, runs: int, count: int, eps: float) -> tuple[str | None, ...]:
    """`runs` is what tells the local ops how to form groups: their number, or dims normalised."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    x = site.operand(0)
    weight, bias = _affine(site, 1, (1, 2) if kind == "group" else (2, 3))
    mean = _moments(site, f"mesh.{kind}_sum", x, (runs,), count)
    variance = _moments(site, f"mesh.{kind}_squares", x, (mean, runs), count)
    inverse = _inverse(site, variance, eps)
    made = site.emit(f"mesh.{kind}_apply", (x, mean, inverse, weight, bias, runs), shape, layout)
    return (made.name, mean.name, inverse.name)


def _normalise_backward(site: Site, kind: str, runs: int, count: int) -> tuple[str | None, ...]:
    gradient, x, mean, inverse = (site.operand(k) for k in range(4))
    (weight,) = _affine(site, 4, (4,) if kind == "group" else (5,))
    layout, shape = site.layout(x), site.shape(x)
    dtype = site.b.values[mean.name].dtype
    sums_shape = (2, *site.shape(mean))
    shifted = Layout(
        tuple(
            (axis, type(split)(split.dim + 1, split.outer, split.extent))
            for axis, split in site.layout(mean).shards
        )
    )
    pending = site.pending(shifted, "sum", *site.special_factors())
    results = [(sums_shape, pending, dtype)]
    for made, own, kept in zip(site.shapes[1:], site.layouts[1:], site.dtypes[1:], strict=True):
        if made is not None and own is not None:
            results.append((made, own, kept or dtype))
    wanted = tuple(name is not None for name in site.op.results[1:])
    names = emit_all(
        site, f"mesh.{kind}_terms", (gradient, x, mean, inverse, weight, runs, wanted), results
    )
    assert names[0] is not None
    sums = site.settle(Ref(names[0]))
    sums = site.emit("aten.div.Scalar", (sums, count), sums_shape, shifted, dtype)
    made_x = None
    if site.op.results[0] is not None:
        args = (gradient, x, mean, inverse, weight, sums, runs)
        made_x = site.emit(f"mesh.{kind}_gradient", args, shape, layout).name
    rest = iter(names[1:])
    return (made_x, *(next(rest) if asked else None for asked in wanted))


def _local_groups(site: Site, whole: int, data: Ref) -> int:
    within = site.shape(data)[1] // whole
    return site.b.values[data.name].shape[1] // within


def _product(sizes: Shape) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def group_norm(site: Site) -> tuple[str | None, ...]:
    x, groups = site.operand(0), cast(int, site.op.args[6])
    count = _product(site.shape(x)[1:]) // groups
    eps = cast(float, site.op.args[7])
    return _normalise(site, "group", _local_groups(site, groups, x), count, eps)


def group_norm_backward(site: Site) -> tuple[str | None, ...]:
    x, groups = site.operand(1), cast(int, site.op.args[8])
    count = _product(site.shape(x)[1:]) // groups
    return _normalise_backward(site, "group", _local_groups(site, groups, x), count)


def layer_norm(site: Site) -> tuple[str | None, ...]:
    tail = len(cast(Shape, site.op.args[1]))
    count = _product(site.shape(site.operand(0))[-tail:])
    return _normalise(site, "layer", tail, count, cast(float, site.op.args[4]))


def layer_norm_backward(site: Site) -> tuple[str | None, ...]:
    tail = len(cast(Shape, site.op.args[2]))
    count = _product(site.shape(site.operand(1))[-tail:])
    return _normalise_backward(site, "layer", tail, count)
