"""What probing tries: small sizes for an op's dims, and ways in which it might be cut.

Pure data: which sizes and which candidates, in which order. Running them is the
business of `meshwright.lower.probing`.

Dims of one size in the Program get one size in a probe, since they may have to
be equal. Integers among the arguments that equal a dim's size may be sizes
themselves, or not: both are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import lcm
from typing import TYPE_CHECKING

from meshwright.program.types import Argument, Ref, Symbol
from meshwright.rules.pattern import Place

if TYPE_CHECKING:
    from meshwright.rules.registry import Call

# Small sizes in the order in which they are given out. The even ones come first, as some
# ops want halves; the odd ones make parts uneven.
_EVEN = (6, 10, 14, 22, 26, 34, 38, 46, 58, 62)
_ODD = (7, 9, 11, 13, 17, 19, 23, 29, 31, 37)
_MOST_CANDIDATES = 1 << 14
_MOST_PLACES = 4
_LARGEST_MULTIPLE = 64


@dataclass(frozen=True)
class Scheme:
    """One choice of small sizes. small: by the size in the Program. places: arguments that
    are taken for sizes, with the size in the Program that each equals."""

    small: Mapping[int, int]
    places: tuple[tuple[Place, int], ...]

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.small.get(size, size) for size in whole)

    def args(self, args: tuple[Argument, ...]) -> tuple[Argument, ...]:
        """Positional arguments with the small sizes in place."""
        return with_sizes(args, {place: self.small[size] for place, size in self.places})


@dataclass(frozen=True)
class Candidate:
    """One way to cut: for each operand the dim that is cut, and the arguments that follow."""

    size: int  # in the Program
    dims: tuple[int | None, ...]
    places: tuple[Place, ...]

    @property
    def members(self) -> frozenset[tuple[int, int] | Place]:
        held: set[tuple[int, int] | Place] = {
            (operand, dim) for operand, dim in enumerate(self.dims) if dim is not None
        }
        return frozenset(held)

    @property
    def weight(self) -> tuple[int, int]:
        return len(self.members), len(self.places)


def schemes(call: Call) -> Iterator[Scheme]:
    """Choices of small sizes, likeliest first; the sizes of the Program itself come last."""
    sizes = sorted({size for shape in call.shapes for size in shape if size > 1}, reverse=True)
    made = {size for shape in call.results for size in shape or () if size > 1}
    integers = [
        (place, number) for place, number in _integers(call.op.args)
        if number > 1 and (number in sizes or number in made)
    ][:_MOST_PLACES]  # fmt: skip
    for taken in sorted(product((True, False), repeat=len(integers)), reverse=True):
        places = tuple(item for item, used in zip(integers, taken, strict=True) if used)
        kept = [
            number for place, number in _integers(call.op.args)
            if number > 1 and place not in {place for place, _ in places}
        ]  # fmt: skip
        all_sizes = [*sizes, *sorted({n for _, n in places} - set(sizes), reverse=True)]
        plain = {size: _multiple(size, kept) for size in all_sizes}
        for bases in (_EVEN, _ODD):
            yield Scheme(_distinct(all_sizes, plain, bases), places)
        related = _related(all_sizes, plain)
        if related is not None:
            yield Scheme(related, places)
        few = [size for size in all_sizes if size > 4]
        if len(few) < len(all_sizes):
            small = _distinct(few, plain, _EVEN)
            yield Scheme({**{size: size for size in all_sizes}, **small}, places)
        yield Scheme({size: size for size in all_sizes}, places)


def candidates(call: Call, scheme: Scheme) -> Iterator[Candidate]:
    """Ways to cut the dims of one size together, those that cut most first."""
    operands = {size for shape in call.shapes for size in shape if size > 1}
    for size in dict.fromkeys([*sorted(operands, reverse=True), *(n for _, n in scheme.places)]):
        options: list[list[int | None]] = [
            [None, *(dim for dim, held in enumerate(shape) if held == size)]
            for shape in call.shapes
        ]
        places = [place for place, number in scheme.places if number == size]
        count = 2 ** len(places)
        for option in options:
            count *= len(option)
        if count > _MOST_CANDIDATES:
            continue
        ways = [
            Candidate(size, dims, tuple(p for p, used in zip(places, taken, strict=True) if used))
            for dims in product(*options)
            for taken in product((True, False), repeat=len(places))
            if any(dim is not None for dim in dims) or any(taken)
        ]
        yield from sorted(ways, key=lambda way: way.weight, reverse=True)


def with_sizes(args: tuple[Argument, ...], sizes: Mapping[Place, int]) -> tuple[Argument, ...]:
    """Positional arguments with the integers at the given places replaced."""
    made = list(args)
    for (position, item), number in sizes.items():
        argument = made[position]
        if item is None:
            made[position] = number
        else:
            assert isinstance(argument, tuple)
            made[position] = (*argument[:item], number, *argument[item + 1 :])
    return tuple(made)


def signature(call: Call) -> list[object]:
    """What a probe depends on, as JSON: sizes by which are equal, not by how large they are."""
    names: dict[int, str] = {1: "1", 0: "0"}
    for shape in (*call.shapes, *(shape for shape in call.results if shape is not None)):
        for size in shape:
            names.setdefault(size, f"s{len(names)}")
    integers = [n for _, n in _integers(call.op.args) if n > 1]

    def plain(argument: Argument) -> object:
        if isinstance(argument, Ref):
            value = call.values[argument.name]
            return [value.dtype, *(names[size] for size in value.shape)]
        if isinstance(argument, Symbol):
            return [argument.kind, argument.text]
        if isinstance(argument, tuple):
            return ["list", *(plain(item) for item in argument)]
        if isinstance(argument, int) and not isinstance(argument, bool) and argument > 1:
            return ["int", names.get(argument, argument)]
        return repr(argument)

    return [
        [plain(argument) for argument in call.op.args],
        [[name, plain(argument)] for name, argument in call.op.kwargs],
        [None if shape is None else [names[size] for size in shape] for shape in call.results],
        [[names[size], _multiple(size, integers)] for size in names if size > 1],
    ]


def _integers(args: tuple[Argument, ...]) -> Iterator[tuple[Place, int]]:
    for position, argument in enumerate(args):
        items = argument if isinstance(argument, tuple) else (argument,)
        for index, item in enumerate(items):
            if isinstance(item, int) and not isinstance(item, bool):
                yield (position, index if isinstance(argument, tuple) else None), item


def _multiple(size: int, integers: list[int]) -> int:
    """What a small size must be a multiple of, as the real one is of a number of heads."""
    wanted = 1
    for number in sorted(integers):
        if number != size and size % number == 0 and lcm(wanted, number) <= _LARGEST_MULTIPLE:
            wanted = lcm(wanted, number)
    return wanted


def _distinct(
    sizes: list[int], multiples: Mapping[int, int], bases: tuple[int, ...]
) -> dict[int, int]:
    """Small sizes, all different, in the order of the real ones."""
    chosen: dict[int, int] = {}
    bases = bases[: len(sizes)] if len(sizes) <= len(bases) else tuple(range(5, 5 + len(sizes)))
    for size, base in zip(sorted(sizes), bases, strict=False):
        small = base * multiples[size]
        while small in chosen.values():
            small += 2 * multiples[size]
        chosen[size] = small
    return chosen


def _related(sizes: list[int], multiples: Mapping[int, int]) -> dict[int, int] | None:
    """Small sizes where a size that is a product of two, or a few times another, stays so."""
    small = _distinct(sizes, multiples, (4, 6, 10, 14, 22, 26, 34, 38, 46, 58))
    found = False
    for size in sorted(sizes):
        others = [other for other in sorted(sizes) if other < size]
        pair = next(((a, b) for a in others for b in others if a <= b and a * b == size), None)
        times = next((other for other in reversed(others)
                      if size % other == 0 and size // other <= 8), None)  # fmt: skip
        if pair is not None:
            small[size] = small[pair[0]] * small[pair[1]]
        elif times is not None:
            small[size] = small[times] * (size // times)
        found |= pair is not None or times is not None
    return small if found else None
