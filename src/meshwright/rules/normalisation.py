"""Layer, group and batch normalisation."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from meshwright.program.types import Argument, Op
from meshwright.rules.build import einsum, letters
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Dims, Factor, OpRule, Shape


def _special(normed: str, name: str) -> dict[str, str] | None:
    """Dims normalised together, as channels and rows of an image, can be cut beside each other.

    A single normalised dim, the width of a transformer, stays whole.
    """
    return dict.fromkeys(normed, name) if len(normed) > 1 else None


@rule("aten.native_layer_norm.default")
def layer_norm(call: Call) -> OpRule:
    """(input, normalized_shape, weight?, bias?, eps) -> (output, mean, rstd)."""
    rank, tail = len(call.shapes[0]), len(call.ints(1, "normalized_shape"))
    names = letters(rank)
    lead, normed = names[: rank - tail], names[rank - tail :]
    affine = [normed] * (len(call.shapes) - 1)
    statistics = lead + "." * tail
    special = _special(normed, "layer_norm")
    made = einsum(
        ",".join([names, *affine]) + f"->{names},{statistics},{statistics}",
        call.shapes,
        call.results,
        fixed="" if special else normed,
        special=special,
    )
    # The lowering reduces the statistics itself, so none of them is left pending.
    unreduced = frozenset((result, k) for result in (1, 2) for k in range(len(made.factors)))
    return replace(made, unreduced=unreduced if special else frozenset())


@rule("aten.native_layer_norm_backward.default")
def layer_norm_backward(call: Call) -> OpRule:
    """(grad, input, normalized_shape, mean, rstd, weight?, bias?, mask) -> three gradients."""
    rank, tail = len(call.shapes[0]), len(call.ints(2, "normalized_shape"))
    names = letters(rank)
    lead, normed = names[: rank - tail], names[rank - tail :]
    statistics = lead + "." * tail
    affine = [normed] * (len(call.shapes) - 4)
    special = _special(normed, "layer_norm_backward")
    return einsum(
        ",".join([names, names, statistics, statistics, *affine]) + f"->{names},{normed},{normed}",
        call.shapes,
        call.results,
        fixed="" if special else normed,
        special=special,
    )


def _groups(
    data: Shape, groups: int, special: str
) -> tuple[tuple[Factor, ...], Dims, Dims, tuple[int, ...]]:
    """Factors batch, group, channel within a group, spatial; dims of data, statistics, vectors.

    Whole groups are cut like anything that passes; statistics over cut spatial
    dims are reduced by the lowering `special`.
    """
    sizes = (data[0], groups, data[1] // groups, *data[2:])
    index = {k: n for n, k in enumerate(k for k, size in enumerate(sizes) if size != 1)}
    factors = tuple(
        Factor(sizes[k], "sum", shardable=k != 2, special=special if k > 2 else None) for k in index
    )

    def dim(*positions: int) -> tuple[int, ...]:
        return tuple(index[k] for k in positions if k in index)

    spatial = tuple(dim(k) for k in range(3, len(sizes)))
    return factors, (dim(0), dim(1, 2), *spatial), (dim(0), dim(1)), dim(1, 2)


@rule("aten.native_group_norm.default")
def group_norm(call: Call) -> OpRule:
    """(input, weight?, bias?, N, C, HxW, group, eps) -> (output, mean, rstd)."""
    within = call.shapes[0][1] // call.integer(6, "group")
    factors, data, statistics, vector = _groups(
        call.shapes[0], call.integer(6, "group"), "group_norm"
    )

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        n, channels, *rest = operands[0]
        return (*op.args[:3], n, channels, prod(rest), channels // within, *op.args[7:])

    # The lowering reduces the statistics itself, so none of them is left pending.
    unreduced = frozenset((result, k) for result in (1, 2) for k in range(len(factors)))
    return OpRule(
        factors,
        (data, *[(vector,)] * (len(call.shapes) - 1)),
        (data, statistics, statistics),
        localize=localize,
        unreduced=unreduced,
    )


@rule("aten.native_group_norm_backward.default")
def group_norm_backward(call: Call) -> OpRule:
    """(grad, input, mean, rstd, weight?, N, C, HxW, group, mask) -> three gradients."""
    within = call.shapes[0][1] // call.integer(8, "group")
    factors, data, statistics, vector = _groups(
        call.shapes[0], call.integer(8, "group"), "group_norm_backward"
    )

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        n, channels, *rest = operands[0]
        return (*op.args[:5], n, channels, prod(rest), channels // within, *op.args[9:])

    return OpRule(
        factors,
        (data, data, statistics, statistics, *[(vector,)] * (len(call.shapes) - 4)),
        (data, (vector,), (vector,)),
        localize=localize,
    )


@rule(
    "aten.native_batch_norm.default",
    "aten._native_batch_norm_legit.default",
    "aten._native_batch_norm_legit_functional.default",
    "aten._native_batch_norm_legit.no_stats",
    "aten._native_batch_norm_legit_no_training.default",
)
def batch_norm(call: Call) -> OpRule:
    """(input, weight?, bias?, running_mean?, running_var?, training, …) -> (output, statistics…).

    In training the statistics are those of the global batch: cutting any dim
    but the channels needs the lowering `batch_norm`.
    """
    rank = len(call.shapes[0])
    names = letters(rank)
    channel = names[1]
    others = names.replace(channel, "")
    special = dict.fromkeys(others, "batch_norm") if training(call) else None
    statistics = [
        channel if result is not None and len(result) == 1 and result[0] != 0 else "_"
        for result in call.results[1:]
    ]
    results = [call.results[0]] + [
        result if letter != "_" else None
        for result, letter in zip(call.results[1:], statistics, strict=True)
    ]
    text = ",".join([names, *[channel] * (len(call.shapes) - 1)])
    made = einsum(
        f"{text}->" + ",".join([names, *statistics]), call.shapes, results, special=special
    )
    empty = frozenset(
        (position, factor)
        for position in range(1, len(results))
        for factor in range(len(made.factors))
    )
    results_dims = tuple(
        ((),) * len(shape) if dims is None and shape is not None else dims
        for dims, shape in zip(made.results, call.results, strict=True)
    )
    # The lowering reduces the statistics itself, so none of them is left pending.
    return OpRule(made.factors, made.operands, results_dims, unreduced=empty)


def training(call: Call) -> bool:
    if "no_training" in call.op.target:
        return False
    position = 3 if call.op.target.endswith("no_stats") else 5
    return bool(call.arg(position, "training", False))


@rule("aten.native_batch_norm_backward.default")
def batch_norm_backward(call: Call) -> OpRule:
    """(grad, input, weight?, mean?, var?, save_mean?, save_invstd?, train, eps, mask)."""
    rank = len(call.shapes[0])
    names = letters(rank)
    channel = names[1]
    others = names.replace(channel, "")
    train = bool(call.arg(7, "train"))
    # In evaluation the saved statistics are empty.
    vectors = [channel if shape[0] else "." for shape in call.shapes[2:]]
    text = ",".join([names, names, *vectors])
    return einsum(
        f"{text}->{names},{channel},{channel}",
        call.shapes,
        call.results,
        special=dict.fromkeys(others, "batch_norm_backward") if train else None,
    )


def _weight_norm(call: Call, dim: int, forward: bool) -> OpRule:
    """Each slice along `dim` is scaled by its own norm: that dim passes, the others stay whole."""
    names = letters(len(call.shapes[0]))
    scale = "".join(name if position == dim else "." for position, name in enumerate(names))
    fixed = names.replace(names[dim], "")
    operands = [names, scale] if forward else [names, names, scale, scale]
    return einsum(",".join(operands) + f"->{names},{scale}", call.shapes, call.results, fixed=fixed)


@rule("aten._weight_norm_interface.default")
def weight_norm(call: Call) -> OpRule:
    """(direction, scale, dim) -> (weight, norms)."""
    return _weight_norm(call, call.integer(2, "dim"), True)


@rule("aten._weight_norm_interface_backward.default")
def weight_norm_backward(call: Call) -> OpRule:
    """(grad, direction, scale, norms, dim) -> gradients of direction and scale."""
    return _weight_norm(call, call.integer(4, "dim"), False)
