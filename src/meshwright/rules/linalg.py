"""Linear algebra on batches of matrices: batch dims pass, the matrices themselves stay whole."""

from __future__ import annotations

from meshwright.rules.build import einsum, letters, normalise_dim
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule, Shape

# For each op the number of trailing dims that belong to one matrix or vector: of its operands,
# then of its results.
_CORES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "aten.linalg_cholesky_ex.default": ((2,), (2, 0)),
    "aten.linalg_inv_ex.default": ((2,), (2, 0)),
    "aten._linalg_det.default": ((2,), (0, 2, 1)),
    "aten._linalg_slogdet.default": ((2,), (0, 0, 2, 1)),
    "aten._linalg_eigh.default": ((2,), (1, 2)),
    "aten.linalg_eig.default": ((2,), (1, 2)),
    "aten._linalg_svd.default": ((2,), (2, 1, 2)),
    "aten.linalg_lu.default": ((2,), (2, 2, 2)),
    "aten.linalg_lu_factor_ex.default": ((2,), (2, 1, 0)),
    "aten.linalg_lu_solve.default": ((2, 1, 2), (2,)),
    "aten.lu_unpack.default": ((2, 1), (2, 2, 2)),
    "aten.linalg_qr.default": ((2,), (2, 2)),
    "aten.linalg_matrix_exp.default": ((2,), (2,)),
    "aten.linalg_householder_product.default": ((2, 1), (2,)),
    "aten.cholesky_solve.default": ((2, 2), (2,)),
    "aten.cholesky_inverse.default": ((2,), (2,)),
    "aten._linalg_solve_ex.default": ((2, 2), (2, 2, 1, 0)),
}


def _batched(call: Call, operands: tuple[int, ...], results: tuple[int, ...]) -> OpRule:
    """Batch dims broadcast from the right; a result that is left out is empty and has none."""
    rank = max(len(shape) - core for shape, core in zip(call.shapes, operands, strict=True))
    batch = letters(rank)

    def names(shape: Shape, core: int) -> str:
        lead = len(shape) - core
        return (batch[rank - lead :] if lead > 0 else "") + "." * min(core, len(shape))

    left = ",".join(names(*pair) for pair in zip(call.shapes, operands, strict=True))
    right = ",".join(
        "_" if shape is None else "." * len(shape) if 0 in shape else names(shape, core)
        for shape, core in zip(call.results, results, strict=True)
    )
    return einsum(f"{left}->{right}", call.shapes, call.results)


@rule(*_CORES)
def batched(call: Call) -> OpRule:
    operands, results = _CORES[call.op.target]
    if call.op.target == "aten._linalg_solve_ex.default":
        left, right = call.shapes
        if len(right) == 1 or right == left[:-1]:
            operands, results = (2, 1), (1, 2, 1, 0)
    return _batched(call, operands, results)


@rule("aten.linalg_pinv.default", "aten.linalg_pinv.atol_rtol_float",
      "aten.linalg_pinv.atol_rtol_tensor")  # fmt: skip
def pinv(call: Call) -> OpRule:
    """(matrices, tolerances of one number a matrix or of one for all)."""
    return _batched(call, (2, *(0 for _ in call.shapes[1:])), (2,))


@rule("aten.linalg_solve_triangular.default")
def solve_triangular(call: Call) -> OpRule:
    """(A, B): on its free side, B is many systems that can be solved apart."""
    left, right = call.shapes
    target = call.results[0]
    assert target is not None
    batch = letters(len(target) - 2)
    known = batch[len(batch) - (len(left) - 2) :]
    sides = batch[len(batch) - (len(right) - 2) :]
    free = ".y" if dict(call.op.kwargs).get("left", True) else "y."
    return einsum(f"{known}..,{sides}{free}->{batch}{free}", call.shapes, call.results)


@rule("aten.linalg_cross.default")
def cross(call: Call) -> OpRule:
    """(a, b, *, dim): the dim of size 3 stays whole."""
    target = call.results[0]
    assert target is not None
    rank = len(target)
    dim = dict(call.op.kwargs).get("dim", -1)
    assert isinstance(dim, int)
    names = letters(rank)
    fixed = normalise_dim(dim, rank)
    names = names[:fixed] + "." + names[fixed + 1 :]
    operands = ",".join(names[rank - len(shape) :] for shape in call.shapes)
    return einsum(f"{operands}->{names}", call.shapes, call.results)


@rule("aten._cdist_forward.default", "aten._euclidean_dist.default")
def cdist(call: Call) -> OpRule:
    """(x1 [*, P, M], x2 [*, R, M]) -> [*, P, R]."""
    first, second, batch = _cdist_names(call)
    return einsum(f"{first}p.,{second}r.->{batch}pr", call.shapes, call.results)


def _cdist_names(call: Call) -> tuple[str, str, str]:
    target = call.results[0]
    assert target is not None
    batch = letters(len(target) - 2)
    shapes = call.shapes[-3:-1] if "backward" in call.op.target else call.shapes
    first, second = (batch[len(batch) - (len(shape) - 2) :] for shape in shapes)
    return first, second, batch


@rule("aten._cdist_backward.default")
def cdist_backward(call: Call) -> OpRule:
    """(grad [*, P, R], x1, x2, p, cdist [*, P, R]) -> [*, P, M], a sum over R."""
    first, second, batch = _cdist_names(call)
    return einsum(f"{batch}pr,{first}p.,{second}r.,{batch}pr->{batch}p.", call.shapes, call.results)


@rule("aten._pdist_forward.default", "aten._pdist_backward.default")
def pdist(call: Call) -> OpRule:
    """Distances of all pairs of rows: which pairs a device has would depend on all rows."""
    dots = ["." * len(shape) for shape in call.shapes]
    target = call.results[0]
    assert target is not None
    return einsum(",".join(dots) + "->" + "." * len(target), call.shapes, call.results)


@rule("aten._trilinear.default")
def trilinear(call: Call) -> OpRule:
    """(i1, i2, i3, expand1, expand2, expand3, sumdim, unroll_dim): a product summed over dims.

    Each operand lacks the dims that its `expand` lists; the result lacks `sumdim`.
    """
    missing = [call.ints(3 + k, f"expand{k + 1}") for k in range(3)]
    rank = len(call.shapes[0]) + len(missing[0])
    names = letters(rank)

    def without(dims: tuple[int, ...]) -> str:
        return "".join(name for dim, name in enumerate(names) if dim not in dims)

    operands = ",".join(without(dims) for dims in missing)
    return einsum(f"{operands}->{without(call.ints(6, 'sumdim'))}", call.shapes, call.results)
