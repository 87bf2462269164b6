"""Ops that only move rows of a dim: padding with a constant, slices of most of it."""

from __future__ import annotations

from meshwright.layout.halo import Range, count
from meshwright.lower.spatial import RowCut, exchange, gather_rows, local, return_rows, row_cuts
from meshwright.lower.special import Site
from meshwright.program.types import Argument
from meshwright.rules.rows import padding_before, slice_range


def spatial_pad(site: Site) -> tuple[str | None, ...]:
    """A constant pad of cut dims is the exchange itself, with that filling."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    x = site.operand(0)
    data = site.shape(x)
    cuts = row_cuts(site, site.rule.operands[0], site.rule.results[0] or (), data, shape)
    given = site.op.args[1]
    pads = [n for n in given if isinstance(n, int)] if isinstance(given, tuple) else []
    value = site.op.args[2] if len(site.op.args) > 2 else dict(site.op.kwargs).get("value", 0)
    fill = value if isinstance(value, (int, float)) else 0
    for cut in cuts:
        before = padding_before(pads, len(shape), cut.dim)
        at = 2 * (len(shape) - 1 - cut.dim)
        pads[at : at + 2] = [0, 0]
        target = tuple((low - before, high - before) for low, high in cut.wanted)
        assert cut.inner is not None
        last = cut is cuts[-1] and not any(pads)
        x = exchange(site, x, cut, cut.inner, target, fill, (shape, layout) if last else None)
    if not any(pads):
        return (x.name,)
    return (site.emit("aten.constant_pad_nd.default", (x, tuple(pads), fill), shape, layout).name,)


def _slice_needs(cut: RowCut, start: int, step: int) -> tuple[Range, ...]:
    return tuple(
        (start + low * step, start + (high - 1) * step + 1) if low < high else (0, 0)
        for low, high in cut.wanted
    )


def spatial_slice(site: Site) -> tuple[str | None, ...]:
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    x = site.operand(0)
    data = site.shape(x)
    dim, start, step = slice_range(site.op, data, backward=False)
    (cut,) = row_cuts(site, site.rule.operands[0], site.rule.results[0] or (), data, shape)
    needs = _slice_needs(cut, start, step)
    assert cut.inner is not None
    if step == 1:
        return (exchange(site, x, cut, cut.inner, needs, 0, (shape, layout)).name,)
    slab = gather_rows(site, x, [cut], [needs])
    args: tuple[Argument, ...] = (slab, dim, 0, count(needs[cut.me]), step)
    return (site.emit("aten.slice_copy.Tensor", args, shape, layout).name,)


def spatial_slice_backward(site: Site) -> tuple[str | None, ...]:
    layout, data = site.layouts[0], site.shapes[0]
    assert layout is not None and data is not None
    gradient = site.operand(0)
    dim, start, step = slice_range(site.op, data, backward=True)
    cuts = row_cuts(
        site, site.rule.results[0] or (), site.rule.operands[0], data, site.shape(gradient)
    )
    (cut,) = cuts
    needs = _slice_needs(cut, start, step)
    if step > 1:
        shape = list(site.b.values[gradient.name].shape)
        shape[dim] = count(needs[cut.me])
        sizes, rows = tuple(shape), count(needs[cut.me])
        args = (gradient, sizes, dim, 0, rows, step)
        gradient = local(
            site, "aten.slice_backward.default", args, sizes, site.b.values[gradient.name].dtype
        )
    return (return_rows(site, gradient, cuts, [needs], (data, layout)).name,)
