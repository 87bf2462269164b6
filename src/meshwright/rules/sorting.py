"""Order statistics: the dim that is ordered stays whole, all others pass."""

from __future__ import annotations

from dataclasses import replace

from meshwright.rules.build import einsum, letters, normalise_dim
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule


def _ordered(call: Call, position: int, keepdim: bool | None) -> OpRule:
    """keepdim: whether the dim stays with size 1; None when it keeps a size of its own."""
    rank = len(call.shapes[0])
    both = (call.results * 2)[:2]
    if not rank:
        return einsum("->,", call.shapes, both)
    dim = normalise_dim(call.integer(position, "dim", -1), rank)
    names = letters(rank)
    source = names[:dim] + "." + names[dim + 1 :]
    result = source if keepdim is not False else names[:dim] + names[dim + 1 :]
    return einsum(f"{source}->{result},{result}", call.shapes, both)


@rule("aten.sort.default")
def sort(call: Call) -> OpRule:
    """(input, dim, descending) -> values, indices."""
    return _ordered(call, 1, None)


@rule("aten.sort.stable")
def sort_stable(call: Call) -> OpRule:
    """(input, *, stable, dim, descending) -> values, indices."""
    return _ordered(call, 1, None)


@rule("aten.argsort.default", "aten.argsort.stable")
def argsort(call: Call) -> OpRule:
    """(input, dim, descending) -> indices."""
    made = _ordered(call, 1, None)
    return replace(made, results=made.results[:1])


@rule("aten.topk.default")
def topk(call: Call) -> OpRule:
    """(input, k, dim) -> values, indices."""
    return _ordered(call, 2, None)


@rule("aten.kthvalue.default")
def kthvalue(call: Call) -> OpRule:
    """(input, k, dim, keepdim) -> values, indices."""
    return _ordered(call, 2, bool(call.arg(3, "keepdim", False)))


@rule("aten.median.dim", "aten.nanmedian.dim", "aten.mode.default")
def median(call: Call) -> OpRule:
    """(input, dim, keepdim) -> values, indices."""
    return _ordered(call, 1, bool(call.arg(2, "keepdim", False)))


@rule("aten.median.default", "aten.nanmedian.default")
def median_of_all(call: Call) -> OpRule:
    return einsum("." * len(call.shapes[0]) + "->", call.shapes, call.results)


@rule("aten.searchsorted.Tensor")
def searchsorted(call: Call) -> OpRule:
    """(sorted [n] or […, n], values […, m], *, sorter): what is looked up passes."""
    rank = len(call.shapes[1])
    names = letters(rank)
    rows = "." if len(call.shapes[0]) == 1 else names[:-1] + "."
    sorter = [rows] if len(call.shapes) > 2 else []
    return einsum(",".join([rows, names, *sorter]) + f"->{names}", call.shapes, call.results)


@rule("aten.histc.default")
def histc(call: Call) -> OpRule:
    """(input, bins, min, max): counts add up when the bounds do not come from the data."""
    rank = len(call.shapes[0])
    low, high = call.arg(2, "min", 0), call.arg(3, "max", 0)
    names = "." * rank if low == high else letters(rank)
    return einsum(f"{names}->.", call.shapes, call.results)
