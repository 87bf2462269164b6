"""Max pooling with cut spatial dims; indices stay positions of the whole plane."""

from __future__ import annotations

from collections.abc import Sequence

from meshwright.layout.halo import Range
from meshwright.layout.types import REPLICATED
from meshwright.lower.spatial import RowCut, emit_all, gather_rows, local, return_rows, row_cuts
from meshwright.lower.special import Site
from meshwright.program.types import Argument
from meshwright.rules.pooling import max_windows
from meshwright.rules.windows import spatial_rank

Needs = list[tuple[Range, ...]]


def _adaptive(rows: Range, size: int, made: int) -> Range:
    """Input rows of adaptive pooling's output `rows`."""
    if rows[0] >= rows[1]:
        return (0, 0)
    return rows[0] * size // made, -(-rows[1] * size // made)


def _needs(site: Site, data: tuple[int, ...], cuts: Sequence[RowCut]) -> Needs:
    lead = len(data) - spatial_rank(site.op.target)
    if "adaptive" in site.op.target:
        return [tuple(_adaptive(rows, cut.size, cut.made) for rows in cut.wanted) for cut in cuts]
    found = max_windows(site.op, data)
    return [tuple(found[cut.dim - lead].reads(rows) for rows in cut.wanted) for cut in cuts]


def _first(cuts: Sequence[RowCut], needs: Needs, lead: int, rank: int) -> tuple[int, ...]:
    """Where this device's rows begin, in each spatial dim of the whole plane."""
    first = [0] * rank
    for cut, need in zip(cuts, needs, strict=True):
        first[cut.dim - lead] = need[cut.me][0]
    return tuple(first)


def spatial_max_pool(site: Site) -> tuple[str | None, ...]:
    x = site.operand(0)
    data, made, layout = site.shape(x), site.shapes[0], site.layouts[0]
    assert made is not None and layout is not None
    rank = spatial_rank(site.op.target)
    lead = len(data) - rank
    cuts = row_cuts(site, site.rule.operands[0], site.rule.results[0] or (), data, made)
    needs = _needs(site, data, cuts)
    slab = gather_rows(site, x, cuts, needs, float("-inf"))
    here = site.b.local(made, layout)
    dtypes = site.dtypes[0] or "float32", "int64"
    if 0 in here or 0 in site.b.values[slab.name].shape:
        return tuple(site.fill(0, made, layout, dtype).name for dtype in dtypes)
    first, sizes = _first(cuts, needs, lead, rank), data[lead:]
    args: tuple[Argument, ...]
    if "adaptive" in site.op.target:
        rows = [(0, size) for size in made[lead:]]
        for cut in cuts:
            rows[cut.dim - lead] = cut.wanted[cut.me]
        target, args = "mesh.adaptive_max_pool", (slab, made[lead:], tuple(rows), first, sizes)
    else:
        found = max_windows(site.op, data)
        cut_dims = {cut.dim - lead for cut in cuts}
        ceil_mode = bool(site.op.args[5]) if len(site.op.args) > 5 else False
        target = "mesh.max_pool"
        args = (
            slab,
            tuple(window.kernel for window in found),
            tuple(window.stride for window in found),
            tuple(0 if k in cut_dims else window.padding for k, window in enumerate(found)),
            tuple(window.dilation for window in found),
            ceil_mode, first, sizes,
        )  # fmt: skip
    return emit_all(site, target, args, [(made, layout, dtype) for dtype in dtypes])


def spatial_max_pool_backward(site: Site) -> tuple[str | None, ...]:
    """Gradients go where their maximum was, then from there to who holds it."""
    gradient, indices = site.operand(0), site.operand(len(site.operands) - 1)
    data, layout = site.shapes[0], site.layouts[0]
    assert data is not None and layout is not None
    rank = spatial_rank(site.op.target)
    lead = len(data) - rank
    made = site.shape(gradient)
    cuts = row_cuts(site, site.rule.results[0] or (), site.rule.operands[0], data, made)
    needs = []
    for cut, need in zip(cuts, _needs(site, data, cuts), strict=True):
        # A maximum lies in no padding.
        needs.append(
            tuple(
                (max(low, 0), min(high, cut.size)) if low < high else (0, 0) for low, high in need
            )
        )
    slab = list(site.b.local(data, layout))
    for cut, need in zip(cuts, needs, strict=True):
        slab[cut.dim] = need[cut.me][1] - need[cut.me][0]
    dtype = site.b.values[gradient.name].dtype
    if 0 in slab or 0 in site.b.values[gradient.name].shape:
        terms = site.fill(0, tuple(slab), REPLICATED, dtype)
    else:
        first = _first(cuts, needs, lead, rank)
        args = (gradient, indices, tuple(slab), first, data[lead:])
        terms = local(site, "mesh.max_pool_backward", args, tuple(slab), dtype)
    return (return_rows(site, terms, cuts, needs, (data, layout)).name,)
