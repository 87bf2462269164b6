"""Factor rules: the index space of an op, after Shardy's `op_sharding_rule` and einsum.

A rule names the factors of one op and says, for every dim of every operand
and result, which factors it is made of, outermost first. `mm` is
`[i,k],[k,j] -> [i,j]`; a view that merges two dims is `[b,s,h] -> [(b s),h]`.
Cutting a factor cuts every dim that holds it. A factor that no result holds
is a reduction: cutting it leaves each device with one term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from meshwright.layout.types import Reduce, Split
from meshwright.program.types import Argument, Op

Dim = tuple[int, ...]  # factors of one dim, outermost first; empty when of size 1
Dims = tuple[Dim, ...]
Shape = tuple[int, ...]

Linearity = Literal["none", "unary", "joint"]
"""Which pending sums pass through the op: none; that of its first operand when
the op is linear in it; or those of all operands together, as in an addition."""


@dataclass(frozen=True, slots=True)
class Factor:
    """One index of an op's index space.

    combine: how terms are combined when no result holds the factor.
    shardable: False when cutting it would change the numbers.
    special: name of the lowering that the op needs when this factor is cut,
        None when the op on local shapes is already right.
    ranged: the factor that this one is cut along with, itself for the one that
        leads. Such dims, as a convolution's input rows and output rows, differ
        in size; each is cut where `torch.chunk` cuts it, and the special
        lowering finds out which rows of one belong to those of the other.
    """

    size: int
    combine: Reduce | None = None
    shardable: bool = True
    special: str | None = None
    ranged: int | None = None


@dataclass(frozen=True, slots=True)
class FactorCut:
    """A cut of one factor, viewed as [outer, extent, minor]."""

    factor: int
    outer: int
    extent: int
    shift: int = 0  # as of Split


Localize = Callable[[Op, tuple[Shape, ...], tuple[Shape | None, ...]], tuple[Argument, ...]]
"""(op, local operand shapes, local result shapes) -> positional arguments on local shapes."""


@dataclass(frozen=True, slots=True)
class OpRule:
    """The rule of one op at its concrete shapes; operands in `Op.operands()` order.

    `unreduced` holds (result, factor) pairs where the result neither holds nor
    sums over the factor, as a convolution's bias gradient and input channels.
    `target` names the op to run on local shapes where it is not the same one.
    `follows` is the operand whose layout alone decides how the op is cut, as a
    backward that needs what its forward kept on the same device. `origin` says
    where a rule comes from that is not one of Meshwright's own.
    `linear_operands` are those that a "joint" op is linear in, all when None.
    """

    factors: tuple[Factor, ...]
    operands: tuple[Dims, ...]
    results: tuple[Dims | None, ...]
    linear: Linearity = "none"
    localize: Localize | None = None
    unreduced: frozenset[tuple[int, int]] = frozenset()
    target: str | None = None
    follows: int | None = None
    origin: str = ""
    linear_operands: tuple[int, ...] | None = None

    def to_factor(self, dims: Dims, split: Split, parts: int | None = None) -> FactorCut | None:
        """The factor cut that `split` of a tensor with `dims` amounts to, None if it is none.

        A split across several factors is one of the outermost alone when
        `parts` devices cut both at the same places.
        """
        before = 1
        for factor in dims[split.dim]:
            size = self.factors[factor].size
            leader = self.factors[factor].ranged
            if leader is not None:
                even = bool(parts) and split.extent % (parts or 1) == 0
                if split.outer != 1 or not (split.extent == size or even):
                    return None
                return FactorCut(leader, 1, self.factors[leader].size)
            if split.outer % before == 0 and split.outer < before * size:
                outer = split.outer // before
                if size % outer:
                    return None
                rest = size // outer
                if rest % split.extent == 0:
                    return FactorCut(factor, outer, split.extent, split.shift)
                if parts and split.extent % rest == 0 and rest % parts == 0:
                    return FactorCut(factor, outer, rest, split.shift)
                return None
            before *= size
        return None

    def to_split(self, dims: Dims, cut: FactorCut) -> Split | None:
        """Where `cut` falls on a tensor with `dims`; None when the tensor lacks the factor."""
        for dim, factors in enumerate(dims):
            before = 1
            for factor in factors:
                if self.factors[factor].ranged == cut.factor:
                    return Split(dim, 1, self.factors[factor].size)
                if factor == cut.factor:
                    return Split(dim, before * cut.outer, cut.extent, cut.shift)
                before *= self.factors[factor].size
        return None

    def reduces(self, result: int, factor: int) -> bool:
        """Whether `result` sums (or maximises…) over `factor`."""
        dims = self.results[result]
        return (
            self.factors[factor].combine is not None
            and (result, factor) not in self.unreduced
            and not any(
                factor in (held, self.factors[held].ranged) for dim in dims or () for held in dim
            )
        )
