"""A Program with its repeated blocks rolled up, which unrolls to any number of them.

Some middle blocks of a model are captured (a `Run` has three units of them, one after
another), between others that stay as they are. Where the three are alike op by op and
value by value, the one in the middle is a template: what it uses is its own, or the
neighbours', or what all three share. Unrolling writes the template once for each unit;
the first takes from before the run what the first captured one takes, and the last
likewise. Names are those that a capture of so many blocks gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from meshwright.program.blocks import signature
from meshwright.program.names import Names, result_name, wanted_name
from meshwright.program.types import (
    Argument,
    Assumption,
    Input,
    Length,
    Op,
    Program,
    Ref,
    Source,
    Value,
)

CAPTURED = 3  # units of a run that are captured
_TEMPLATE = 1


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


_Key = str | OfUnit  # a value: by its name in the captured Program, or as one of a unit


@dataclass(frozen=True)
class _Span:
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


@dataclass(frozen=True)
class Unrolled:
    """A Program of chosen numbers of units, `counts`.

    names: of all values, by what they are, the same in all Programs that are unrolled from
    one. units: modules of each run. meant: how many units the model itself has.
    """

    program: Program
    names: Mapping[_Key, str]
    counts: tuple[int, ...]
    units: tuple[tuple[tuple[str, ...], ...], ...]
    meant: tuple[int, ...]


@dataclass
class Rolled:
    """See the module. Made by `roll`."""

    program: Program
    runs: tuple[Run, ...]
    spans: tuple[_Span, ...]
    own: dict[str, OfUnit] = field(default_factory=dict)
    _units: dict[tuple[str, int], tuple[int, int, str] | None] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> Mapping[str, Input]:
        """By the name of their value."""
        return {item.value: item for item in self.program.inputs}

    def unroll(self, counts: Sequence[int], inputs: Sequence[Input] | None = None) -> Unrolled:
        """The Program with `counts` units of each run.

        inputs: parameters, buffers and batch of the unrolled model in their order; None
        takes those of the captured Program, each unit's for its own. Units are named as
        the first ones of the run. Raises Irregular for what no number of units can say.
        """
        return _Unrolling(self, tuple(counts), inputs).run()

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


def _span(program: Program, run: Run, number: int, backward: bool) -> _Span | None:
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
    return _Span(number, found[0], lengths.pop(), backward)


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
    span: _Span

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


class _Unrolling:
    """The writing of one unrolled Program."""

    def __init__(
        self, rolled: Rolled, counts: tuple[int, ...], inputs: Sequence[Input] | None
    ) -> None:
        self.rolled, self.counts = rolled, counts
        self.program = rolled.program
        self.given = inputs
        self.names: dict[_Key, str] = {}
        self.given_names = Names()
        self.starts = {span.start: span for span in rolled.spans}
        self.bounds = {(span.run, span.backward): span for span in rolled.spans}
        self.ops: list[Op] = []
        self.values: dict[str, Value] = {}
        self.ragged: dict[str, tuple[str | None, ...]] = {}
        self.sources: dict[tuple[str, str, int], Source] = {}

    def run(self) -> Unrolled:
        program = self.program
        plan = list(self._plan())
        inputs = [*self._state(), *self._constants(plan)]
        for item, key in inputs:
            self.names[key] = self.given_names.give(item.path)
        made = []  # names first: an op may use what a later unit is called
        for index, span, unit in plan:
            made.append(self._name(index, span, unit))
        named = []
        for item, key in inputs:
            name = self.names[key]
            named.append(replace(item, value=name))
            proto = program.values[self._proto(key)]
            storage = name
            if proto.is_view:  # of another input
                if isinstance(key, OfUnit) or proto.storage in self.rolled.own:
                    raise Irregular(f"{item.path} lies in another's memory")
                storage = self.names[proto.storage]
            self.values[name] = replace(proto, name=name, storage=storage)
        for (index, span, unit), name in zip(plan, made, strict=True):
            self._emit(index, span, unit, name)
        gradients = {
            item.path: self._output(program.gradients, item, key)
            for item, key in inputs
            if item.kind == "parameter" and self._has(program.gradients, item, key)
        }
        updates = {
            item.path: self._output(program.buffer_updates, item, key)
            for item, key in inputs
            if item.kind == "buffer" and self._has(program.buffer_updates, item, key)
        }
        whole = Program(
            values=self.values,
            inputs=tuple(named),
            ops=tuple(self.ops),
            loss=self.names[self._outside(program.loss, len(program.ops), "forward")],
            gradients=gradients,
            buffer_updates={path: name for path, name in updates.items() if name is not None},
            expected=program.expected,
            ragged=self.ragged,
            assumptions=tuple(self._assumptions()),
        )
        units = tuple(
            run.units[:count] for run, count in zip(self.rolled.runs, self.counts, strict=True)
        )
        meant = tuple(len(run.units) for run in self.rolled.runs)
        return Unrolled(whole, self.names, self.counts, units, meant)

    def _plan(self) -> Iterable[tuple[int, _Span | None, int]]:
        """What to write, in order: the captured op, and of which unit it is made."""
        index = 0
        while index < len(self.program.ops):
            span = self.starts.get(index)
            if span is None:
                yield index, None, 0
                index += 1
                continue
            order: Iterable[int] = range(self.counts[span.run])
            if span.backward:
                order = reversed(range(self.counts[span.run]))
            template = span.at(_TEMPLATE)
            for unit in order:
                for offset in range(span.length):
                    yield template + offset, span, unit
            index = span.stop

    # Inputs

    def _state(self) -> list[tuple[Input, _Key]]:
        """Parameters, buffers, batch and tangent, in order, with their keys."""
        found: list[tuple[Input, _Key]] = []
        given = self.given
        if given is None:
            given = [item for item in self.program.inputs if item.kind in _STATE]
            dropped = [
                (run, unit)
                for run, count in enumerate(self.counts)
                for unit in range(count, CAPTURED)
            ]
            given = [item for item in given if self._unit(item.value) not in dropped]
        for item in given:
            key = self._input_key(item)
            proto = self.program.values[self._known_proto(key, item.path)]
            mine = self.rolled.inputs[proto.name]
            if mine.kind != item.kind or mine.trainable != item.trainable:
                raise Irregular(f"{item.path} is used in another way than {mine.path}")
            found.append((item, key))
        found += [
            (item, item.value)
            for item in self.program.inputs
            if item.kind in ("batch", "tangent") and item.path not in {i.path for i, _ in found}
        ]
        return found

    def _unit(self, value: str) -> tuple[int, int] | None:
        own = self.rolled.own.get(value)
        return None if own is None else (own.run, own.unit)

    def _input_key(self, item: Input) -> _Key:
        prefix = item.path
        while prefix:
            if prefix in self._members:
                run, unit, number = self._members[prefix]
                return OfUnit(run, unit, ("input", number, item.path[len(prefix) :]))
            prefix = prefix.rpartition(".")[0]
        if item.path not in self._by_path:
            raise Irregular(f"{item.path} is no input of the shortened model")
        return self._by_path[item.path]

    @cached_property
    def _by_path(self) -> Mapping[str, str]:
        return {item.path: item.value for item in self.program.inputs}

    @cached_property
    def _members(self) -> Mapping[str, tuple[int, int, int]]:
        return {
            member: (run, unit, number)
            for run, units in enumerate(self.rolled.runs)
            for unit in range(self.counts[run])
            for number, member in enumerate(units.units[unit])
        }

    def _constants(self, plan: Sequence[tuple[int, _Span | None, int]]) -> list[tuple[Input, _Key]]:
        """Constants in the order in which they are used first."""
        constants = {item.value: item for item in self.program.inputs if item.kind == "constant"}
        if not constants:
            return []
        order = [
            name
            for name in dict.fromkeys(n for op in self.program.ops for n in op.operands())
            if name in constants
        ]
        if order != list(constants):
            raise Irregular("constants are not used in the order in which they are made")
        found: dict[_Key, Input] = {}
        for index, span, unit in plan:
            for position, name in enumerate(self.program.ops[index].operands()):
                if name in constants:
                    found.setdefault(self._resolve(name, index, span, unit, position),
                                     constants[name])  # fmt: skip
        return [
            (replace(item, path=f"constant.{number}"), key)
            for number, (key, item) in enumerate(found.items())
        ]

    def _known_proto(self, key: _Key, path: str) -> str:
        if isinstance(key, OfUnit) and (key.run, key.key) not in self._templates:
            raise Irregular(f"{path} has no like in the shortened model")
        return self._proto(key)

    def _proto(self, key: _Key) -> str:
        """The captured value that an unrolled one is made like."""
        return key if isinstance(key, str) else self._templates[key.run, key.key]

    @cached_property
    def _templates(self) -> Mapping[tuple[int, object], str]:
        return {
            (own.run, own.key): name
            for name, own in self.rolled.own.items()
            if own.unit == _TEMPLATE
        }

    # Ops

    def _name(self, index: int, span: _Span | None, unit: int) -> str:
        op = self.program.ops[index]
        wanted = wanted_name(op.name)
        if span is not None:
            module = self._module(index, span, unit)
            old = op.source.module
            if old and wanted.startswith(old + "/"):
                wanted = module + wanted[len(old) :]
        name = self.given_names.give(wanted)
        for number, result in enumerate(op.results):
            if result is not None:
                key: _Key = result
                if span is not None:
                    offset = index - span.at(_TEMPLATE)
                    key = OfUnit(span.run, unit, ("op", span.backward, offset, number))
                self.names[key] = result_name(name, number)
        return name

    def _module(self, index: int, span: _Span, unit: int) -> str:
        """The module of a unit's op: of the unit itself, of a neighbour, or around them."""
        module = self.program.ops[index].source.module
        found = self.rolled.unit_of(module, span.run)
        if found is None:
            return module
        captured, member, rest = found
        there = unit + captured - _TEMPLATE
        if 0 <= there < self.counts[span.run]:
            return self.rolled.runs[span.run].units[there][member] + rest
        return self.program.ops[self._end(index, span, captured)].source.module

    def _end(self, index: int, span: _Span, captured: int) -> int:
        """The op at the end of the captured units that stands where `index` does."""
        return index - span.at(_TEMPLATE) + span.at(captured)

    def _emit(self, index: int, span: _Span | None, unit: int, name: str) -> None:
        op, values = self.program.ops[index], self.program.values
        positions = iter(range(len(tuple(op.operands()))))
        lists = iter(self._lists(index, span, unit))

        def renamed(argument: Argument) -> Argument:
            if isinstance(argument, Ref):
                key = self._resolve(argument.name, index, span, unit, next(positions))
                return Ref(self.names[key])
            if isinstance(argument, Length):
                return replace(argument, value=next(lists))
            if isinstance(argument, tuple):
                return tuple([renamed(item) for item in argument])
            return argument

        args = tuple([renamed(item) for item in op.args])
        kwargs = tuple([(key, renamed(item)) for key, item in op.kwargs])
        results: list[str | None] = []
        for number, result in enumerate(op.results):
            if result is None:
                results.append(None)
                continue
            key: _Key = result
            if span is not None:
                offset = index - span.at(_TEMPLATE)
                key = OfUnit(span.run, unit, ("op", span.backward, offset, number))
            made = self.names[key]
            storage = self._storage(result, number, index, span, unit)
            self.values[made] = replace(values[result], name=made, storage=self.names[storage])
            results.append(made)
            dims = self.program.ragged.get(result)
            if dims is not None:
                self.ragged[made] = tuple([None if dim is None else next(lists) for dim in dims])
        source = op.source
        if span is not None:
            module = self._module(index, span, unit)
            if module != source.module:
                known = (module, source.file, source.line)
                if known not in self.sources:
                    self.sources[known] = replace(source, module=module)
                source = self.sources[known]
        self.ops.append(
            Op(name, op.target, args, kwargs, tuple(results), op.returns_tuple, op.phase, source)
        )

    def _lists(self, index: int, span: _Span | None, unit: int) -> list[str]:
        """Names of the lists by whose lengths an op goes."""
        ops, program = self.program.ops, self.program
        names = lists_of(ops[index], program)

        def found(position: int) -> str:
            def neighbour(captured: int) -> str:
                assert span is not None
                return lists_of(ops[self._end(index, span, captured)], program)[position]

            return self.names[self._found(names[position], index, span, unit, neighbour)]

        return [found(position) for position in range(len(names))]

    def _assumptions(self) -> Iterable[Assumption]:
        """Those of the template once for each unit."""
        together: list[tuple[Assumption, int, str]] = []
        run = -1
        for item in (*self.program.assumptions, None):
            place = self._unit_of(item.source.module) if item is not None else None
            if together and (place is None or place[:2] != (run, _TEMPLATE)):
                for unit in self.rolled.runs[run].units[: self.counts[run]]:
                    for other, member, rest in together:
                        source = replace(other.source, module=unit[member] + rest)
                        yield replace(other, source=source)
                together = []
            if item is None or (place is not None and place[1] != _TEMPLATE):
                continue
            if place is None:
                yield item
            else:
                run = place[0]
                together.append((item, place[2], place[3]))

    def _unit_of(self, module: str) -> tuple[int, int, int, str] | None:
        for run in range(len(self.rolled.runs)):
            found = self.rolled.unit_of(module, run)
            if found is not None:
                return run, *found
        return None

    def _storage(self, result: str, number: int, index: int, span: _Span | None, unit: int) -> _Key:
        def neighbour(captured: int) -> str:
            assert span is not None
            other = self.program.ops[self._end(index, span, captured)].results[number]
            return self.program.values[other or ""].storage

        return self._found(self.program.values[result].storage, index, span, unit, neighbour)

    def _resolve(self, name: str, index: int, span: _Span | None, unit: int, position: int) -> _Key:
        def neighbour(captured: int) -> str:
            assert span is not None
            other = self.program.ops[self._end(index, span, captured)]
            return tuple(other.operands())[position]

        return self._found(name, index, span, unit, neighbour)

    def _found(
        self,
        name: str,
        index: int,
        span: _Span | None,
        unit: int,
        neighbour: Callable[[int], str],
    ) -> _Key:
        own = self.rolled.own.get(name)
        phase = self.program.ops[index].phase if index < len(self.program.ops) else "forward"
        if own is None:
            return name
        if span is None or own.run != span.run:
            return self._outside(name, index, phase)
        there = unit + own.unit - _TEMPLATE
        if 0 <= there < self.counts[span.run]:
            return OfUnit(own.run, there, own.key)
        return self._outside(neighbour(own.unit), index, phase)

    def _outside(self, name: str, index: int, phase: str) -> _Key:
        """What an op outside of a run uses: of a run's units, it may be the nearest one."""
        own = self.rolled.own.get(name)
        if own is None:
            return name
        span = self.bounds.get((own.run, phase == "backward"))
        start = span is not None and (
            index >= span.stop if span.backward else index < span.start
        )  # at the side where the first unit is
        wanted = 0 if start else CAPTURED - 1
        if own.unit != wanted:
            raise Irregular(f"{name} is used outside of its run of blocks")
        return OfUnit(own.run, 0 if start else self.counts[own.run] - 1, own.key)

    # Outputs

    def _has(self, outputs: Mapping[str, str | None], item: Input, key: _Key) -> bool:
        return self._captured_path(item, key) in outputs

    def _captured_path(self, item: Input, key: _Key) -> str:
        if isinstance(key, str):
            return item.path
        return self.rolled.inputs[self._proto(key)].path

    def _output(self, outputs: Mapping[str, str | None], item: Input, key: _Key) -> str | None:
        name = outputs[self._captured_path(item, key)]
        if name is None:
            return None
        end = len(self.program.ops)
        own = self.rolled.own.get(name)
        if own is None:
            return self.names[name]
        if isinstance(key, str) or own.run != key.run:
            return self.names[OfUnit(own.run, self._edge(own), own.key)]
        there = key.unit + own.unit - _TEMPLATE
        if 0 <= there < self.counts[own.run]:
            return self.names[OfUnit(own.run, there, own.key)]
        number, rest = key.key[1], key.key[2]
        member = self.rolled.runs[own.run].units[own.unit][number]  # type: ignore[call-overload]
        last = outputs[f"{member}{rest}"]
        assert last is not None
        return self.names[self._outside(last, end, "backward")]

    def _edge(self, own: OfUnit) -> int:
        if own.unit == _TEMPLATE:
            raise Irregular("a gradient is made by blocks that it is not of")
        return 0 if own.unit == 0 else self.counts[own.run] - 1


_STATE = ("parameter", "buffer", "batch", "tangent")
