"""Which input rows the output rows of a window op need, one dim at a time.

Convolution and pooling in the terms of Dumoulin and Visin (2016, "A guide to
convolution arithmetic for deep learning"). A range is (first, past) in rows of
the whole dim and may reach into the padding.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshwright.layout.halo import Range
from meshwright.rules.registry import Call
from meshwright.rules.types import Dims, Factor, Localize, OpRule

Sizes = tuple[tuple[int, int], ...]  # of each spatial dim: of the input and of the output


@dataclass(frozen=True, slots=True)
class Window:
    """One dim of a convolution or pooling."""

    size: int  # of the input dim
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    transposed: bool = False

    @property
    def reach(self) -> int:
        """Rows that one window spans."""
        return self.dilation * (self.kernel - 1) + 1

    def reads(self, rows: Range) -> Range:
        """Input rows that output `rows` need, padding included; transposed, rows that exist."""
        first, past = rows
        if first >= past:
            return (0, 0)
        if not self.transposed:
            start = first * self.stride - self.padding
            return start, start + (past - 1 - first) * self.stride + self.reach
        # Input row i adds to the output rows from i * stride - padding on.
        low = -(-(first + self.padding - self.reach + 1) // self.stride)
        high = (past - 1 + self.padding) // self.stride + 1
        low, high = max(low, 0), min(high, self.size)
        return (low, high) if low < high else (0, 0)


def per_dim(numbers: tuple[int, ...], rank: int, default: int) -> tuple[int, ...]:
    """A kernel, stride… as PyTorch's ops take it: for every dim, one for all, or none given."""
    if not numbers:
        return (default,) * rank
    return numbers * rank if len(numbers) == 1 else numbers


def spatial_factors(
    first: int,
    sizes: Sizes,
    special: str,
    *,
    both: bool = False,
    plain: frozenset[int] = frozenset(),
) -> tuple[list[Factor], Dims, Dims]:
    """Ranged factors, numbered from `first`, with the input's and the output's dims.

    both: whether a dim of one input row or of one output row can be cut where
    the other side has more; the op then sums over it. Dims in `plain` meet no
    neighbours: each row of the output is made of the same row of the input.
    """
    factors: list[Factor] = []
    inner: list[tuple[int, ...]] = []
    outer: list[tuple[int, ...]] = []

    def add(size: int, leader: int | None = None) -> tuple[int, ...]:
        index = first + len(factors)
        ranged = index if leader is None else leader
        factors.append(Factor(size, "sum", special=special, ranged=ranged))
        return (index,)

    for position, (size, made) in enumerate(sizes):
        left: tuple[int, ...] = ()
        right: tuple[int, ...] = ()
        if size == made != 1 and position in plain:
            left = right = (first + len(factors),)
            factors.append(Factor(size, "sum"))
        elif 0 not in (size, made) and (min(size, made) > 1 or (both and size != made)):
            right = add(made) if made > 1 else ()
            if size == made:
                left = right
            elif size > 1:
                left = add(size, right[0] if right else None)
        inner.append(left)
        outer.append(right)
    return factors, tuple(inner), tuple(outer)


def spatial_rank(target: str) -> int:
    """Spatial dims of an op by its name, as in `aten.avg_pool2d.default`."""
    name = target.split(".")[1]
    return next(int(letter) for letter in name if letter.isdigit())


def spatial_rule(
    call: Call, operands: str, results: str, special: str, *,
    both: bool = False, localize: Localize | None = None,
) -> OpRule:  # fmt: skip
    """Of an op whose leading dims pass and whose spatial dims follow each other in ranges.

    `operands` and `results` have a letter for each tensor: `i` for one of the
    input's spatial sizes, `o` for one of the output's.
    """
    rank = spatial_rank(call.op.target)
    shapes = [*zip(operands, call.shapes, strict=True)]
    shapes += [
        (letter, shape)
        for letter, shape in zip(results, call.results, strict=True)
        if shape is not None
    ]
    inner = next(shape for letter, shape in shapes if letter == "i")
    outer = next(shape for letter, shape in shapes if letter == "o")
    lead = inner[: len(inner) - rank]
    factors = [Factor(size) for size in lead if size != 1]
    numbers = iter(range(len(factors)))
    leading: Dims = tuple((next(numbers),) if size != 1 else () for size in lead)
    sizes = tuple(zip(inner[len(lead) :], outer[len(lead) :], strict=True))
    more, left, right = spatial_factors(len(factors), sizes, special, both=both)
    dims = {"i": (*leading, *left), "o": (*leading, *right)}
    return OpRule(
        (*factors, *more),
        tuple(dims[letter] for letter in operands),
        tuple(
            None if shape is None else dims[letter]
            for letter, shape in zip(results, call.results, strict=True)
        ),
        localize=localize,
    )
