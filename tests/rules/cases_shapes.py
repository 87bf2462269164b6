"""Cases of views, indexing, Fourier transforms, linear algebra and what moves elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rules.rule_cases import aten, case, computed, n, normal, t, words


def c(*shape: int) -> Any:
    return lambda: torch.complex(normal(*shape), normal(*shape))


# Views and copies.
case("view_as_real.default", c(6, 5))
case("view_as_complex.default", t(6, 5, 2))
for name in words("_conj _conj_physical _neg_view"):
    case(f"{name}.default", c(6, 5))
case("slice_scatter.default", t(6, 5), t(2, 5), 0, 1, 3)
case("select_scatter.default", t(4, 6, 5), t(4, 5), 1, 2)
case("rot90.default", t(4, 6, 5), 1, [0, 2])
case("as_strided.default", t(6, 5), [3, 3], [1, 2])
case("block_diag.default", [t(2, 3), t(4, 1)])
case("resize_as.default", t(6, 5), t(6, 5))
case("repeat_interleave.Tensor", n(3, 6))
case("glu.default", t(6, 8), -1)
case("glu.default", t(6, 2), 1, note="halves of one")
case("glu_backward.default", t(6, 4), t(6, 8), -1)
for name in words("diagonal diagonal_copy"):
    case(f"{name}.default", t(4, 6, 5), 1, -2, -1)
case("diag_embed.default", t(4, 6), 0)
case("diagonal_backward.default", t(6, 4), [4, 6, 4], 0, 0, 2)
case("diagonal_scatter.default", t(4, 6, 4), t(6, 4), 0, 0, 2)
case("trace.default", t(6, 5))
for name in words("hann_window hamming_window blackman_window"):
    case(f"{name}.default", 6)
for name in words("hann_window hamming_window"):
    case(f"{name}.periodic", 6, False)
case("eye.m", 6, 5)
case("logspace.default", 0.0, 1.0, 6)
for name in words("tril triu"):
    case(f"{name}_indices.default", 4, 5)
case("new_empty_strided.default", t(6, 5), [6, 5], [1, 6])

# Windows, patches and sampling.
case("unfold.default", t(4, 7, 5), 1, 3, 2)
case("unfold_backward.default", t(4, 3, 5, 3), [4, 7, 5], 1, 3, 2)
case("im2col.default", t(4, 6, 5, 5), [2, 3], [1, 1], [0, 0], [1, 1])
case("im2col.default", t(6, 5, 5), [2, 3], [1, 1], [0, 0], [1, 1], note="one picture")
case("col2im.default", t(4, 36, 12), [5, 5], [2, 3], [1, 1], [0, 0], [1, 1])
case("pixel_shuffle.default", t(4, 12, 3, 5), 2)
case("pixel_unshuffle.default", t(4, 3, 6, 10), 2)
case("channel_shuffle.default", t(4, 6, 3, 3), 2)
case("affine_grid_generator.default", t(6, 2, 3), [6, 4, 3, 5], False)
case("affine_grid_generator.default", t(6, 3, 4), [6, 4, 3, 5, 2], True, note="volumes")


def _grid(rank: int) -> tuple[Tensor, Tensor]:
    return normal(4, 6, *(5, 4, 3)[:rank]), torch.rand(4, *(3, 6, 2)[:rank], rank) * 2 - 1


def _grid_backward(rank: int, mask: list[bool]) -> tuple[Any, ...]:
    x, grid = _grid(rank)
    out = getattr(aten, f"grid_sampler_{rank}d")(x, grid, 0, 0, False)
    return torch.randn_like(out), x, grid, 0, 0, False, mask


for rank in (2, 3):
    computed(f"grid_sampler_{rank}d.default", lambda rank=rank: (*_grid(rank), 0, 0, False))
    computed(
        f"grid_sampler_{rank}d_backward.default",
        lambda rank=rank: _grid_backward(rank, [True, True]),
    )


def _unpool(rank: int) -> tuple[Any, ...]:
    sizes = (6, 4, 4)[:rank]
    op = getattr(aten, f"max_pool{rank}d_with_indices")
    out, indices = op(normal(4, 6, *sizes), [2] * rank, [2] * rank)
    return (out, indices, sizes) if rank == 2 else (out, indices, sizes, [2] * rank, [0] * rank)


def _fractional(rank: int) -> tuple[Any, ...]:
    return normal(4, 6, *(7, 6, 5)[:rank]), [2] * rank, [3] * rank, torch.rand(4, 6, rank)


def _fractional_backward(rank: int) -> tuple[Any, ...]:
    x, window, sizes, samples = _fractional(rank)
    op = getattr(aten, f"fractional_max_pool{rank}d")
    out, indices = op(x, window, sizes, samples)
    return torch.randn_like(out), x, window, sizes, indices


for rank in (2, 3):
    computed(f"max_unpool{rank}d.default", lambda rank=rank: _unpool(rank))
    name = f"fractional_max_pool{rank}d"
    computed(f"{name}.default", lambda rank=rank: _fractional(rank))
    computed(f"{name}_backward.default", lambda rank=rank: _fractional_backward(rank))

# Fourier transforms.
case("_fft_r2c.default", t(4, 6, 5), [1], 0, True)
case("_fft_r2c.default", t(4, 6, 5), [0, 2], 1, False, note="two sides")
case("_fft_c2c.default", c(4, 6, 5), [1, 2], 2, True)
case("_fft_c2r.default", c(4, 6, 5), [2], 2, 8)


# Linear algebra.
def square(*batch: int) -> Tensor:
    x = normal(*batch, 3, 3)
    return x @ x.mT + 4 * torch.eye(3)


def matrices(*batch: int) -> Any:
    return lambda: square(*batch)


for name in words("""linalg_cholesky_ex linalg_inv_ex _linalg_det _linalg_slogdet _linalg_eigh
    _linalg_svd linalg_lu linalg_lu_factor_ex linalg_qr linalg_matrix_exp"""):
    case(f"{name}.default", matrices(4, 6))
case("linalg_eig.default", matrices(6))
case("_linalg_svd.default", matrices(6), False, False, note="values alone")


def _factors(op: Any) -> tuple[Any, ...]:
    return tuple(op(square(6))[:2])


computed("linalg_lu_solve.default",
         lambda: (*_factors(aten.linalg_lu_factor_ex), normal(6, 3, 2)))  # fmt: skip
computed("lu_unpack.default", lambda: _factors(aten.linalg_lu_factor_ex))
case("linalg_householder_product.default", t(6, 4, 3), t(6, 3))
case("cholesky_solve.default", t(6, 3, 2), lambda: torch.linalg.cholesky(square(6)))
case("cholesky_inverse.default", lambda: torch.linalg.cholesky(square(6)))
case("_linalg_solve_ex.default", matrices(6), t(6, 3, 2))
case("_linalg_solve_ex.default", matrices(6), t(6, 3), note="vectors")
case("linalg_pinv.default", matrices(6), 1e-5)
case("linalg_pinv.atol_rtol_float", matrices(6), rtol=1e-5)
case("linalg_pinv.atol_rtol_tensor", matrices(6))
case("linalg_solve_triangular.default", lambda: square(6).tril(), t(6, 3, 4), upper=False)
case("linalg_solve_triangular.default", lambda: square(6).tril(), t(6, 4, 3), upper=False,
     left=False, note="from the right")  # fmt: skip
case("linalg_cross.default", t(6, 3), t(6, 3))
case("linalg_cross.default", t(3, 6), t(3, 1), dim=0, note="first dim")


# Indexing along cut dims.
case("index.Tensor", t(4, 7, 5), [None, lambda: torch.tensor([-1, 0, 3, -7, 6])],
     note="from the end")  # fmt: skip
case("index_put.default", t(7, 5), [lambda: torch.tensor([4, 0, -1])], t(3, 5), False,
     note="distinct rows")  # fmt: skip
case("index_put.default", t(7, 5), [n(7, 8)], t(), True, note="one number, added")
case("index_select.default", t(7, 5), 0, n(7, 6), note="rows")
case("index_add.default", t(7, 5), 0, n(7, 8), t(8, 5), alpha=0.5, note="repeated")
case("index_fill.int_Scalar", t(7, 5), 0, lambda: torch.tensor([4, 0, 3]), 2.0)
case("index_fill.int_Tensor", t(7, 5), 0, lambda: torch.tensor([4, 0]), lambda: torch.tensor(2.0))
case("index_reduce.default", t(7, 5), 0, n(7, 8), t(8, 5), "amax")
case("gather.default", t(7, 5), 0, n(7, 4, 5), note="rows")
case("scatter.reduce", t(4, 6), 1, n(6, 4, 8), t(4, 8), reduce="add")
case("scatter.value_reduce", t(4, 6), 1, n(6, 4, 8), 0.5, reduce="multiply")
case("scatter_add.default", t(7, 5), 0, n(7, 6, 5), t(6, 5), note="rows")
case("scatter_reduce.two", t(7, 5), 0, n(7, 6, 5), t(6, 5), "amin", note="amin")
case("scatter_reduce.two", t(7, 5), 0, n(7, 6, 5), t(6, 5), "sum", note="sum")
case("scatter_reduce.two", t(7, 5), 0, n(7, 6, 5), t(6, 5), "mean", include_self=False,
     note="mean of what is written")  # fmt: skip
case("take.default", t(6, 5), n(30, 4, 6))
case("put.default", t(6, 5), n(30, 4), t(4), True)
