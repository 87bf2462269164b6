"""Views and copies that only move elements: reshape, permute, split, cat, slice…"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from meshwright.program.types import Argument, Op
from meshwright.rules.build import normalise_dim, reshape_dims
from meshwright.rules.registry import Call, rule
from meshwright.rules.rows import crop_rule, crops
from meshwright.rules.types import Dims, Factor, Localize, OpRule, Shape

_BY_SIZES = "aten.split_with_sizes.default"


def _with_shape(position: int) -> Localize:
    """Replace the shape argument at `position` by the result's local shape."""

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        return (*op.args[:position], results[0], *op.args[position + 1 :])

    return localize


@rule("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
def view(call: Call) -> OpRule:
    target = call.results[0]
    assert target is not None
    factors, left, right = reshape_dims(call.shapes[0], target)
    return OpRule(factors, (left,), (right,), "unary", _with_shape(1))


def _one_factor_a_dim(shape: Shape) -> tuple[tuple[Factor, ...], Dims]:
    index = {dim: k for k, dim in enumerate(d for d, size in enumerate(shape) if size != 1)}
    return (
        tuple(Factor(shape[dim]) for dim in index),
        tuple((index[dim],) if dim in index else () for dim in range(len(shape))),
    )


def _moved(
    call: Call, rearrange: Callable[[Dims], Dims], localize: Localize | None = None
) -> OpRule:
    factors, dims = _one_factor_a_dim(call.shapes[0])
    return OpRule(factors, (dims,), (rearrange(dims),), "unary", localize)


@rule("aten.t.default")
def t(call: Call) -> OpRule:
    return _moved(call, lambda dims: dims[::-1])


@rule("aten.transpose.int")
def transpose(call: Call) -> OpRule:
    rank = len(call.shapes[0])
    a, b = (normalise_dim(call.integer(k, f"dim{k - 1}"), rank) for k in (1, 2))

    def swap(dims: Dims) -> Dims:
        order = list(range(rank))
        order[a], order[b] = order[b], order[a]
        return tuple(dims[k] for k in order)

    return _moved(call, swap)


@rule("aten.permute.default")
def permute(call: Call) -> OpRule:
    rank = len(call.shapes[0])
    order = [normalise_dim(dim, rank) for dim in call.ints(1, "dims")]
    return _moved(call, lambda dims: tuple(dims[k] for k in order))


@rule("aten.unsqueeze.default")
def unsqueeze(call: Call) -> OpRule:
    dim = normalise_dim(call.integer(1, "dim"), len(call.shapes[0]) + 1)
    return _moved(call, lambda dims: (*dims[:dim], (), *dims[dim:]))


@rule("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(call: Call) -> OpRule:
    target = call.results[0]
    assert target is not None
    factors, left, right = reshape_dims(call.shapes[0], target)

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        # A dim that is of size 1 on this device alone must stay.
        assert results[0] is not None
        return (op.args[0], results[0])

    return OpRule(factors, (left,), (right,), "unary", localize, target="aten.view.default")


@rule("aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default")
def same(call: Call) -> OpRule:
    return _moved(call, lambda dims: dims)


@rule("aten.expand.default")
def expand(call: Call) -> OpRule:
    """New dims and dims of size 1 that grow are factors of the result alone.

    A pending sum does not pass: reducing before the expansion moves less.
    """
    source, target = call.shapes[0], call.results[0]
    assert target is not None
    factors, right = _one_factor_a_dim(target)
    shift = len(target) - len(source)
    left = tuple(right[dim + shift] if size != 1 else () for dim, size in enumerate(source))
    return OpRule(factors, (left,), (right,), "none", _with_shape(1))


@rule("aten.split.Tensor", "aten.unsafe_split.Tensor", "aten.chunk.default")
def split(call: Call) -> OpRule:
    """Equal parts: the dim is (part, within); every result holds `within`."""
    shape = call.shapes[0]
    dim = normalise_dim(call.integer(2, "dim"), len(shape))
    sizes = {result[dim] for result in call.results if result is not None}
    if len(sizes) != 1:
        return _parts(call, dim, None)
    return replace(_parts(call, dim, sizes.pop(), _sizes(dim)), target=_BY_SIZES)


def _sizes(dim: int) -> Localize:
    """Split by the parts' local sizes: a size alone can't say how many parts an empty dim has."""

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        return (op.args[0], tuple(shape[dim] for shape in results if shape is not None), dim)

    return localize


@rule("aten.split_with_sizes.default", "aten.unsafe_split_with_sizes.default")
def split_with_sizes(call: Call) -> OpRule:
    dim = normalise_dim(call.integer(2, "dim"), len(call.shapes[0]))
    sizes = set(call.ints(1, "split_sizes"))
    if len(sizes) != 1:
        return _parts(call, dim, None)
    return _parts(call, dim, sizes.pop(), _sizes(dim))


def _parts(call: Call, dim: int, part: int | None, localize: Localize | None = None) -> OpRule:
    """A tensor and pieces of it along `dim`, `part` long each; None: the dim can't be cut."""
    shape = call.shapes[0]
    factors, dims = _one_factor_a_dim(shape)
    whole: tuple[int, ...] = ()
    piece: tuple[int, ...] = ()
    if part is None or part == 0 or shape[dim] % part or shape[dim] == 1:
        kept = [*factors]
    else:
        kept = [*factors, Factor(shape[dim] // part, shardable=False), Factor(part)]
        whole = (len(factors),) if part == 1 else (len(factors), len(factors) + 1)
        piece = () if part == 1 else (len(factors) + 1,)
    left = (*dims[:dim], whole, *dims[dim + 1 :])
    right = (*dims[:dim], piece, *dims[dim + 1 :])
    results = tuple(None if result is None else right for result in call.results)
    return OpRule(tuple(kept), (left,), results, "unary", localize)


@rule("aten.cat.default")
def cat(call: Call) -> OpRule:
    """Equal parts: the result's dim is (part, within), as the inverse of split."""
    target = call.results[0]
    assert target is not None
    dim = normalise_dim(call.integer(1, "dim"), len(target))
    factors, dims = _one_factor_a_dim(target)
    sizes = {shape[dim] for shape in call.shapes}
    part = sizes.pop() if len(sizes) == 1 else None
    whole: tuple[int, ...] = ()
    piece: tuple[int, ...] = ()
    if part and part > 1:
        factors = (*factors, Factor(target[dim] // part, shardable=False), Factor(part))
        whole, piece = (len(factors) - 2, len(factors) - 1), (len(factors) - 1,)
        if target[dim] == part:
            whole = piece
    operand = (*dims[:dim], piece, *dims[dim + 1 :])
    result = (*dims[:dim], whole, *dims[dim + 1 :])
    return OpRule(factors, (operand,) * len(call.shapes), (result,), "joint")


@rule("aten.stack.default")
def stack(call: Call) -> OpRule:
    target = call.results[0]
    assert target is not None
    dim = normalise_dim(call.integer(1, "dim"), len(target))
    factors, dims = _one_factor_a_dim(call.shapes[0])
    result = (*dims[:dim], (), *dims[dim:])
    return OpRule(factors, (dims,) * len(call.shapes), (result,), "joint")


@rule("aten.unbind.int")
def unbind(call: Call) -> OpRule:
    shape = call.shapes[0]
    dim = normalise_dim(call.integer(1, "dim"), len(shape))
    factors, dims = _one_factor_a_dim(shape)
    left = (*dims[:dim], (), *dims[dim + 1 :])
    right = (*dims[:dim], *dims[dim + 1 :])
    return OpRule(factors, (left,), (right,) * len(call.results), "unary")


@rule("aten.select.int")
def select(call: Call) -> OpRule:
    shape = call.shapes[0]
    dim = normalise_dim(call.integer(1, "dim"), len(shape))
    factors, dims = _one_factor_a_dim(shape)
    left = (*dims[:dim], (), *dims[dim + 1 :])
    return OpRule(factors, (left,), ((*dims[:dim], *dims[dim + 1 :]),), "unary")


@rule("aten.select_backward.default")
def select_backward(call: Call) -> OpRule:
    target = call.results[0]
    assert target is not None
    dim = normalise_dim(call.integer(2, "dim"), len(target))
    factors, dims = _one_factor_a_dim(target)
    right = (*dims[:dim], (), *dims[dim + 1 :])
    return OpRule(factors, ((*dims[:dim], *dims[dim + 1 :]),), (right,), "unary", _with_shape(1))


@rule("aten.slice.Tensor")
def slice_(call: Call) -> OpRule:
    """A slice of one of several equal parts is cut within the part; others not along the dim."""
    shape, target = call.shapes[0], call.results[0]
    assert target is not None
    dim = normalise_dim(call.integer(1, "dim"), len(shape))
    start = call.arg(2, "start") or 0
    assert isinstance(start, int)
    start = max(0, normalise_dim(start, shape[dim]))
    part = target[dim]
    if part == shape[dim]:
        return _moved(call, lambda dims: dims, _slice_bounds(dim, 0, 1))
    if crops(shape, target, dim, call.integer(4, "step", 1)):
        return crop_rule(call, dim, backward=False)
    if call.integer(4, "step", 1) != 1 or part == 0 or start % part:
        return _parts(call, dim, None)
    return _parts(call, dim, part, _slice_bounds(dim, start // part, 1))


def _slice_bounds(dim: int, index: int, step: int) -> Localize:
    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        part = results[0][dim]
        return (op.args[0], dim, index * part, (index + 1) * part, step)

    return localize


@rule("aten.slice_backward.default")
def slice_backward(call: Call) -> OpRule:
    """slice_backward(grad, input_sizes, dim, start, end, step), the mirror image of slice."""
    shape, target = call.shapes[0], call.results[0]
    assert target is not None
    dim = normalise_dim(call.integer(2, "dim"), len(target))
    if shape[dim] != target[dim] and crops(target, shape, dim, call.integer(5, "step", 1)):
        return crop_rule(call, dim, backward=True)
    start, part = call.integer(3, "start"), shape[dim]
    start = max(0, normalise_dim(start, target[dim]))
    aligned = call.integer(5, "step", 1) == 1 and part > 1 and not start % part
    factors, dims = _one_factor_a_dim(target)
    whole: tuple[int, ...] = ()
    piece: tuple[int, ...] = ()
    if aligned and target[dim] % part == 0:
        factors = (*factors, Factor(target[dim] // part, shardable=False), Factor(part))
        piece = (len(factors) - 1,)
        whole = piece if target[dim] == part else (len(factors) - 2, len(factors) - 1)
    index = start // part if part else 0

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        if not piece:
            return (op.args[0], results[0], *op.args[2:])
        size = operands[0][dim]
        return (op.args[0], results[0], dim, index * size, (index + 1) * size, 1)

    left = (*dims[:dim], piece, *dims[dim + 1 :])
    right = (*dims[:dim], whole, *dims[dim + 1 :])
    return OpRule(factors, (left,), (right,), "unary", localize)


@rule("aten.repeat.default")
def repeat(call: Call) -> OpRule:
    """Only dims that are not repeated can be cut."""
    shape, target = call.shapes[0], call.results[0]
    assert target is not None
    times = call.ints(1, "repeats")
    shift = len(target) - len(shape)
    factors: list[Factor] = []
    left: list[tuple[int, ...]] = []
    right: list[tuple[int, ...]] = [()] * shift
    for dim, size in enumerate(shape):
        if times[dim + shift] == 1 and size != 1:
            left.append((len(factors),))
            right.append((len(factors),))
            factors.append(Factor(size))
        else:
            left.append(())
            right.append(())
    return OpRule(tuple(factors), (tuple(left),), (tuple(right),), "unary")


@rule("aten.flip.default")
def flip(call: Call) -> OpRule:
    shape = call.shapes[0]
    flipped = {normalise_dim(dim, len(shape)) for dim in call.ints(1, "dims")}
    factors, dims = _one_factor_a_dim(shape)
    kept = tuple(() if dim in flipped else dims[dim] for dim in range(len(shape)))
    return OpRule(factors, (kept,), (kept,), "unary")


@rule("aten.view_as_real.default")
def view_as_real(call: Call) -> OpRule:
    """Complex […] -> […, 2]."""
    return _moved(call, lambda dims: (*dims, ()))


@rule("aten.view_as_complex.default")
def view_as_complex(call: Call) -> OpRule:
    """[…, 2] -> complex […]."""
    target = call.results[0]
    assert target is not None
    factors, dims = _one_factor_a_dim(target)
    return OpRule(factors, ((*dims, ()),), (dims,), "unary")


@rule("aten._conj.default", "aten._conj_physical.default", "aten._neg_view.default")
def conj(call: Call) -> OpRule:
    """Conjugates and negates for real: a lazy one could not be sent to another device."""
    negative = call.op.target == "aten._neg_view.default"
    if not call.shapes:
        return _number(call, negative)

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        return op.args

    made = _moved(call, lambda dims: dims, localize)
    target = "aten.neg.default" if negative else "aten._conj_physical.default"
    return replace(made, target=target)


def _number(call: Call, negative: bool) -> OpRule:
    """Of a number that the model multiplies by, as the backward does with `2j * x`."""
    number = call.op.args[0]
    assert isinstance(number, (int, float, complex))
    made = -number if negative else number.conjugate()

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        return ((), made)

    return OpRule((), (), ((),), localize=localize, target="aten.full.default")


@rule("aten.slice_scatter.default", "aten.select_scatter.default")
def scatter_part(call: Call) -> OpRule:
    """(input, part, dim, …): the dim that the part is of stays whole."""
    shape = call.shapes[0]
    dim = normalise_dim(call.integer(2, "dim"), len(shape))
    factors, dims = _one_factor_a_dim(shape)
    whole = (*dims[:dim], (), *dims[dim + 1 :])
    selected = call.op.target == "aten.select_scatter.default"
    part = (*dims[:dim], *dims[dim + 1 :]) if selected else whole
    return OpRule(factors, (whole, part), (whole,), "joint")


@rule("aten.rot90.default")
def rot90(call: Call) -> OpRule:
    """The two dims that turn stay whole."""
    shape = call.shapes[0]
    turned = {normalise_dim(dim, len(shape)) for dim in call.ints(2, "dims", (0, 1))}
    factors, dims = _one_factor_a_dim(shape)
    kept = tuple(() if dim in turned else dims[dim] for dim in range(len(shape)))
    return OpRule(factors, (kept,), (kept,), "unary")


@rule("aten.as_strided.default", "aten.block_diag.default", "aten.resize_as.default",
      "aten.repeat_interleave.Tensor")  # fmt: skip
def nothing(call: Call) -> OpRule:
    """Elements move across all dims: operands are whole, and so is the result."""
    return OpRule(
        (),
        tuple(((),) * len(shape) for shape in call.shapes),
        tuple(None if shape is None else ((),) * len(shape) for shape in call.results),
        "joint" if call.op.target == "aten.block_diag.default" else "none",
    )


@rule("aten.glu.default")
def glu(call: Call) -> OpRule:
    """The dim that is halved is (half, within): its halves can be cut alike."""
    return _halved(call, 1)


@rule("aten.glu_backward.default")
def glu_backward(call: Call) -> OpRule:
    """(grad, input, dim) -> the input's gradient."""
    return _halved(call, 2)


def _halved(call: Call, position: int) -> OpRule:
    shape = call.shapes[-1]
    dim = normalise_dim(call.integer(position, "dim", -1), len(shape))
    factors, dims = _one_factor_a_dim(shape)
    kept = (*factors, Factor(2, shardable=False), Factor(shape[dim] // 2))
    inner = () if shape[dim] == 2 else (len(factors) + 1,)
    both = (*dims[:dim], (len(factors), *inner), *dims[dim + 1 :])
    half = (*dims[:dim], inner, *dims[dim + 1 :])
    if position == 1:
        return OpRule(kept, (both,), (half,))
    return OpRule(kept, (half, both), (both,))
