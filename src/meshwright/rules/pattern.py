"""Rules as text with named factors: `[b,s,h],[h] -> [b,s,h]` or `b s h, h -> b s h`.

A Pattern says which factors the dims of each operand and result are made of,
by name and without sizes, so that one holds for all shapes of an op. Rules that
users register and rules that probing finds are Patterns; `Pattern.rule` turns
one into an OpRule at concrete shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from meshwright.layout.types import Reduce
from meshwright.program.types import Argument, Op
from meshwright.rules.types import Dims, Factor, Linearity, Localize, OpRule, Shape

Names = tuple[tuple[str, ...], ...]  # of one tensor: for each dim its factors, outermost first
Place = tuple[int, int | None]  # a positional argument, and which item of it where it is a list

_NAME = re.compile(r"[A-Za-z]\w*")
_WHOLE_DIM = frozenset({".", "1"})


class PatternError(ValueError):
    """A text that is no pattern, or a pattern that does not fit an op."""


@dataclass(frozen=True)
class Pattern:
    """combine: how results that lack a factor combine the terms of its parts; sum where it is
    not named. unreduced: (result, factor) of results that are the same on every part.
    sizes: positional arguments that hold the size of a factor.
    """

    operands: tuple[Names, ...]
    results: tuple[Names | None, ...]
    combine: Mapping[str, Reduce]
    fixed: frozenset[str] = frozenset()
    linear: Linearity = "none"
    sizes: tuple[tuple[Place, str], ...] = ()
    unreduced: frozenset[tuple[int, str]] = frozenset()

    def names(self) -> tuple[str, ...]:
        """All factors, in order of appearance."""
        tensors = (*self.operands, *(item for item in self.results if item is not None))
        return tuple(dict.fromkeys(name for dims in tensors for dim in dims for name in dim))

    @property
    def text(self) -> str:
        """The pattern in brackets, as `parse_pattern` reads it."""

        def shown(dims: Names | None) -> str:
            if dims is None:
                return "_"
            cells = [
                "." if not dim else dim[0] if len(dim) == 1 else f"({' '.join(dim)})"
                for dim in dims
            ]
            return f"[{','.join(cells)}]"

        left, right = (",".join(shown(dims) for dims in side) for side in (
            self.operands, self.results
        ))  # fmt: skip
        notes = [
            f"{how} over {name}"
            for name in self.names()
            if name not in self.fixed and (how := self._reduction(name))
        ]
        if self.fixed:
            notes.append(f"{', '.join(sorted(self.fixed))} whole")
        return f"{left} -> {right}" + (f" ({'; '.join(notes)})" if notes else "")

    def _reduction(self, name: str) -> str:
        reduced = any(
            dims is not None
            and (position, name) not in self.unreduced
            and not any(name in dim for dim in dims)
            for position, dims in enumerate(self.results)
        )
        return self.combine.get(name, "sum") if reduced else ""

    def factor_sizes(
        self, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> dict[str, int]:
        """The size of each factor. Raises PatternError where the shapes do not fit."""
        tensors = [*zip(self.operands, operands, strict=True)]
        for position, shape in enumerate(results):
            dims = self.results[position]
            if shape is not None and dims is not None:
                tensors.append((dims, shape))
        sizes: dict[str, int] = {}
        merged: list[tuple[tuple[str, ...], int]] = []
        for names, shape in tensors:
            if len(names) != len(shape):
                raise PatternError(f"{_shown(names)} is said of a tensor of shape {list(shape)}")
            for dim, size in zip(names, shape, strict=True):
                if len(dim) == 1 and size != 1:  # a dim of size 1 is broadcast
                    if sizes.setdefault(dim[0], size) != size:
                        raise PatternError(f"'{dim[0]}' is {sizes[dim[0]]} and {size} at once")
                elif len(dim) > 1:
                    merged.append((dim, size))
        for name in self.names():
            if any((name,) in names for names, _ in tensors):
                sizes.setdefault(name, 1)
        for _ in range(len(merged) + 1):
            for dim, size in merged:
                unknown = [name for name in dim if name not in sizes]
                if len(unknown) == 1:
                    rest = _product(sizes[name] for name in dim if name in sizes)
                    if size % rest:
                        raise PatternError(f"({' '.join(dim)}) is {size}, not a multiple of {rest}")
                    sizes[unknown[0]] = size // rest
        for dim, size in merged:
            unknown = [name for name in dim if name not in sizes]
            if unknown:
                raise PatternError(f"nothing tells the sizes of {' and '.join(unknown)}")
            if _product(sizes[name] for name in dim) != size:
                raise PatternError(f"({' '.join(dim)}) is {size}, its factors' sizes say otherwise")
        return sizes

    def rule(self, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]) -> OpRule:
        """The rule at concrete shapes. Raises PatternError where they do not fit."""
        if len(operands) != len(self.operands) or len(results) != len(self.results):
            raise PatternError(
                f"it is for {len(self.operands)} tensors and {len(self.results)} results; "
                f"there are {len(operands)} and {len(results)}"
            )
        sizes = self.factor_sizes(operands, results)
        used = [name for name in self.names() if sizes.get(name, 1) > 1]
        index = {name: position for position, name in enumerate(used)}

        def dims(names: Names, shape: Shape) -> Dims:
            return tuple(
                tuple(index[name] for name in dim if name in index) if size != 1 else ()
                for dim, size in zip(names, shape, strict=True)
            )

        left = tuple(
            dims(names, shape) for names, shape in zip(self.operands, operands, strict=True)
        )
        right = tuple(
            None if names is None or shape is None else dims(names, shape)
            for names, shape in zip(self.results, results, strict=True)
        )
        factors = tuple(
            Factor(
                sizes[name],
                combine=self.combine.get(name, "sum")
                if any(
                    made is not None
                    and (position, name) not in self.unreduced
                    and not any(index[name] in dim for dim in made)
                    for position, made in enumerate(right)
                )
                else None,
                shardable=name not in self.fixed,
            )
            for name in used
        )
        return OpRule(
            factors, left, right, self.linear, self._localize(index, left, right),
            frozenset((position, index[name]) for position, name in self.unreduced
                      if name in index),
        )  # fmt: skip

    def _localize(
        self, index: Mapping[str, int], left: tuple[Dims, ...], right: tuple[Dims | None, ...]
    ) -> Localize | None:
        held = {place: index[name] for place, name in self.sizes if name in index}
        if not held:
            return None

        def localize(
            op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
        ) -> tuple[Argument, ...]:
            tensors = [*zip(left, operands, strict=True), *zip(right, results, strict=True)]
            local: dict[int, int] = {}
            for made, shape in tensors:
                for dim, size in zip(made or (), shape or (), strict=False):
                    if len(dim) == 1:
                        local[dim[0]] = size
            args = list(op.args)
            for (position, item), factor in held.items():
                argument = args[position]
                if item is None:
                    args[position] = local[factor]
                else:
                    assert isinstance(argument, tuple)
                    args[position] = (*argument[:item], local[factor], *argument[item + 1 :])
            return tuple(args)

        return localize

    def without(self, names: Iterable[str]) -> Pattern:
        """The same with more factors that stay whole."""
        return replace(self, fixed=self.fixed | frozenset(names))


def replicated(operands: tuple[Shape, ...], results: tuple[Shape | None, ...]) -> Pattern:
    """The pattern of an op that is cut nowhere."""
    return Pattern(
        tuple(((),) * len(shape) for shape in operands),
        tuple(None if shape is None else ((),) * len(shape) for shape in results),
        {},
    )


def parse_pattern(
    text: str,
    *,
    combine: Mapping[str, Reduce] | None = None,
    fixed: Iterable[str] = (),
    linear: Linearity = "none",
    sizes: tuple[tuple[Place, str], ...] = (),
    unreduced: frozenset[tuple[int, str]] = frozenset(),
) -> Pattern:
    """Read a pattern. Dims are separated by spaces, or by commas within brackets.

    `(b s)` is a dim that merges two factors, `.` (or `1`) one that belongs to no factor,
    `_` a result that is left out. Raises PatternError with what is wrong.
    """
    sides = text.split("->")
    if len(sides) != 2:
        raise PatternError("it has to have one '->' between operands and results")
    operands = tuple(_tensor(part) for part in _parts(sides[0]))
    parts = _parts(sides[1])
    results = tuple(None if part.strip() == "_" else _tensor(part) for part in parts)
    if not results:
        raise PatternError("it names no result")
    made = Pattern(
        operands, results, dict(combine or {}), frozenset(fixed), linear, sizes, unreduced
    )
    for dims in (*operands, *results):
        seen = [name for dim in dims or () for name in dim]
        twice = sorted({name for name in seen if seen.count(name) > 1})
        if twice:
            raise PatternError(f"{_shown(dims or ())} holds '{twice[0]}' twice")
    known = set(made.names())
    told = {*made.combine, *made.fixed, *(name for _, name in sizes)}
    for name in sorted(told - known):
        raise PatternError(f"it has no factor '{name}'; it has {', '.join(sorted(known))}")
    for name, how in made.combine.items():
        if how not in ("sum", "max", "min", "prod"):
            raise PatternError(f"'{name}' can't be combined by '{how}': sum, max, min or prod can")
    return made


def _parts(text: str) -> list[str]:
    """The tensors of one side: cut at commas outside of brackets and parentheses."""
    if not text.strip():
        return []
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(") - (character in "])")
        if depth < 0:
            raise PatternError("a bracket closes that was not opened")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise PatternError("a bracket is not closed")
    return parts


def _tensor(text: str) -> Names:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    dims: list[tuple[str, ...]] = []
    for token in re.findall(r"\([^()]*\)|[^\s,()]+|[()]", text):
        if token in _WHOLE_DIM:
            dims.append(())
            continue
        names = tuple(token.strip("()").replace(",", " ").split())
        for name in names:
            if not _NAME.fullmatch(name):
                raise PatternError(f"'{name}' is no name of a factor: letters and digits are")
        if not names:
            raise PatternError("'()' merges nothing; write '.' for a dim without a factor")
        dims.append(names)
    return tuple(dims)


def _product(numbers: Iterable[int]) -> int:
    made = 1
    for number in numbers:
        made *= number
    return made


def _shown(names: Names) -> str:
    return f"[{','.join(' '.join(dim) or '.' for dim in names)}]"
