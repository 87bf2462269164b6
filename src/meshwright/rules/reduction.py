"""Reductions over dims, and softmax, which is one followed by a pointwise op."""

from __future__ import annotations

from dataclasses import replace

from meshwright.layout.types import Reduce
from meshwright.program.types import Argument
from meshwright.rules.build import einsum, letters, normalise_dim
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Linearity, OpRule


def _reduced_dims(call: Call) -> tuple[list[int], bool]:
    rank = len(call.shapes[0])
    if call.op.target.endswith(".default") and len(call.op.args) < 2:
        return list(range(rank)), False
    dims = [normalise_dim(dim, rank) for dim in call.ints(1, "dim")] or list(range(rank))
    return dims, bool(call.arg(2, "keepdim", False))


def _reduction(
    call: Call,
    combine: Reduce | None,
    special: str | None = None,
    linear: Linearity = "none",
    over: tuple[list[int], bool] | None = None,
) -> OpRule:
    """`combine` None: the reduced dims can't be cut. `over`: those dims and keepdim, if given."""
    rank = len(call.shapes[0])
    dims, keepdim = over if over is not None else _reduced_dims(call)
    names = letters(rank)
    reduced = "".join(names[dim] for dim in dims)
    result = "".join(("." if keepdim else "") if name in reduced else name for name in names)
    return einsum(
        f"{names}->" + ",".join([result] * len(call.results)),
        call.shapes,
        call.results,
        combine=dict.fromkeys(reduced, combine or "sum"),
        fixed="" if combine else reduced,
        special=dict.fromkeys(reduced, special) if special else None,
        linear=linear,
    )


@rule("aten.sum.default", "aten.sum.dim_IntList")
def sum_(call: Call) -> OpRule:
    return _reduction(call, "sum", linear="unary")


@rule("aten.mean.default", "aten.mean.dim")
def mean(call: Call) -> OpRule:
    """A mean over a cut dim divides by the global count: see the lowering `global_mean`."""
    return _reduction(call, "sum", special="global_mean")


@rule("aten.amax.default", "aten.max.default")
def amax(call: Call) -> OpRule:
    return _reduction(call, "max")


@rule("aten.amin.default", "aten.min.default")
def amin(call: Call) -> OpRule:
    return _reduction(call, "min")


@rule("aten.prod.default", "aten.prod.dim_int")
def prod(call: Call) -> OpRule:
    return _reduction(call, "prod")


@rule("aten.nansum.default", "aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")
def counted(call: Call) -> OpRule:
    return _reduction(call, "sum", over=_over(call, call.ints(1, "dim"), call.arg(2, "keepdim")))


@rule("aten.any.dim", "aten.any.default", "aten.any.dims")
def any_(call: Call) -> OpRule:
    return _reduction(call, "max")


@rule("aten.all.dim", "aten.all.default", "aten.all.dims")
def all_(call: Call) -> OpRule:
    return _reduction(call, "min")


def _over(call: Call, dims: tuple[int, ...], keepdim: Argument) -> tuple[list[int], bool]:
    rank = len(call.shapes[0])
    return [normalise_dim(dim, rank) for dim in dims] or list(range(rank)), bool(keepdim)


@rule(
    "aten.var.correction",
    "aten.var_mean.correction",
    "aten.std.correction",
    "aten.std_mean.correction",
)
def variance(call: Call) -> OpRule:
    """(input, dim, *, correction, keepdim): about the mean of the whole dims."""
    over = _over(call, call.ints(1, "dim"), dict(call.op.kwargs).get("keepdim", False))
    return _settled(_reduction(call, "sum", special="variance_across", over=over))


@rule("aten.linalg_vector_norm.default")
def vector_norm(call: Call) -> OpRule:
    """(input, ord, dim, keepdim): powers are summed over a cut dim, then the root is taken."""
    over = _over(call, call.ints(2, "dim"), call.arg(3, "keepdim", False))
    return _settled(_reduction(call, "sum", special="norm_across", over=over))


@rule("aten.norm.Scalar", "aten.norm.ScalarOpt_dim", "aten.norm.ScalarOpt_dtype",
      "aten.norm.ScalarOpt_dim_dtype")  # fmt: skip
def norm(call: Call) -> OpRule:
    """(input, p, dim, keepdim), dims left out for all of them."""
    over = _over(call, call.ints(2, "dim"), call.arg(3, "keepdim", False))
    return _settled(_reduction(call, "sum", special="norm_across", over=over))


@rule("aten.logsumexp.default")
def logsumexp(call: Call) -> OpRule:
    return _settled(_reduction(call, "sum", special="logsumexp_across"))


@rule("aten.argmax.default", "aten.argmin.default", "aten.max.dim", "aten.min.dim")
def extreme(call: Call) -> OpRule:
    """Where a maximum is: over a cut dim, first its value is reduced, then its position.

    Over all dims at once, positions count in the whole tensor, so those stay whole.
    """
    if call.op.target in _POSITIONS and not call.ints(1, "dim"):
        return _reduction(call, None)
    return _settled(_reduction(call, "sum", special="extreme_across"))


_POSITIONS = ("aten.argmax.default", "aten.argmin.default")


def _settled(made: OpRule) -> OpRule:
    """The same rule where the lowering reduces on its own: nothing is left pending."""
    pairs = frozenset((r, f) for r in range(len(made.results)) for f in range(len(made.factors)))
    return replace(
        made, unreduced=frozenset((r, f) for r, f in pairs if made.factors[f].combine is not None)
    )


@rule("aten.aminmax.default", "aten.dist.default")
def whole(call: Call) -> OpRule:
    """Reductions that are no plain combination of terms: their dims stay whole."""
    options = dict(call.op.kwargs)
    dim = options.get("dim")
    rank = len(call.shapes[0])
    if call.op.target == "aten.aminmax.default" and isinstance(dim, int):
        over = ([normalise_dim(dim, rank)], bool(options.get("keepdim", False)))
        return _reduction(call, None, over=over)
    return OpRule(
        (),
        tuple(((),) * len(shape) for shape in call.shapes),
        tuple(None if shape is None else ((),) * len(shape) for shape in call.results),
    )


@rule("aten.renorm.default")
def renorm(call: Call) -> OpRule:
    """(input, p, dim, maxnorm): each slice of `dim` is whole, the slices are apart."""
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(2, "dim"), rank)
    names = "".join(name if k == dim else "." for k, name in enumerate(letters(rank)))
    return einsum(f"{names}->{names}", call.shapes, call.results)


@rule("aten.cumsum.default", "aten.cumprod.default", "aten.logcumsumexp.default")
def scan(call: Call) -> OpRule:
    """(input, dim): over a cut dim each device needs the totals of those before it."""
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(1, "dim"), rank) if rank else 0
    names = letters(rank)
    special = dict.fromkeys(names[dim : dim + 1], "scan_across")
    return einsum(f"{names}->{names}", call.shapes, call.results, special=special)


@rule("aten.cummax.default", "aten.cummin.default")
def running_extreme(call: Call) -> OpRule:
    """(input, dim) -> values, positions in the whole dim."""
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(1, "dim"), rank) if rank else 0
    names = letters(rank)
    return einsum(
        f"{names}->{names},{names}", call.shapes, call.results, fixed=names[dim : dim + 1]
    )


@rule("aten._softmax.default", "aten._log_softmax.default")
def softmax(call: Call) -> OpRule:
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(1, "dim"), rank)
    names = letters(rank)
    special = {names[dim]: "softmax_across"} if rank else {}
    return einsum(f"{names}->{names}", call.shapes, call.results, special=special)


@rule("aten._safe_softmax.default")
def safe_softmax(call: Call) -> OpRule:
    """Softmax that gives zeros for a row of -inf; its dim stays whole."""
    rank = len(call.shapes[0])
    names = letters(rank)
    dim = normalise_dim(call.integer(1, "dim"), rank)
    return einsum(f"{names}->{names}", call.shapes, call.results, fixed=names[dim : dim + 1])


@rule("aten._softmax_backward_data.default", "aten._log_softmax_backward_data.default")
def softmax_backward(call: Call) -> OpRule:
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(2, "dim"), rank)
    names = letters(rank)
    special = {names[dim]: "softmax_backward_across"} if rank else {}
    return einsum(f"{names},{names}->{names}", call.shapes, call.results, special=special)
