"""Blocks: runs of ops that repeat, such as the layers of a transformer.

Found by structure alone. Two runs are alike when their ops are, one by one, in
all but the names of values, and when the names correspond: one map takes each
value of the one run to its counterpart in the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from meshwright.program.types import Argument, Length, Op, Program, Ref, Value

_MOST_PERIODS = 24  # candidates worth a look; the true ones are among the most frequent


@dataclass(frozen=True, slots=True)
class Repeat:
    """`count` runs of `length` ops each, one right after the other from op number `start`."""

    start: int
    length: int
    count: int

    def run(self, k: int, ops: Sequence[Op]) -> Sequence[Op]:
        first = self.start + k * self.length
        return ops[first : first + self.length]


def repeats(program: Program, ops: Sequence[Op], least: int = 3) -> tuple[Repeat, ...]:
    """Where a sequence of the Program's ops repeats at least `least` times, in order.

    Long stretches are taken before short ones, and of equals those with the
    shortest run. That the runs' names correspond is left to `correspondence`.
    """
    kinds: dict[Hashable, int] = {}
    numbers = [kinds.setdefault(signature(op, program.values), len(kinds)) for op in ops]
    found = [
        repeat
        for period in _periods(numbers, least)
        for repeat in _stretches(numbers, period, least)
    ]
    found.sort(key=lambda r: (-r.length * r.count, r.length, r.start))
    taken = bytearray(len(ops))
    chosen = []
    for repeat in found:
        span = slice(repeat.start, repeat.start + repeat.length * repeat.count)
        if not any(taken[span]):
            taken[span] = b"\1" * (repeat.length * repeat.count)
            chosen.append(repeat)
    return tuple(sorted(chosen, key=lambda r: r.start))


def _periods(numbers: Sequence[int], least: int) -> list[int]:
    """Distances at which ops of one kind follow each other, most frequent first."""
    last: dict[int, int] = {}
    seen: Counter[int] = Counter()
    for position, number in enumerate(numbers):
        if number in last:
            seen[position - last[number]] += 1
        last[number] = position
    likely = sorted(seen.items(), key=lambda item: (-item[0] * item[1], item[0]))
    return [period for period, count in likely if count >= least - 1][:_MOST_PERIODS]


def _stretches(numbers: Sequence[int], period: int, least: int) -> Iterator[Repeat]:
    start = 0
    end = len(numbers) - period
    while start < end:
        if numbers[start] != numbers[start + period]:
            start += 1
            continue
        stop = start
        while stop < end and numbers[stop] == numbers[stop + period]:
            stop += 1
        count = (stop - start) // period + 1
        if count >= least:
            yield Repeat(start, period, count)
        start = stop + 1


def signature(op: Op, values: Mapping[str, Value]) -> Hashable:
    """All of an op but the names of its values: equal for ops that do the same."""

    def flat(argument: Argument) -> Hashable:
        if isinstance(argument, Ref):
            value = values[argument.name]
            return (value.shape, value.dtype)
        if isinstance(argument, Length):
            return ("length", argument.times)
        if isinstance(argument, tuple):
            return ("tuple", *(flat(item) for item in argument))
        return (type(argument), argument)

    return (
        op.target,
        tuple(flat(item) for item in op.args),
        tuple((name, flat(item)) for name, item in op.kwargs),
        tuple(
            None if name is None else (values[name].shape, values[name].dtype, values[name].is_view)
            for name in op.results
        ),
    )


def correspondence(one: Sequence[Op], other: Sequence[Op]) -> dict[str, str] | None:
    """The map from values of one run to those of the other, None where there is none.

    It covers what the runs make and what they use from outside.
    """
    names: dict[str, str] = {}
    back: dict[str, str] = {}
    for mine, theirs in zip(one, other, strict=True):
        pairs = [*zip(mine.operands(), theirs.operands(), strict=True)]
        for made, produced in zip(mine.results, theirs.results, strict=True):
            if (made is None) != (produced is None):
                return None
            if made is not None and produced is not None:
                pairs.append((made, produced))
        for name, counterpart in pairs:
            if names.setdefault(name, counterpart) != counterpart:
                return None
            # Two values of one run may not share a counterpart, or a copy would mix them up.
            if back.setdefault(counterpart, name) != name:
                return None
    return names
