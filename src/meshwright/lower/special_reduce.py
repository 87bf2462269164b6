"""Reductions over a cut dim that are no plain combination of terms: each settles what it needs."""

from __future__ import annotations

from math import inf, prod
from typing import cast

from meshwright.layout.types import Layout, Split
from meshwright.lower.special import Site
from meshwright.program.types import Argument, Ref


def _dims(site: Site, position: int) -> tuple[int, ...]:
    """The reduced dims, from the argument at `position`; all where there is none."""
    rank = len(site.shape(site.operand(0)))
    given = site.op.args[position] if position < len(site.op.args) else None
    if given is None:
        given = dict(site.op.kwargs).get("dim")
    if isinstance(given, int):
        given = (given,)
    if isinstance(given, tuple) and given:
        return tuple(cast(int, dim) % rank for dim in given)
    return tuple(range(rank))


class _Narrow:
    """The operand and what is left of it once `dims` are reduced to size 1."""

    def __init__(self, site: Site, dims: tuple[int, ...]) -> None:
        self.site, self.dims = site, dims
        self.x = site.operand(0)
        self.whole, self.layout = site.shape(self.x), site.layout(self.x)
        self.shape = tuple(1 if dim in dims else size for dim, size in enumerate(self.whole))
        self.kept = Layout(tuple(item for item in self.layout.shards if item[1].dim not in dims))
        self.factors = site.special_factors()
        self.count = prod(self.whole[dim] for dim in dims)

    def reduced(self, target: str, *args: Argument, reduce: str = "sum", x: Ref | None = None,
                kwargs: tuple[tuple[str, Argument], ...] = ()) -> Ref:  # fmt: skip
        """A reduction of the local part, settled over the devices; neutral where it is empty."""
        pending = self.site.pending(self.kept, reduce, *self.factors)  # type: ignore[arg-type]
        dtype = self.site.dtypes[0]
        if self.site.empty and reduce != "sum":
            number = {"max": -inf, "min": inf}[reduce]
            return self.site.settle(self.site.fill(number, self.shape, pending, dtype))
        operand = self.x if x is None else x
        made = self.site.emit(target, (operand, *args), self.shape, pending, dtype, kwargs)
        return self.site.settle(made)

    def pointwise(self, target: str, *args: Argument) -> Ref:
        return self.site.emit(target, args, self.shape, self.kept, self.site.dtypes[0])

    def result(self, value: Ref, position: int = 0) -> str:
        """The value in the shape of a result, which may lack the dims of size 1."""
        layout, shape = self.site.layouts[position], self.site.shapes[position]
        assert layout is not None and shape is not None
        if shape == self.shape:
            return value.name
        local = self.site.b.local(shape, layout)
        dtype = self.site.b.values[value.name].dtype
        return self.site.emit("aten.reshape.default", (value, local), shape, layout, dtype).name


def variance_across(site: Site) -> tuple[str | None, ...]:
    """The mean first, then the squares about it: two reductions of one number a row."""
    narrow = _Narrow(site, _dims(site, 1))
    correction = dict(site.op.kwargs).get("correction")
    spare = 1.0 if correction is None else float(cast(float, correction))
    total = narrow.reduced("aten.sum.dim_IntList", narrow.dims, True)
    mean = narrow.pointwise("aten.div.Scalar", total, narrow.count)
    centred = site.emit("aten.sub.Tensor", (narrow.x, mean), narrow.whole, narrow.layout)
    squares = site.emit("aten.mul.Tensor", (centred, centred), narrow.whole, narrow.layout)
    total = narrow.reduced("aten.sum.dim_IntList", narrow.dims, True, x=squares)
    made = narrow.pointwise("aten.div.Scalar", total, max(narrow.count - spare, 0.0))
    if site.op.target.startswith("aten.std"):
        made = narrow.pointwise("aten.sqrt.default", made)
    results = [narrow.result(made)]
    if len(site.op.results) > 1:
        results.append(narrow.result(mean, 1))
    return tuple(results)


def norm_across(site: Site) -> tuple[str | None, ...]:
    """The norm of norms: of each device's part, then of those."""
    narrow = _Narrow(site, _dims(site, 2))
    given = site.op.args[1] if len(site.op.args) > 1 else None
    order = 2.0 if given is None else float(cast(float, given))
    options = tuple(item for item in site.op.kwargs if item[0] == "dtype")
    target = "aten.linalg_vector_norm.default"
    if abs(order) == inf:
        reduce = "max" if order > 0 else "min"
        made = narrow.reduced(target, order, narrow.dims, True, reduce=reduce, kwargs=options)
        return (narrow.result(made),)
    if order == 0:
        made = narrow.reduced(target, order, narrow.dims, True, kwargs=options)
        return (narrow.result(made),)
    pending = site.pending(narrow.kept, "sum", *narrow.factors)
    dtype = site.dtypes[0]
    if site.empty:
        powers = site.fill(0, narrow.shape, pending, dtype)
    else:
        local = site.emit(
            target, (narrow.x, order, narrow.dims, True), narrow.shape, pending, dtype, options
        )
        powers = site.emit("aten.pow.Tensor_Scalar", (local, order), narrow.shape, pending, dtype)
    total = site.settle(powers)
    return (narrow.result(narrow.pointwise("aten.pow.Tensor_Scalar", total, 1 / order)),)


def logsumexp_across(site: Site) -> tuple[str | None, ...]:
    """The maximum is reduced first, then the sum of what is left of each exponent."""
    narrow = _Narrow(site, _dims(site, 1))
    top = narrow.reduced("aten.amax.default", narrow.dims, True, reduce="max")
    endless = site.emit("aten.isinf.default", (top,), narrow.shape, narrow.kept, "bool")
    top = narrow.pointwise("aten.masked_fill.Scalar", top, endless, 0)
    centred = site.emit("aten.sub.Tensor", (narrow.x, top), narrow.whole, narrow.layout)
    powers = site.emit("aten.exp.default", (centred,), narrow.whole, narrow.layout)
    total = narrow.reduced("aten.sum.dim_IntList", narrow.dims, True, x=powers)
    logarithm = narrow.pointwise("aten.log.default", total)
    return (narrow.result(narrow.pointwise("aten.add.Tensor", logarithm, top)),)


def extreme_across(site: Site) -> tuple[str | None, ...]:
    """The value is reduced, then the first position in the whole dim that holds it."""
    narrow = _Narrow(site, _dims(site, 1))
    (dim,) = narrow.dims
    x = narrow.x
    largest = "max" in site.op.target
    start, _ = site.b.range(x.name, dim)
    dtype = site.b.values[x.name].dtype
    top = site.settle(
        site.emit(
            "mesh.extreme", (x, dim, largest), narrow.shape,
            site.pending(narrow.kept, "max" if largest else "min", *narrow.factors), dtype,
        )
    )  # fmt: skip
    place = site.emit(
        "mesh.extreme_position", (x, top, dim, start, narrow.whole[dim]), narrow.shape,
        site.pending(narrow.kept, "min", *narrow.factors), "int64",
    )  # fmt: skip
    place = site.settle(place)
    if len(site.op.results) == 1:
        return (narrow.result(place),)
    return (narrow.result(top), narrow.result(place, 1))


# What a scan's totals are, of one device and then of those before it, and how they join a part.
_SCANS = {
    "aten.cumsum.default": ("aten.sum.dim_IntList", "aten.add.Tensor"),
    "aten.cumprod.default": ("aten.prod.dim_int", "aten.mul.Tensor"),
    "aten.logcumsumexp.default": ("aten.logsumexp.default", "aten.logaddexp.default"),
}


def scan_across(site: Site) -> tuple[str | None, ...]:
    """Each device scans its part; the totals of all are gathered, one number a row and device."""
    x = site.operand(0)
    layout, shape, dtype = site.layouts[0], site.shapes[0], site.dtypes[0]
    assert layout is not None and shape is not None
    dim = cast(int, site.op.args[1]) % len(shape)
    total_of, join = _SCANS[site.op.target]
    local = site.emit(site.op.target, (x, dim), shape, layout, dtype, site.op.kwargs)
    axes = [axis for axis, split in layout.shards if split.dim == dim]
    parts = prod(site.b.mesh.extent(axis) for axis in axes)
    index = 0
    for axis in axes:
        index = index * site.b.mesh.extent(axis) + site.b.coordinate[axis]
    shards = tuple(
        (axis, Split(dim, 1, parts) if axis in axes else split) for axis, split in layout.shards
    )
    over: Argument = dim if total_of == "aten.prod.dim_int" else (dim,)
    options = site.op.kwargs if total_of != "aten.logsumexp.default" else ()
    every = (*shape[:dim], parts, *shape[dim + 1 :])
    total = site.emit(total_of, (x, over, True), every, Layout(shards), dtype, options)
    kept = Layout(tuple(item for item in shards if item[0] not in axes))
    totals = site.convert(total, kept)
    if index == 0:
        return (local.name,)
    before = (*shape[:dim], index, *shape[dim + 1 :])
    narrow = (*shape[:dim], 1, *shape[dim + 1 :])
    taken = site.emit("aten.slice.Tensor", (totals, dim, 0, index), before, kept, dtype)
    taken = site.emit(total_of, (taken, over, True), narrow, kept, dtype)
    return (site.emit(join, (local, taken), shape, layout, dtype).name,)
