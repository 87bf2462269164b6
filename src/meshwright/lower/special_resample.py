"""Pooling by means, upsampling and padding with rows there, with cut spatial dims.

Each is a linear map of one dim after the other. Cut dims are mapped by their
weights (`rules.resampling`) from the rows that this device's output needs; the
dims that lie whole here by PyTorch's own op, which leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshwright.layout.halo import Range, overlap
from meshwright.layout.types import REPLICATED
from meshwright.lower.spatial import RowCut, gather_rows, local, return_rows, row_cuts
from meshwright.lower.special import Site
from meshwright.program.types import Argument, Op
from meshwright.rules.resampling import DIVIDE_BY_ALL, DIVIDE_BY_THERE, UNDIVIDED, Resampling
from meshwright.rules.windows import per_dim, spatial_rank

_KINDS = {
    "upsample_nearest_exact": "exact", "upsample_nearest": "nearest", "upsample_linear": "linear",
    "upsample_bilinear": "linear", "upsample_trilinear": "linear", "upsample_bicubic": "cubic",
    "adaptive_avg_pool": "mean", "avg_pool": "average", "reflection_pad": "reflect",
    "replication_pad": "replicate",
}  # fmt: skip


def _kind(op: Op) -> str:
    name = op.target.split(".")[1].removeprefix("_")
    return next(kind for start, kind in _KINDS.items() if name.startswith(start))


def _ints(argument: Argument) -> tuple[int, ...]:
    items = argument if isinstance(argument, tuple) else (argument,)
    return tuple(int(item) for item in items if isinstance(item, int))


def _rest(op: Op, kind: str) -> list[Argument]:
    """The arguments after the tensors and, of an upsampling, after the sizes; in full."""
    backward = "_backward" in op.target
    if kind in ("exact", "nearest", "linear", "cubic"):
        given = list(op.args[3 if backward else 2 :])
        length = spatial_rank(op.target) + (1 if kind in ("linear", "cubic") else 0)
    else:
        # Gradients of these take the input beside the gradient.
        given = list(op.args[2 if backward else 1 :])
        length = 6 if kind == "average" else len(given)
    defaults: list[Argument] = [None] * length
    if kind == "average":
        defaults[1:5] = [(), 0, False, True]
    return given + defaults[len(given) :]


def maps(op: Op, data: Sequence[int], made: Sequence[int]) -> tuple[Resampling, ...]:
    """The map of each spatial dim, from the sizes in `data` to those in `made`."""
    kind, rank = _kind(op), spatial_rank(op.target)
    rest = _rest(op, kind)
    sizes = [*zip(data[len(data) - rank :], made[len(made) - rank :], strict=True)]
    options: list[tuple[float, ...]]
    if kind in ("exact", "nearest", "linear", "cubic"):
        align = (float(bool(rest.pop(0))),) if kind in ("linear", "cubic") else ()
        options = [
            (*align, float(scale) if isinstance(scale, (int, float)) else 0.0) for scale in rest
        ]
    elif kind == "average":
        kernel = per_dim(_ints(rest[0]), rank, 1)
        stride = per_dim(_ints(rest[1]), rank, 0)
        padding = per_dim(_ints(rest[2]), rank, 0)
        how = DIVIDE_BY_ALL if rest[4] else DIVIDE_BY_THERE
        how = UNDIVIDED if rest[5] is not None else how
        options = [(kernel[k], stride[k] or kernel[k], padding[k], how) for k in range(rank)]
    elif kind == "mean":
        options = [()] * rank
    else:
        pads = _ints(rest[0])
        options = [(pads[2 * (rank - 1 - k)],) for k in range(rank)]
    return tuple(
        Resampling(kind, size, out, option)
        for (size, out), option in zip(sizes, options, strict=True)
    )


def whole_dims(
    op: Op, found: Sequence[Resampling], here: Mapping[int, int]
) -> tuple[Argument, ...]:
    """The op's arguments after its tensors and sizes, changed to leave the dims in `here` alone.

    `here` has the rows that each of them has on this device. The sizes of the
    output come first where the op takes them.
    """
    kind, rank = _kind(op), len(found)
    rest = _rest(op, kind)
    sizes = tuple(here.get(k, it.made) for k, it in enumerate(found))
    if kind in ("exact", "nearest", "linear", "cubic"):
        for k in here:
            rest[len(rest) - rank + k] = None
        return (sizes, *rest)
    if kind == "average":
        for position, neutral in ((0, 1), (1, 1), (2, 0)):
            rest[position] = tuple(
                neutral if k in here else int(it.options[position]) for k, it in enumerate(found)
            )
        return tuple(rest)
    if kind == "mean":
        return (sizes,)
    pads = list(_ints(rest[0]))
    for k in here:
        pads[2 * (rank - 1 - k) : 2 * (rank - k)] = [0, 0]
    return (tuple(pads),)


def _needs_op(op: Op, found: Sequence[Resampling], here: Mapping[int, int]) -> bool:
    """Whether something is left to the op itself: dims that lie whole, a divisor given by hand."""
    kind = _kind(op)
    return len(here) < len(found) or (kind == "average" and _rest(op, kind)[5] is not None)


def _needs(
    cuts: Sequence[RowCut], found: Sequence[Resampling], lead: int
) -> list[tuple[Range, ...]]:
    """Input rows that each device's output needs, or the rows it holds where it sums over them."""
    needs = []
    for cut in cuts:
        reads = tuple(found[cut.dim - lead].reads(rows) for rows in cut.wanted)
        if cut.outer is None and cut.inner is not None:
            reads = tuple(overlap(held, read) for held, read in zip(cut.inner, reads, strict=True))
        needs.append(reads)
    return needs


def _passes(
    cuts: Sequence[RowCut],
    found: Sequence[Resampling],
    needs: Sequence[tuple[Range, ...]],
    lead: int,
) -> tuple[Argument, ...]:
    """(dim, map, output rows, input rows) of each cut dim, as `mesh.resample` takes them."""
    return tuple(
        (cut.dim, found[cut.dim - lead].key(), cut.wanted[cut.me], need[cut.me])
        for cut, need in zip(cuts, needs, strict=True)
    )


def spatial_resample(site: Site) -> tuple[str | None, ...]:
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    x = site.operand(0)
    found = maps(site.op, site.shape(x), shape)
    lead = len(shape) - len(found)
    cuts = row_cuts(site, site.rule.operands[0], site.rule.results[0] or (), site.shape(x), shape)
    needs = _needs(cuts, found, lead)
    slab = gather_rows(site, x, cuts, needs)
    here = {cut.dim - lead: site.b.local(shape, layout)[cut.dim] for cut in cuts}
    if 0 in site.b.values[slab.name].shape or 0 in site.b.local(shape, layout):
        return (site.fill(0, shape, layout).name,)
    name = site.op.target if _needs_op(site.op, found, here) else None
    args = (slab, name, whole_dims(site.op, found, here), _passes(cuts, found, needs, lead))
    return (site.emit("mesh.resample", args, shape, layout).name,)


def spatial_resample_backward(site: Site) -> tuple[str | None, ...]:
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    gradient = site.operand(0)
    made = site.shape(gradient)
    found = maps(site.op, shape, made)
    lead = len(shape) - len(found)
    inner, outer = site.rule.results[0], site.rule.operands[0]
    cuts = row_cuts(site, inner or (), outer, shape, made)
    needs = _needs(cuts, found, lead)
    here = site.b.values[gradient.name].shape
    slab = list(site.b.local(shape, layout))
    for cut, need in zip(cuts, needs, strict=True):
        slab[cut.dim] = need[cut.me][1] - need[cut.me][0]
    dtype = site.b.values[gradient.name].dtype
    if 0 in slab or 0 in here:
        terms = site.fill(0, tuple(slab), REPLICATED, dtype)
    else:
        cut_dims = {cut.dim - lead: here[cut.dim] for cut in cuts}
        name = site.op.target if _needs_op(site.op, found, cut_dims) else None
        args = (
            gradient, name, whole_dims(site.op, found, cut_dims),
            _passes(cuts, found, needs, lead), tuple(slab),
        )  # fmt: skip
        terms = local(site, "mesh.resample_backward", args, tuple(slab), dtype)
    return (return_rows(site, terms, cuts, needs, (shape, layout)).name,)
