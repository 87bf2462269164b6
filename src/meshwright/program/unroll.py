"""Unrolling: a rolled Program written out with as many units of each run as are asked for.

The template is written once for each unit; the first takes from before the run what the first
captured one takes, and the last likewise. Names are those that a capture of so many blocks
gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from meshwright.program.names import Names, result_name, wanted_name
from meshwright.program.rolled import (
    CAPTURED,
    TEMPLATE,
    Irregular,
    Key,
    OfUnit,
    Rolled,
    Span,
    lists_of,
)
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

_STATE = ("parameter", "buffer", "batch", "tangent")


@dataclass(frozen=True)
class Unrolled:
    """A Program of chosen numbers of units, `counts`.

    names: of all values, by what they are, the same in all Programs that are unrolled from
    one. units: modules of each run. meant: how many units the model itself has.
    """

    program: Program
    names: Mapping[Key, str]
    counts: tuple[int, ...]
    units: tuple[tuple[tuple[str, ...], ...], ...]
    meant: tuple[int, ...]


def unroll(
    rolled: Rolled, counts: Sequence[int], inputs: Sequence[Input] | None = None
) -> Unrolled:
    """The Program with `counts` units of each run.

    inputs: parameters, buffers and batch of the unrolled model in their order; None
    takes those of the captured Program, each unit's for its own. Units are named as
    the first ones of the run. Raises Irregular for what no number of units can say.
    """
    return _Unrolling(rolled, tuple(counts), inputs).run()


class _Unrolling:
    """The writing of one unrolled Program."""

    def __init__(
        self, rolled: Rolled, counts: tuple[int, ...], inputs: Sequence[Input] | None
    ) -> None:
        self.rolled, self.counts = rolled, counts
        self.program = rolled.program
        self.given = inputs
        self.names: dict[Key, str] = {}
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
            ragged=self.ragged,
            assumptions=tuple(self._assumptions()),
        )
        units = tuple(
            run.units[:count] for run, count in zip(self.rolled.runs, self.counts, strict=True)
        )
        meant = tuple(len(run.units) for run in self.rolled.runs)
        return Unrolled(whole, self.names, self.counts, units, meant)

    def _plan(self) -> Iterable[tuple[int, Span | None, int]]:
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
            template = span.at(TEMPLATE)
            for unit in order:
                for offset in range(span.length):
                    yield template + offset, span, unit
            index = span.stop

    # Inputs

    def _state(self) -> list[tuple[Input, Key]]:
        """Parameters, buffers, batch and tangent, in order, with their keys."""
        found: list[tuple[Input, Key]] = []
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

    def _input_key(self, item: Input) -> Key:
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

    def _constants(self, plan: Sequence[tuple[int, Span | None, int]]) -> list[tuple[Input, Key]]:
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
        found: dict[Key, Input] = {}
        for index, span, unit in plan:
            for position, name in enumerate(self.program.ops[index].operands()):
                if name in constants:
                    found.setdefault(self._resolve(name, index, span, unit, position),
                                     constants[name])  # fmt: skip
        return [
            (replace(item, path=f"constant.{number}"), key)
            for number, (key, item) in enumerate(found.items())
        ]

    def _known_proto(self, key: Key, path: str) -> str:
        if isinstance(key, OfUnit) and (key.run, key.key) not in self._templates:
            raise Irregular(f"{path} has no like in the shortened model")
        return self._proto(key)

    def _proto(self, key: Key) -> str:
        """The captured value that an unrolled one is made like."""
        return key if isinstance(key, str) else self._templates[key.run, key.key]

    @cached_property
    def _templates(self) -> Mapping[tuple[int, object], str]:
        return {
            (own.run, own.key): name
            for name, own in self.rolled.own.items()
            if own.unit == TEMPLATE
        }

    # Ops

    def _name(self, index: int, span: Span | None, unit: int) -> str:
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
                key: Key = result
                if span is not None:
                    offset = index - span.at(TEMPLATE)
                    key = OfUnit(span.run, unit, ("op", span.backward, offset, number))
                self.names[key] = result_name(name, number)
        return name

    def _module(self, index: int, span: Span, unit: int) -> str:
        """The module of a unit's op: of the unit itself, of a neighbour, or around them."""
        module = self.program.ops[index].source.module
        found = self.rolled.unit_of(module, span.run)
        if found is None:
            return module
        captured, member, rest = found
        there = unit + captured - TEMPLATE
        if 0 <= there < self.counts[span.run]:
            return self.rolled.runs[span.run].units[there][member] + rest
        return self.program.ops[self._end(index, span, captured)].source.module

    def _end(self, index: int, span: Span, captured: int) -> int:
        """The op at the end of the captured units that stands where `index` does."""
        return index - span.at(TEMPLATE) + span.at(captured)

    def _emit(self, index: int, span: Span | None, unit: int, name: str) -> None:
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
            key: Key = result
            if span is not None:
                offset = index - span.at(TEMPLATE)
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

    def _lists(self, index: int, span: Span | None, unit: int) -> list[str]:
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
            if together and (place is None or place[:2] != (run, TEMPLATE)):
                for unit in self.rolled.runs[run].units[: self.counts[run]]:
                    for other, member, rest in together:
                        source = replace(other.source, module=unit[member] + rest)
                        yield replace(other, source=source)
                together = []
            if item is None or (place is not None and place[1] != TEMPLATE):
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

    def _storage(self, result: str, number: int, index: int, span: Span | None, unit: int) -> Key:
        def neighbour(captured: int) -> str:
            assert span is not None
            other = self.program.ops[self._end(index, span, captured)].results[number]
            return self.program.values[other or ""].storage

        return self._found(self.program.values[result].storage, index, span, unit, neighbour)

    def _resolve(self, name: str, index: int, span: Span | None, unit: int, position: int) -> Key:
        def neighbour(captured: int) -> str:
            assert span is not None
            other = self.program.ops[self._end(index, span, captured)]
            return tuple(other.operands())[position]

        return self._found(name, index, span, unit, neighbour)

    def _found(
        self,
        name: str,
        index: int,
        span: Span | None,
        unit: int,
        neighbour: Callable[[int], str],
    ) -> Key:
        own = self.rolled.own.get(name)
        phase = self.program.ops[index].phase if index < len(self.program.ops) else "forward"
        if own is None:
            return name
        if span is None or own.run != span.run:
            return self._outside(name, index, phase)
        there = unit + own.unit - TEMPLATE
        if 0 <= there < self.counts[span.run]:
            return OfUnit(own.run, there, own.key)
        return self._outside(neighbour(own.unit), index, phase)

    def _outside(self, name: str, index: int, phase: str) -> Key:
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

    def _has(self, outputs: Mapping[str, str | None], item: Input, key: Key) -> bool:
        return self._captured_path(item, key) in outputs

    def _captured_path(self, item: Input, key: Key) -> str:
        if isinstance(key, str):
            return item.path
        return self.rolled.inputs[self._proto(key)].path

    def _output(self, outputs: Mapping[str, str | None], item: Input, key: Key) -> str | None:
        name = outputs[self._captured_path(item, key)]
        if name is None:
            return None
        end = len(self.program.ops)
        own = self.rolled.own.get(name)
        if own is None:
            return self.names[name]
        if isinstance(key, str) or own.run != key.run:
            return self.names[OfUnit(own.run, self._edge(own), own.key)]
        there = key.unit + own.unit - TEMPLATE
        if 0 <= there < self.counts[own.run]:
            return self.names[OfUnit(own.run, there, own.key)]
        number, rest = key.key[1], key.key[2]
        member = self.rolled.runs[own.run].units[own.unit][number]  # type: ignore[call-overload]
        last = outputs[f"{member}{rest}"]
        assert last is not None
        return self.names[self._outside(last, end, "backward")]

    def _edge(self, own: OfUnit) -> int:
        if own.unit == TEMPLATE:
            raise Irregular("a gradient is made by blocks that it is not of")
        return 0 if own.unit == 0 else self.counts[own.run] - 1
