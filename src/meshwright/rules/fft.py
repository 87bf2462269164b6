"""Fourier transforms: transformed dims stay whole, all others pass."""

from __future__ import annotations

from meshwright.rules.build import einsum, letters, normalise_dim
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule


@rule("aten._fft_r2c.default", "aten._fft_c2c.default", "aten._fft_c2r.default")
def fft(call: Call) -> OpRule:
    """(input, dim, …): the last transformed dim changes its size between real and complex."""
    rank = len(call.shapes[0])
    dims = {normalise_dim(dim, rank) for dim in call.ints(1, "dim")}
    names = "".join("." if dim in dims else name for dim, name in enumerate(letters(rank)))
    return einsum(f"{names}->{names}", call.shapes, call.results, linear="unary")
