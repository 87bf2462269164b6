"""Reductions over dims, and softmax, which is one followed by a pointwise op."""

from __future__ import annotations

from meshwright.layout.types import Reduce
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


@rule("aten.any.dim", "aten.any.default", "aten.any.dims", "aten.all.dim", "aten.all.default")
def any_(call: Call) -> OpRule:
    return _reduction(call, None)


@rule(
    "aten.var.correction",
    "aten.var_mean.correction",
    "aten.std.correction",
    "aten.argmax.default",
    "aten.argmin.default",
    "aten.max.dim",
    "aten.min.dim",
    "aten.logsumexp.default",
    "aten.linalg_vector_norm.default",
)
def whole(call: Call) -> OpRule:
    """Reductions that are no plain combination of terms: their dims stay whole."""
    rank = len(call.shapes[0])
    if call.op.target == "aten.linalg_vector_norm.default":
        dims, keepdim = call.ints(2, "dim"), call.arg(3, "keepdim", False)
    elif call.op.target.endswith("correction"):
        dims, keepdim = call.ints(1, "dim"), dict(call.op.kwargs).get("keepdim", False)
    else:
        return _reduction(call, None)
    over = [normalise_dim(dim, rank) for dim in dims] or list(range(rank))
    return _reduction(call, None, over=(over, bool(keepdim)))


@rule(
    "aten.cumsum.default", "aten.cumprod.default", "aten.sort.default", "aten.logcumsumexp.default"
)
def along_dim(call: Call) -> OpRule:
    """Ops along one dim that keeps its size and stays whole."""
    rank = len(call.shapes[0])
    dim = normalise_dim(call.integer(1, "dim", -1), rank) if rank else 0
    names = letters(rank)
    return einsum(
        f"{names}->" + ",".join([names] * len(call.results)),
        call.shapes,
        call.results,
        fixed=names[dim : dim + 1],
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
