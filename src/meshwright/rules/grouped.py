"""Products of groups of rows, each with a matrix of its own (`torch._grouped_mm`)."""

from __future__ import annotations

from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Dims, Factor, OpRule

# The kernel wants rows that begin at multiples of so many bytes.
_ALIGNED = 16

# By the ranks of both operands: dims of the first, the second, the offsets and the result.
# `g` are the groups, `r` the rows that offsets, which are values, divide between them.
_FORMS = {
    (2, 3): ("rk", "gkj", "g", "rj"),
    (2, 2): ("ir", "rj", "g", "gij"),
    (3, 2): ("gik", "kr", "g", "ir"),
    (3, 3): ("gik", "gkj", "", "gij"),
}


@rule("aten._grouped_mm.default")
def grouped_mm(call: Call) -> OpRule:
    """(a, b, offsets): as many products as there are groups.

    Columns are cut, and what is summed over where it is not the grouped dim, at
    multiples of 16 bytes. Where offsets divide rows, which group a row is in is only
    known when the step runs: rows and groups stay whole. Without offsets the groups
    are a batch of products and can be cut.
    """
    a, b = call.shapes[:2]
    *operands, result = _FORMS[len(a), len(b)]
    operands = operands[: len(call.shapes)]
    sizes: dict[str, int] = {}
    for letters, shape in zip(operands, call.shapes, strict=True):
        sizes.update(zip(letters, shape, strict=True))
    first = call.values[next(call.op.operands())]
    step = _ALIGNED * first.numel // first.nbytes if first.numel else 1
    fixed = "gr" if "r" in sizes else ""
    factors: list[Factor] = []
    of: dict[str, tuple[int, ...]] = {}
    for letter, size in sizes.items():
        aligned = letter in "ijk" and size % step == 0 and size > step
        parts = (size // step, step) if aligned else (size,)
        free = letter not in fixed and (aligned or letter == "g")
        of[letter] = tuple(range(len(factors), len(factors) + len(parts)))
        factors += [
            Factor(
                part, combine=None if letter in result else "sum", shardable=free and position == 0
            )
            for position, part in enumerate(parts)
        ]

    def dims(letters: str) -> Dims:
        return tuple(of[letter] if sizes[letter] != 1 else () for letter in letters)

    return OpRule(tuple(factors), tuple(dims(item) for item in operands), (dims(result),))
