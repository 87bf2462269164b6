"""Diagonals: the dims of the matrix stay whole, all others pass."""

from __future__ import annotations

from meshwright.program.types import Argument, Op
from meshwright.rules.build import einsum, letters, normalise_dim
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Localize, OpRule, Shape


def _matrix(call: Call, rank: int, position: int, first: int, second: int) -> tuple[str, str]:
    """Letters of a tensor of `rank` whose dim1 and dim2 are the matrix, and of its diagonals.

    `position` is where `dim1` stands among the arguments; `first` and `second` are defaults.
    """
    dims = {
        normalise_dim(call.integer(position + k, f"dim{k + 1}", default), rank)
        for k, default in enumerate((first, second))
    }
    names = letters(rank)
    kept = "".join(name for dim, name in enumerate(names) if dim not in dims)
    whole = "".join("." if dim in dims else name for dim, name in enumerate(names))
    return whole, f"{kept}."


@rule("aten.diagonal.default", "aten.diagonal_copy.default")
def diagonal(call: Call) -> OpRule:
    """(input, offset, dim1, dim2) -> the diagonals, as a last dim."""
    whole, line = _matrix(call, len(call.shapes[0]), 2, 0, 1)
    return einsum(f"{whole}->{line}", call.shapes, call.results, linear="unary")


@rule("aten.diag_embed.default")
def diag_embed(call: Call) -> OpRule:
    """(diagonals, offset, dim1, dim2) -> matrices."""
    whole, line = _matrix(call, len(call.shapes[0]) + 1, 2, -2, -1)
    return einsum(f"{line}->{whole}", call.shapes, call.results, linear="unary")


@rule("aten.diagonal_backward.default")
def diagonal_backward(call: Call) -> OpRule:
    """(grad, input_sizes, offset, dim1, dim2) -> matrices."""
    whole, line = _matrix(call, len(call.ints(1, "input_sizes")), 3, 0, 1)
    return einsum(f"{line}->{whole}", call.shapes, call.results, linear="unary", localize=_sizes(1))


def _sizes(position: int) -> Localize:
    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        return (*op.args[:position], results[0], *op.args[position + 1 :])

    return localize


@rule("aten.diagonal_scatter.default")
def diagonal_scatter(call: Call) -> OpRule:
    """(input, diagonals, offset, dim1, dim2) -> input with other diagonals."""
    whole, line = _matrix(call, len(call.shapes[0]), 3, 0, 1)
    return einsum(f"{whole},{line}->{whole}", call.shapes, call.results, linear="joint")


@rule("aten.trace.default")
def trace(call: Call) -> OpRule:
    return einsum("..->", call.shapes, call.results, linear="unary")
