"""Convolution with cut spatial dims: each device convolves the rows that its own output needs."""

from __future__ import annotations

from collections.abc import Sequence

from meshwright.layout.halo import Range, count
from meshwright.layout.types import REPLICATED
from meshwright.lower.spatial import RowCut, emit_all, gather_rows, local, return_rows, row_cuts
from meshwright.lower.special import Site, add_bias_once, bias_of_channels
from meshwright.program.types import Argument, Ref
from meshwright.rules.convolution import windows
from meshwright.rules.windows import Window, per_dim

Needs = list[tuple[Range, ...]]


def _needs(cuts: Sequence[RowCut], found: Sequence[Window]) -> Needs:
    return [tuple(found[cut.dim - 2].reads(rows) for rows in cut.wanted) for cut in cuts]


def _with_zeros(numbers: Argument, rank: int, cuts: Sequence[RowCut]) -> tuple[int, ...]:
    """Padding where cut dims have none: their rows beyond the border are there already."""
    given = tuple(n for n in numbers if isinstance(n, int)) if isinstance(numbers, tuple) else ()
    cut_dims = {cut.dim - 2 for cut in cuts}
    return tuple(0 if k in cut_dims else number for k, number in enumerate(per_dim(given, rank, 0)))


def _shifts(
    cuts: Sequence[RowCut], found: Sequence[Window], needs: Needs
) -> dict[int, tuple[int, int]]:
    """Of a transposed convolution of the rows held: where this device's output begins, its rows.

    The slab gives rows from `first input row * stride - padding` on; what this
    device owns may begin later, and end later, where no window reaches.
    """
    shifts = {}
    for cut, need in zip(cuts, needs, strict=True):
        window, rows, held = found[cut.dim - 2], cut.wanted[cut.me], need[cut.me]
        made = (count(held) - 1) * window.stride + window.reach if count(held) else 0
        shifts[cut.dim] = (rows[0] - (held[0] * window.stride - window.padding), made)
    return shifts


def spatial_convolution(site: Site) -> tuple[str | None, ...]:
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    x, weight = site.operand(0), site.operand(1)
    bias = site.operand(2) if len(site.operands) > 2 else None
    rank, transposed = len(shape) - 2, bool(site.op.args[6])
    found = windows(site.op, site.shape(x), site.shape(weight))
    cuts = row_cuts(site, site.rule.operands[0], site.rule.results[0] or (), site.shape(x), shape)
    needs = _needs(cuts, found)
    slab = gather_rows(site, x, cuts, needs)
    # A bias is added after sums over cut channels, and to rows that no window reaches.
    later = bias is not None and (transposed or bool(layout.partial))
    assert site.rule.localize is not None
    shapes = tuple(site.b.values[name].shape for name in site.operands)
    options = site.rule.localize(site.op, shapes, (site.b.local(shape, layout),))
    args: tuple[Argument, ...] = (
        slab, weight, None if later else bias, options[3],
        _with_zeros(options[4], rank, cuts), options[5], options[6],
        _with_zeros(options[7], rank, cuts), options[8],
    )  # fmt: skip
    here = site.b.local(shape, layout)
    if 0 in here or 0 in site.b.values[slab.name].shape or 0 in site.b.values[weight.name].shape:
        made = site.fill(0, shape, layout)
    elif not transposed:
        made = site.emit("aten.convolution.default", args, shape, layout)
    else:
        made = _cropped(site, args, cuts, _shifts(cuts, found, needs))
    if bias is not None and later:
        made = add_bias_once(site, made, bias_of_channels(site, bias))
    return (made.name,)


def _cropped(
    site: Site,
    args: tuple[Argument, ...],
    cuts: Sequence[RowCut],
    shifts: dict[int, tuple[int, int]],
) -> Ref:
    """A transposed convolution of a slab, cropped to this device's rows or filled up with zeros."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    here, pads = list(site.b.local(shape, layout)), [0] * (2 * (len(shape) - 2))
    for cut in cuts:
        first, made = shifts[cut.dim]
        at = 2 * (len(shape) - 1 - cut.dim)
        pads[at : at + 2] = [-first, first + here[cut.dim] - made]
        here[cut.dim] = made
    if not any(pads):
        return site.emit("aten.convolution.default", args, shape, layout)
    dtype = site.b.values[site.operands[0]].dtype
    full = local(site, "aten.convolution.default", args, tuple(here), dtype)
    return site.emit("aten.constant_pad_nd.default", (full, tuple(pads), 0), shape, layout)


def spatial_convolution_backward(site: Site) -> tuple[str | None, ...]:
    gradient, x, weight = (site.operand(k) for k in range(3))
    data, kernel, made = site.shape(x), site.shape(weight), site.shape(gradient)
    rank, transposed = len(data) - 2, bool(site.op.args[7])
    found = windows(site.op, data, kernel)
    cuts = row_cuts(site, site.rule.operands[1], site.rule.operands[0], data, made)
    needs = _needs(cuts, found)
    slab = gather_rows(site, x, cuts, needs)
    dtype = site.b.values[x.name].dtype
    assert site.rule.localize is not None
    shapes = tuple(site.b.values[name].shape for name in site.operands)
    options = site.rule.localize(site.op, shapes, ())
    mask = tuple(name is not None for name in site.op.results)
    bias_terms: Ref | None = None
    if transposed:
        # Rows that no window reaches have a bias all the same.
        if mask[2]:
            bias_terms = _over_all_but_channels(site, gradient)
        gradient = _uncropped(site, gradient, cuts, _shifts(cuts, found, needs))
        mask = (mask[0], mask[1], False)
    slab_shape = site.b.values[slab.name].shape
    here = (slab_shape, site.b.values[gradient.name].shape, shapes[2])
    whole = [
        None if layout is None or shape is None else (shape, layout, dtype)
        for layout, shape in zip(site.layouts, site.shapes, strict=True)
    ]
    terms: list[str | None] = [None, None, None]
    if any(0 in sizes for sizes in here):
        for position, wanted in enumerate(mask):
            if wanted and position == 0:
                terms[0] = site.fill(0, slab_shape, REPLICATED, dtype).name
            elif wanted and (item := whole[position]) is not None:
                terms[position] = site.fill(0, item[0], item[1], dtype).name
    elif any(mask):
        args: tuple[Argument, ...] = (
            gradient, slab, weight, options[3] if mask[2] else None, options[4],
            _with_zeros(options[5], rank, cuts), options[6], options[7],
            _with_zeros(options[8], rank, cuts), options[9], mask,
        )  # fmt: skip
        terms = list(
            emit_all(
                site, site.op.target, args,
                [
                    (slab_shape, REPLICATED, dtype) if mask[0] else None,
                    whole[1] if mask[1] else None,
                    whole[2] if mask[2] else None,
                ],
            )
        )  # fmt: skip
    if mask[0] and terms[0] is not None and whole[0] is not None:
        terms[0] = return_rows(site, Ref(terms[0]), cuts, needs, whole[0][:2]).name
    if bias_terms is not None:
        terms[2] = bias_terms.name
    return tuple(terms)


def _over_all_but_channels(site: Site, gradient: Ref) -> Ref:
    layout, shape = site.layouts[2], site.shapes[2]
    assert layout is not None and shape is not None
    others = tuple(dim for dim in range(len(site.shape(gradient))) if dim != 1)
    return site.emit("aten.sum.dim_IntList", (gradient, others), shape, layout)


def _uncropped(
    site: Site, gradient: Ref, cuts: Sequence[RowCut], shifts: dict[int, tuple[int, int]]
) -> Ref:
    """The adjoint of `_cropped`: zeros for what was cropped, without what was filled up."""
    shape = list(site.b.values[gradient.name].shape)
    pads = [0] * (2 * (len(shape) - 2))
    for cut in cuts:
        first, made = shifts[cut.dim]
        at = 2 * (len(shape) - 1 - cut.dim)
        pads[at : at + 2] = [first, made - first - shape[cut.dim]]
        shape[cut.dim] = made
    if not any(pads) or 0 in site.b.values[gradient.name].shape or 0 in shape:
        return gradient
    dtype = site.b.values[gradient.name].dtype
    return local(
        site, "aten.constant_pad_nd.default", (gradient, tuple(pads), 0), tuple(shape), dtype
    )
