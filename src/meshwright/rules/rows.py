"""Padding with a constant, and slices that keep most of a dim: cut dims whose rows shift."""

from __future__ import annotations

from collections.abc import Sequence

from meshwright.program.types import Argument, Op
from meshwright.rules.build import normalise_dim
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Dims, Factor, Localize, OpRule, Shape
from meshwright.rules.windows import spatial_factors


def padding_before(amounts: Sequence[int], rank: int, dim: int) -> int:
    """Rows that a pad, given as PyTorch does with the last dim first, puts before `dim`."""
    at = 2 * (rank - 1 - dim)
    return amounts[at] if at < len(amounts) else 0


def _rows_rule(source: Shape, target: Shape, ranged: Sequence[int], special: str) -> OpRule:
    """Dims of one size pass; those in `ranged` are cut in ranges, other changed ones not at all."""
    factors: list[Factor] = []
    left: Dims = ()
    right: Dims = ()
    for dim, (size, made) in enumerate(zip(source, target, strict=True)):
        if dim in ranged:
            more, inner, outer = spatial_factors(len(factors), ((size, made),), special)
            factors += more
            left, right = (*left, *inner), (*right, *outer)
        elif size == made != 1:
            left, right = (*left, (len(factors),)), (*right, (len(factors),))
            factors.append(Factor(size))
        else:
            left, right = (*left, ()), (*right, ())
    return OpRule(tuple(factors), (left,), (right,))


def _image_dims(shape: Shape) -> range:
    """Dims in which neighbours matter: of images and volumes, and the last of [N, C, L]."""
    return range(1, len(shape)) if len(shape) > 3 else range(2, len(shape))


@rule("aten.constant_pad_nd.default")
def pad(call: Call) -> OpRule:
    """(input, pad, value); negative amounts crop."""
    shape, target, amounts = call.shapes[0], call.results[0], call.ints(1, "pad")
    assert target is not None
    padded = {len(shape) - 1 - k // 2 for k, amount in enumerate(amounts) if amount}
    ranged = [dim for dim in padded if dim in _image_dims(shape)]
    # A dim that is cropped as much as it is padded keeps its size but not its rows.
    hidden = tuple(-1 if dim in padded else size for dim, size in enumerate(shape))
    if not ranged:
        return _rows_rule(hidden, target, (), "spatial_pad")
    source = tuple(shape[dim] if dim in ranged else size for dim, size in enumerate(hidden))
    return _rows_rule(source, target, ranged, "spatial_pad")


def slice_range(op: Op, shape: Shape, backward: bool) -> tuple[int, int, int]:
    """Dim, first row and step of a slice of a tensor of `shape`."""
    first = 2 if backward else 1
    given = [*op.args[first:], *[None] * 4]
    dim = normalise_dim(given[0] if isinstance(given[0], int) else 0, len(shape))
    start = given[1] if isinstance(given[1], int) else 0
    step = given[3] if isinstance(given[3], int) else 1
    start = min(max(0, normalise_dim(start, shape[dim])), shape[dim])
    return dim, start, step


def crops(whole: Shape, part: Shape, dim: int, step: int) -> bool:
    """Whether a slice along `dim` is the crop of an image or volume, or a picture of every nth row.

    A crop keeps more than half of a spatial dim, of a signal [N, C, L] nearly all; less is
    rather one of several tensors that were made as one, which are cut as such.
    """
    size, kept = whole[dim], part[dim]
    if min(size, kept) < 2:
        return False
    if len(whole) > 3:
        return 0 < dim < len(whole) - 1 and (step > 1 or 2 * kept > size)
    return len(whole) == 3 and dim == 2 and step == 1 and 8 * kept >= 7 * size


def _sizes(position: int) -> Localize:
    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        return (*op.args[:position], results[0], *op.args[position + 1 :])

    return localize


def crop_rule(call: Call, dim: int, backward: bool) -> OpRule:
    """Of a slice or its gradient, where `crops` holds."""
    source, target = call.shapes[0], call.results[0]
    assert target is not None
    if not backward:
        made = _rows_rule(source, target, (dim,), "spatial_slice")
        return OpRule(made.factors, made.operands, made.results, "unary")
    mirrored = _rows_rule(target, source, (dim,), "spatial_slice_backward")
    gradient = mirrored.results[0]
    assert gradient is not None
    return OpRule(mirrored.factors, (gradient,), mirrored.operands, "unary", _sizes(1))
