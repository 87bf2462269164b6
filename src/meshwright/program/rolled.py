"""A Program with its repeated blocks rolled up; `program.unroll` writes any number of them.

Some middle blocks of a model are captured (a `Run` has three units of them, one after
another), between others that stay as they are. Where the three are alike op by op and
value by value, the one in the middle is a template: what it uses is its own, or the
neighbours', or what all three share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from meshwright.program.blocks import signature
from meshwright.program.types import (
    Argument,
    Input,
    Length,
    Op,
    Program,
)

CAPTURED = 3  # units of a run that are captured
TEMPLATE = 1


class Irregular(Exception):
    """The blocks are not alike, or something looks at them one by one; with the reason."""


@dataclass(frozen=True)
class Run:
    """Units of equal blocks in a row, each one module or a few, by fully qualified name.

    The first three are in the captured Program, where `after` follows and `before` leads.
    """

    units: tuple[tuple[str, ...], ...]
    before: str
    after: str


@dataclass(frozen=True)
class OfUnit:
    """A value of unit `unit` of run `run`; `key` says which, the same in each unit."""

    run: int
    unit: int
    key: tuple[object, ...]


Key = str | OfUnit  # a value: by its name in the captured Program, or as one of a unit


@dataclass(frozen=True)
class Span:
    """Ops of a run's captured units in one phase: where the earliest begins, and how many each.

    In the backward the last unit comes first.
    """

    run: int
    start: int
    length: int
    backward: bool

    def at(self, unit: int) -> int:
        place = CAPTURED - 1 - unit if self.backward else unit
        return self.start + place * self.length

    @property
    def stop(self) -> int:
        return self.start + CAPTURED * self.length


@dataclass
class Rolled:
    """See the module. Made by `roll`."""

    program: Program
    runs: tuple[Run, ...]
    spans: tuple[Span, ...]
    own: dict[str, OfUnit] = field(default_factory=dict)
    _units: dict[tuple[str, int], tuple[int, int, str] | None] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> Mapping[str, Input]:
        """By the name of their value."""
        return {item.value: item for item in self.program.inputs}

    def unit_of(self, module: str, run: int) -> tuple[int, int, str] | None:
        """(unit, member, rest) of a module or a parameter's path in a captured unit."""
        if (module, run) not in self._units:
            self._units[module, run] = next(
                (
                    (unit, number, module[len(member) :])
                    for unit in range(CAPTURED)
                    for number, member in enumerate(self.runs[run].units[unit])
                    if module == member or module.startswith(member + ".")
                ),
                None,
            )
        return self._units[module, run]


def roll(program: Program, runs: Sequence[Run]) -> Rolled:
    """Raises Irregular, with the reason, where the captured units are not alike."""
    made = Rolled(program, tuple(runs), ())
    spans = [
        span
        for number, run in enumerate(runs)
        for backward in (False, True)
        for span in [_span(program, run, number, backward)]
        if span is not None
    ]
    spans.sort(key=lambda span: span.start)
    for one, other in pairwise(spans):
        if one.stop > other.start:
            raise Irregular("two lists of blocks run in turns")
    made.spans = tuple(spans)
    _inputs(made)
    _produced(made)
    _constants(made)
    for span in spans:
        _Check(made, span).run()
    _check_ends(made)
    return made


def _span(program: Program, run: Run, number: int, backward: bool) -> Span | None:
    """Each unit lasts from the first op of one of its modules to the next unit's first."""
    phase = "backward" if backward else "forward"
    order = [*run.units[:CAPTURED], (run.after,)]
    if backward:
        order = [*reversed(run.units[:CAPTURED]), (run.before,)]
    firsts: list[int | None] = [None] * len(order)
    members = [(member, n) for n, unit in enumerate(order) for member in unit]
    known: dict[str, int | None] = {}
    for index, op in enumerate(program.ops):
        if op.phase != phase:
            continue
        module = op.source.module
        if module not in known:
            known[module] = next(
                (n for member, n in members if module == member or module.startswith(member + ".")),
                None,
            )
        place = known[module]
        if place is not None and firsts[place] is None:
            firsts[place] = index
    found = [index for index in firsts if index is not None]
    if not found:
        return None
    name = run.units[0][0]
    if len(found) < len(order):
        raise Irregular(f"some of {name} and its likes have no ops")
    lengths = {after - before for before, after in pairwise(found)}
    if len(lengths) != 1 or min(lengths) <= 0:
        raise Irregular(f"{name} and its likes have different numbers of ops")
    return Span(number, found[0], lengths.pop(), backward)


def _inputs(made: Rolled) -> None:
    kinds: dict[tuple[int, int], dict[tuple[object, ...], object]] = {}
    for item in made.program.inputs:
        if item.kind not in ("parameter", "buffer"):
            continue
        for run in range(len(made.runs)):
            found = made.unit_of(item.path, run)
            if found is None:
                if any(made.unit_of(alias, run) for alias in item.aliases):
                    raise Irregular(f"{item.path} is shared with one of its likes")
                continue
            unit, member, rest = found
            aliases = []
            for alias in item.aliases:
                there = made.unit_of(alias, run)
                if there is None or there[0] != unit:
                    raise Irregular(f"{item.path} is shared with {alias}")
                aliases.append(there[1:])
            key = ("input", member, rest)
            made.own[item.value] = OfUnit(run, unit, key)
            value = made.program.values[item.value]
            kinds.setdefault((run, unit), {})[key] = (
                item.kind, item.trainable, tuple(aliases), value.shape, value.dtype,
            )  # fmt: skip
            break
    for run in range(len(made.runs)):
        units = [kinds.get((run, unit), {}) for unit in range(CAPTURED)]
        if any(unit != units[0] for unit in units):
            raise Irregular(f"parameters of {made.runs[run].units[0][0]} and its likes differ")


def _produced(made: Rolled) -> None:
    for span in made.spans:
        for unit in range(CAPTURED):
            first = span.at(unit)
            for offset in range(span.length):
                for index, result in enumerate(made.program.ops[first + offset].results):
                    if result is not None:
                        key = ("op", span.backward, offset, index)
                        made.own[result] = OfUnit(span.run, unit, key)


def _constants(made: Rolled) -> None:
    """Constants that one unit alone uses are its own, told by where it uses them first."""
    constants = {item.value for item in made.program.inputs if item.kind == "constant"}
    if not constants:
        return
    users: dict[str, list[tuple[int, int]]] = {}
    for index, op in enumerate(made.program.ops):
        for position, name in enumerate(op.operands()):
            if name in constants:
                users.setdefault(name, []).append((index, position))
    for name, uses in users.items():
        places = {_place(made, index) for index, _ in uses}
        if len({place[:2] for place in places if place}) == 1 and None not in places:
            index, position = uses[0]
            place = _place(made, index)
            assert place is not None
            run, unit, backward, offset = place
            made.own[name] = OfUnit(run, unit, ("constant", backward, offset, position))


def _place(made: Rolled, index: int) -> tuple[int, int, bool, int] | None:
    for span in made.spans:
        if span.start <= index < span.stop:
            place, offset = divmod(index - span.start, span.length)
            unit = CAPTURED - 1 - place if span.backward else place
            return span.run, unit, span.backward, offset
    return None


@dataclass
class _Check:
    """That the three captured units of a span are alike."""

    made: Rolled
    span: Span

    def run(self) -> None:
        made, span = self.made, self.span
        ops, values = made.program.ops, made.program.values
        for offset in range(span.length):
            three = [ops[span.at(unit) + offset] for unit in range(CAPTURED)]
            kinds = {(signature(op, values), op.phase, op.returns_tuple) for op in three}
            if len(kinds) != 1:
                raise Irregular(f"{three[0].name} and {three[1].name} differ")
            for names in zip(*(op.operands() for op in three), strict=True):
                self._alike(names)
            for names in zip(*(lists_of(op, made.program) for op in three), strict=True):
                self._alike(names)
            for names in zip(*(op.results for op in three), strict=True):
                if names[0] is not None:
                    self._alike([values[name or ""].storage for name in names])
            self._alike_modules([op.source.module for op in three])

    def _alike(self, names: Sequence[str]) -> None:
        run = self.span.run
        places: list[tuple[object, ...]] = []
        for unit, name in enumerate(names):
            own = self.made.own.get(name)
            if own is None or own.run != run:
                places.append((None, name))
            else:
                places.append((own.unit - unit, own.key))
        if not _follows(places):
            raise Irregular(f"{names[0]}, {names[1]} and {names[2]} are not each other's likes")

    def _alike_modules(self, modules: Sequence[str]) -> None:
        places: list[tuple[object, ...]] = []
        for unit, module in enumerate(modules):
            found = self.made.unit_of(module, self.span.run)
            places.append((None, module) if found is None else (found[0] - unit, found[1:]))
        if not _follows(places):
            raise Irregular(f"ops of {modules[0]} and {modules[1]} come in another order")


def lists_of(op: Op, program: Program) -> list[str]:
    """The lists by whose lengths an op's arguments and results go, in order."""
    found: list[str] = []

    def look(argument: Argument) -> None:
        if isinstance(argument, Length):
            found.append(argument.value)
        elif isinstance(argument, tuple):
            for item in argument:
                look(item)

    for argument in (*op.args, *(item for _, item in op.kwargs)):
        look(argument)
    if program.ragged:
        for result in op.results:
            found += [name for name in program.ragged.get(result or "", ()) if name is not None]
    return found


def _follows(places: Sequence[tuple[object, ...]]) -> bool:
    """Whether the template's place holds for both neighbours, as far as they reach it."""
    first, template, last = places
    if template[0] is None or template[0] == 0:
        return first == template == last
    if template[0] == -1:
        return last == template and first[0] is None
    if template[0] == 1:
        return first == template and last[0] is None
    return False


def _check_ends(made: Rolled) -> None:
    """Gradients and buffer updates of the three units are each other's likes."""
    for outputs in (made.program.gradients, made.program.buffer_updates):
        by_key: dict[tuple[int, object], dict[int, tuple[object, ...]]] = {}
        paths = {item.path: item.value for item in made.program.inputs}
        for path, name in outputs.items():
            own = made.own.get(paths[path])
            if own is None:
                continue
            there = made.own.get(name) if name is not None else None
            place: tuple[object, ...] = (None, name is None or name)
            if there is not None and there.run == own.run:
                place = (there.unit - own.unit, there.key)
            elif name is not None:
                place = (None, "outside")
            by_key.setdefault((own.run, own.key), {})[own.unit] = place
        for found in by_key.values():
            if sorted(found) != [0, 1, 2] or not _follows([found[0], found[1], found[2]]):
                raise Irregular("gradients of one block are made elsewhere than those of its likes")
            if found[1] == (None, "outside"):
                raise Irregular("gradients of one block are made outside of it")
