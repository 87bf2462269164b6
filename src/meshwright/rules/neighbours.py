"""Ops in which neighbours along a dim meet: windows, patches, sampling, shuffles of pixels."""

from __future__ import annotations

from meshwright.program.types import Argument, Op
from meshwright.rules.build import einsum, letters, normalise_dim
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Factor, Localize, OpRule, Shape


def _shape_at(position: int) -> Localize:
    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        return (*op.args[:position], results[0], *op.args[position + 1 :])

    return localize


def _but(rank: int, dims: set[int]) -> str:
    return "".join("." if dim in dims else name for dim, name in enumerate(letters(rank)))


@rule("aten.unfold.default")
def unfold(call: Call) -> OpRule:
    """(input, dimension, size, step) -> […, windows, …, size]."""
    rank = len(call.shapes[0])
    names = _but(rank, {normalise_dim(call.integer(1, "dimension"), max(rank, 1))})
    return einsum(f"{names}->{names}.", call.shapes, call.results, linear="unary")


@rule("aten.unfold_backward.default")
def unfold_backward(call: Call) -> OpRule:
    """(grad, input_sizes, dim, size, step)."""
    rank = len(call.ints(1, "input_sizes"))
    names = _but(rank, {normalise_dim(call.integer(2, "dim"), max(rank, 1))})
    return einsum(
        f"{names}.->{names}", call.shapes, call.results, linear="unary", localize=_shape_at(1)
    )


@rule("aten.im2col.default")
def im2col(call: Call) -> OpRule:
    """([N, C, H, W], kernel…) -> [N, C * window, positions]; batch and channels pass."""
    return _columns(call, call.shapes[0], call.results[0], False)


@rule("aten.col2im.default")
def col2im(call: Call) -> OpRule:
    """([N, C * window, positions], output_size, kernel…) -> [N, C, H, W]."""
    return _columns(call, call.results[0], call.shapes[0], True)


def _columns(call: Call, image: Shape | None, columns: Shape | None, back: bool) -> OpRule:
    assert image is not None and columns is not None
    batched = len(image) == 4
    channels = image[1 if batched else 0]
    window = columns[1 if batched else 0] // channels
    sizes = [*([image[0]] if batched else []), channels, window]
    index: dict[int, int] = {}
    factors: list[Factor] = []
    for position, size in enumerate(sizes):
        if size != 1:
            index[position] = len(factors)
            factors.append(Factor(size, shardable=position != len(sizes) - 1))
    lead = [(index[0],) if 0 in index else ()] if batched else []
    c = 1 if batched else 0
    channel = (index[c],) if c in index else ()
    inner = (index[c + 1],) if c + 1 in index else ()
    left = (*lead, channel, (), ())
    right = (*lead, (*channel, *inner), ())
    first, second = (right, left) if back else (left, right)
    return OpRule(tuple(factors), (first,), (second,), "unary")


@rule("aten.pixel_shuffle.default", "aten.pixel_unshuffle.default")
def pixel_shuffle(call: Call) -> OpRule:
    """[…, (c r s), h, w] <-> […, c, (h r), (w s)]."""
    small, large = call.shapes[0], call.results[0]
    assert large is not None
    back = call.op.target == "aten.pixel_unshuffle.default"
    if back:
        small, large = large, small
    by = call.integer(1, "downscale_factor" if back else "upscale_factor")
    sizes = [*large[:-3], large[-3], by, by, small[-2], small[-1]]
    index = {k: n for n, k in enumerate(k for k, size in enumerate(sizes) if size != 1)}
    rank = len(large) - 3

    def dim(*positions: int) -> tuple[int, ...]:
        return tuple(index[k] for k in positions if k in index)

    lead = tuple(dim(k) for k in range(rank))
    c, r, s, h, w = range(rank, rank + 5)
    packed = (*lead, dim(c, r, s), dim(h), dim(w))
    spread = (*lead, dim(c), dim(h, r), dim(w, s))
    factors = tuple(Factor(sizes[k], shardable=k not in (r, s)) for k in index)
    first, second = (spread, packed) if back else (packed, spread)
    return OpRule(factors, (first,), (second,), "unary")


@rule("aten.channel_shuffle.default")
def channel_shuffle(call: Call) -> OpRule:
    """[N, (g k), …] -> [N, (k g), …]: channels stay whole."""
    names = _but(len(call.shapes[0]), {1})
    return einsum(f"{names}->{names}", call.shapes, call.results, linear="unary")


@rule("aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(call: Call) -> OpRule:
    """(input [N, C, …], grid [N, …out, rank]): output positions pass, the picture stays whole."""
    rank = len(call.shapes[0]) - 2
    out, dots = letters(rank, "p"), "." * rank
    return einsum(f"nc{dots},n{out}.->nc{out}", call.shapes, call.results)


@rule("aten.grid_sampler_2d_backward.default", "aten.grid_sampler_3d_backward.default")
def grid_sampler_backward(call: Call) -> OpRule:
    """(grad, input, grid, …) -> (input's, a sum over output positions; grid's, over channels)."""
    rank = len(call.shapes[1]) - 2
    out, dots = letters(rank, "p"), "." * rank
    results = [
        "_" if shape is None else text
        for text, shape in zip((f"nc{dots}", f"n{out}."), call.results, strict=True)
    ]
    return einsum(f"nc{out},nc{dots},n{out}.->" + ",".join(results), call.shapes, call.results)


@rule("aten.max_unpool2d.default", "aten.max_unpool3d.default")
def max_unpool(call: Call) -> OpRule:
    """(input, indices, output_size, …): positions count within one picture; all before it pass."""
    rank = 2 if "2d" in call.op.target else 3
    lead = len(call.shapes[0]) - rank
    names = letters(lead) + "." * rank
    return einsum(f"{names},{names}->{names}", call.shapes, call.results)


@rule("aten.fractional_max_pool2d.default", "aten.fractional_max_pool3d.default")
def fractional_max_pool(call: Call) -> OpRule:
    """(input, kernel, output_size, samples [N, C, rank]) -> (output, indices)."""
    rank = 2 if "2d" in call.op.target else 3
    names = ("nc" if len(call.shapes[0]) == rank + 2 else "c") + "." * rank
    samples = "nc." if call.shapes[1][0] == call.shapes[0][0] and names[0] == "n" else ".c."
    return einsum(f"{names},{samples}->{names},{names}", call.shapes, call.results)


@rule("aten.fractional_max_pool2d_backward.default",
      "aten.fractional_max_pool3d_backward.default")  # fmt: skip
def fractional_max_pool_backward(call: Call) -> OpRule:
    """(grad, input, kernel, output_size, indices)."""
    rank = 2 if "2d" in call.op.target else 3
    names = ("nc" if len(call.shapes[1]) == rank + 2 else "c") + "." * rank
    return einsum(f"{names},{names},{names}->{names}", call.shapes, call.results)


@rule("aten.affine_grid_generator.default")
def affine_grid(call: Call) -> OpRule:
    """(theta [N, r, r + 1], size, align_corners) -> [N, …, r]; the grid itself stays whole."""
    target = call.results[0]
    assert target is not None

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        size = op.args[1]
        assert isinstance(size, tuple) and results[0] is not None
        return (op.args[0], (results[0][0], *size[1:]), *op.args[2:])

    dots = "." * (len(target) - 1)
    return einsum(f"n..->n{dots}", call.shapes, call.results, localize=localize)
