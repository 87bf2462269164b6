"""Helpers that write rules: from einsum-like text, for broadcasting, for views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshwright.layout.types import Reduce
from meshwright.rules.types import Dim, Dims, Factor, Linearity, Localize, OpRule, Shape


def einsum(
    text: str,
    operands: Sequence[Shape],
    results: Sequence[Shape | None],
    *,
    combine: Mapping[str, Reduce] | None = None,
    fixed: str = "",
    special: Mapping[str, str] | None = None,
    linear: Linearity = "none",
    localize: Localize | None = None,
) -> OpRule:
    """A rule from text such as `ik,kj->ij`, one letter a dim and factor.

    A factor that a result lacks is a sum unless `combine` says otherwise;
    letters in `fixed` can't be cut; `special` names the lowering a letter needs.
    Dims of size 1 hold no factor, so that broadcasting needs no care. `.` is a
    dim that belongs to no factor at all; `_` in place of a result's letters
    stands for an output that PyTorch leaves out.
    """
    left, right = text.replace(" ", "").split("->")
    sizes: dict[str, int] = {}
    named = [*zip(left.split(",") if left or operands else (), operands, strict=True)]
    produced = [*zip(right.split(","), results, strict=True)]
    for letters, shape in (*named, *produced):
        if shape is None or letters == "_":
            continue
        if len(letters) != len(shape):
            raise ValueError(f"rule '{text}' has {letters!r} for a tensor of shape {shape}")
        for letter, size in zip(letters, shape, strict=True):
            if letter != "." and size != 1 and sizes.setdefault(letter, size) != size:
                raise ValueError(f"rule '{text}': sizes {sizes[letter]} and {size} for '{letter}'")
    index = {letter: position for position, letter in enumerate(sizes)}

    def dims(letters: str, shape: Shape) -> Dims:
        return tuple(
            (index[letter],) if size != 1 and letter in index else ()
            for letter, size in zip(letters, shape, strict=True)
        )

    shown = [set(letters) for letters, shape in produced if shape is not None and letters != "_"]
    factors = tuple(
        Factor(
            size,
            combine=(combine or {}).get(letter, "sum")
            if any(letter not in letters for letters in shown)
            else None,
            shardable=letter not in fixed,
            special=(special or {}).get(letter),
        )
        for letter, size in sizes.items()
    )
    return OpRule(
        factors,
        tuple(dims(letters, shape) for letters, shape in named),
        tuple(
            None if shape is None or letters == "_" else dims(letters, shape)
            for letters, shape in produced
        ),
        linear,
        localize,
    )


def broadcast(
    operands: Sequence[Shape],
    results: Sequence[Shape | None],
    linear: Linearity = "none",
    localize: Localize | None = None,
) -> OpRule:
    """The rule of a pointwise op: dims aligned from the right, as PyTorch broadcasts."""
    shape = next(result for result in results if result is not None)
    rank = len(shape)
    index: dict[int, int] = {}
    for dim, size in enumerate(shape):
        if size != 1:
            index[dim] = len(index)

    def dims(other: Shape) -> Dims:
        shift = rank - len(other)
        return tuple(
            (index[dim + shift],) if size != 1 and dim + shift in index else ()
            for dim, size in enumerate(other)
        )

    return OpRule(
        tuple(Factor(shape[dim]) for dim in index),
        tuple(dims(other) for other in operands),
        tuple(None if other is None else dims(other) for other in results),
        linear,
        localize,
    )


def reshape_dims(source: Shape, target: Shape) -> tuple[tuple[Factor, ...], Dims, Dims]:
    """Factors that `source` and `target` share when one is a reshape of the other.

    Both shapes are walked from the outermost dim; wherever their running
    products meet, a factor ends. Where they never meet in a divisor
    (`[6, 4] -> [4, 6]`) the whole stretch is one dim's worth of fixed factors.
    """
    if 0 in source or 0 in target:
        return (), ((),) * len(source), ((),) * len(target)
    factors: list[Factor] = []
    left: list[list[int]] = [[] for _ in source]
    right: list[list[int]] = [[] for _ in target]
    i = j = 0
    a = source[0] if source else 1
    b = target[0] if target else 1
    while i < len(source) and j < len(target):
        if a == 1:
            i += 1
            a = source[i] if i < len(source) else 1
            continue
        if b == 1:
            j += 1
            b = target[j] if j < len(target) else 1
            continue
        small = min(a, b)
        if a % small or b % small:
            i, j, a, b = _skip_irregular(source, target, i, j, a, b)
            continue
        left[i].append(len(factors))
        right[j].append(len(factors))
        factors.append(Factor(small))
        a //= small
        b //= small
    return tuple(factors), tuple(map(tuple, left)), tuple(map(tuple, right))


def _skip_irregular(
    source: Shape, target: Shape, i: int, j: int, a: int, b: int
) -> tuple[int, int, int, int]:
    """Advance past a stretch whose two factorisations have no common refinement.

    The dims inside hold no factor, hence are never cut.
    """
    x, y = a, b
    while x != y:
        if x < y:
            i += 1
            x *= source[i]
        else:
            j += 1
            y *= target[j]
    i, j = i + 1, j + 1
    return i, j, source[i] if i < len(source) else 1, target[j] if j < len(target) else 1


def letters(count: int, start: str = "a") -> str:
    """`count` consecutive letters for einsum-like text."""
    return "".join(chr(ord(start) + k) for k in range(count))


def normalise_dim(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def without_dims(dims: Dims, dropped: Sequence[int]) -> Dims:
    return tuple(dim for position, dim in enumerate(dims) if position not in dropped)


__all__ = ["Dim", "broadcast", "einsum", "letters", "normalise_dim", "reshape_dims", "without_dims"]
