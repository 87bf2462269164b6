"""A repeated block is lowered once: further runs are copies under other names.

The first run is lowered op by op, and what that did to the local program is
kept. A later run is a copy where all that its lowering would read is alike:
layouts of what comes from outside, conversions already made, what the groups
want, residencies. Where it is not (the first layer often gets its input in
another layout than the second), the run is lowered, and is what later ones
are held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from meshwright.layout.types import Layout
from meshwright.lower.builder import Whole
from meshwright.program.blocks import Repeat, correspondence
from meshwright.program.types import Argument, Length, Op, Ref, Source, Value

if TYPE_CHECKING:
    from meshwright.lower.lower import Lowering

Kept = dict[str, dict[Layout, str]]
_FREE = object()  # of an op that no decision holds


@dataclass(frozen=True)
class _Template:
    """One run that was lowered, with what it found and what it did.

    reads: the run's ops, with those that it makes once more from the forward.
    outside: local names of what the run finds, in the forward's and the backward's table.
    before: the conversions that those had.
    """

    reads: tuple[Op, ...]
    outside: dict[str, tuple[str | None, str | None]]
    before: Kept
    emitted: tuple[Op, ...]
    values: tuple[tuple[Value, Whole], ...]
    converted: Kept
    tables: tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]
    accumulated: tuple[tuple[str, int, str], ...]


def lower_repeats(lowering: Lowering, ops: Sequence[Op]) -> None:
    """Lower a phase's ops in order, repeated runs by copying."""
    done = 0
    for repeat in lowering.analysis.runs[lowering.b.phase]:
        for op in ops[done : repeat.start]:
            lowering.lower_op(op)
        _repeat(lowering, repeat, ops)
        done = repeat.start + repeat.length * repeat.count
    for op in ops[done:]:
        lowering.lower_op(op)


def _repeat(lowering: Lowering, repeat: Repeat, ops: Sequence[Op]) -> None:
    template: _Template | None = None
    for k in range(repeat.count):
        run = repeat.run(k, ops)
        if any(lowering.ragged.concerns(op) for op in run):
            # Sizes are read from lists that need not be operands of the run.
            for op in run:
                lowering.lower_op(op)
        elif template is None or not _copy(lowering, template, run):
            template = _record(lowering, run)


def _reads(lowering: Lowering, run: Sequence[Op]) -> tuple[Op, ...]:
    """The run's ops after those forward ops that its lowering may make once more."""
    found: dict[str, Op] = {}
    if lowering.b.phase == "backward":
        stack = [name for op in run for name in op.operands()]
        while stack:
            name = stack.pop()
            op = lowering.made_by.get(name)
            again = op is not None and op.phase == "forward" and lowering.of_parameter(name)
            if op is not None and again and op.name not in found:
                found[op.name] = op
                stack.extend(op.operands())
    return (*found.values(), *run)


def _record(lowering: Lowering, run: Sequence[Op]) -> _Template:
    b = lowering.b
    reads = _reads(lowering, run)
    made = {name for op in run for name in op.results}
    used = dict.fromkeys(
        name for op in reads for name in (*op.operands(), *op.results) if name and name not in made
    )
    outside = {name: (lowering.forward.get(name), lowering.backward.get(name)) for name in used}
    before: Kept = {}
    stack = [name for pair in outside.values() for name in pair if name is not None]
    stack += [name for name in used if name in lowering.parameter_of]  # as it is stored
    while stack:
        name = stack.pop()
        if name not in before:
            before[name] = dict(b.converted.get(name, {}))
            stack.extend(before[name].values())
    known = set(b.values)
    emitted = len(b.ops)
    kept = {name: dict(conversions) for name, conversions in b.converted.items()}
    tables = (dict(lowering.forward), dict(lowering.backward))
    accumulated = dict(lowering.accumulated)
    for op in run:
        lowering.lower_op(op)
    converted = {
        name: dict(conversions)
        for name, conversions in b.converted.items()
        if conversions != kept.get(name)
    }
    changed = tuple(
        tuple((name, local) for name, local in table.items() if old.get(name) != local)
        for table, old in zip((lowering.forward, lowering.backward), tables, strict=True)
    )
    gradients = tuple(
        (name, index, lowering.accumulated[path])
        for op in run
        for name in op.results
        if name is not None
        for index, path in enumerate(lowering.gradient_of.get(name, ()))
        if lowering.accumulated.get(path) != accumulated.get(path)
    )
    return _Template(
        reads,
        outside,
        before,
        tuple(b.ops[emitted:]),
        tuple((b.values[name], b.whole[name]) for name in b.values if name not in known),
        converted,
        (changed[0], changed[1]),
        gradients,
    )


def _copy(lowering: Lowering, template: _Template, run: Sequence[Op]) -> bool:
    """Copy the template under the names of `run`; False, with nothing done, where it differs."""
    reads = _reads(lowering, run)
    names = _counterparts(lowering, template, reads)
    locals_ = _locals(lowering, template, names) if names is not None else None
    if names is None or locals_ is None:
        return False
    b = lowering.b
    stems = dict(names)
    sources: dict[Source, Source] = {}
    streams: dict[int, int] = {}
    for mine, theirs in zip(template.reads, reads, strict=True):
        stems.setdefault(mine.name, theirs.name)
        sources[mine.source] = theirs.source
        if mine.name in lowering.streams:
            streams[lowering.streams[mine.name]] = lowering.streams[theirs.name]
    for value, whole in template.values:
        stem, numbered, _ = value.name.partition("@")
        name = stems.get(stem, stem)
        if numbered or name in b.values:
            name = b.fresh(name)
        locals_[value.name] = name
        storage = locals_.get(value.storage, value.storage)
        b.values[name] = replace(value, name=name, storage=storage)
        b.whole[name] = whole
        if value.name in b.zeros:
            b.zeros.add(name)
    for op in template.emitted:
        b.ops.append(_renamed(op, locals_, sources, streams))
    for local, conversions in template.converted.items():
        b.converted[locals_.get(local, local)] = {
            layout: locals_.get(reached, reached) for layout, reached in conversions.items()
        }
    for table, changes in zip((lowering.forward, lowering.backward), template.tables, strict=True):
        for value_name, local in changes:
            table[names[value_name]] = locals_[local]
    for value_name, index, local in template.accumulated:
        path = lowering.gradient_of[names[value_name]][index]
        lowering.accumulated[path] = locals_.get(local, local)
    return True


def _counterparts(
    lowering: Lowering, template: _Template, reads: tuple[Op, ...]
) -> dict[str, str] | None:
    """The map from the template's values to the run's, None where any fact about two differs."""
    if len(reads) != len(template.reads):
        return None
    kinds, held = lowering.analysis.kinds, lowering.assignment.held.values()
    for mine, theirs in zip(template.reads, reads, strict=True):
        if kinds[mine.name] != kinds[theirs.name]:
            return None
        if any(cuts.get(mine.name, _FREE) != cuts.get(theirs.name, _FREE) for cuts in held):
            return None
    names = correspondence(template.reads, reads)
    if names is None:
        return None
    wanted = lowering.assignment.wanted.values()
    for mine_name, their_name in names.items():
        if any(cuts.get(mine_name) != cuts.get(their_name) for cuts in wanted):
            return None
        if lowering.standing(mine_name) != lowering.standing(their_name):
            return None
    return names


def _locals(
    lowering: Lowering, template: _Template, names: dict[str, str]
) -> dict[str, str] | None:
    """Local names of what both find outside; None where those lie or were converted otherwise."""
    b = lowering.b
    found: dict[str, str] = {}
    stack: list[tuple[str, str]] = []
    for name, (mine_forward, mine_backward) in template.outside.items():
        theirs = (lowering.forward.get(names[name]), lowering.backward.get(names[name]))
        for mine, their in zip((mine_forward, mine_backward), theirs, strict=True):
            if (mine is None) != (their is None):
                return None
            if mine is not None and their is not None:
                stack.append((mine, their))
        if name in lowering.parameter_of:
            stack.append((name, names[name]))
    while stack:
        mine, their = stack.pop()
        if mine in found:
            if found[mine] != their:
                return None
            continue
        found[mine] = their
        one, other = template.before[mine], b.converted.get(their, {})
        same = b.whole[mine] == b.whole[their] and b.values[mine].dtype == b.values[their].dtype
        same = same and (mine in b.zeros) == (their in b.zeros)
        if not same or one.keys() != other.keys():
            return None
        stack.extend((local, other[layout]) for layout, local in one.items())
    return found


def _renamed(
    op: Op, names: dict[str, str], sources: dict[Source, Source], streams: dict[int, int]
) -> Op:
    def rename(argument: Argument) -> Argument:
        if isinstance(argument, Ref):
            return Ref(names.get(argument.name, argument.name))
        if isinstance(argument, Length):
            return Length(names.get(argument.value, argument.value), argument.times)
        if isinstance(argument, tuple):
            return tuple([rename(item) for item in argument])
        return argument

    kwargs: tuple[tuple[str, Argument], ...] = op.kwargs
    if kwargs:
        kwargs = tuple(
            (key, streams.get(item, item) if key == "stream" and isinstance(item, int)
             else rename(item))
            for key, item in kwargs
        )  # fmt: skip
    results = tuple([None if r is None else names.get(r, r) for r in op.results])
    return Op(
        results[0] or op.name, op.target, tuple([rename(item) for item in op.args]), kwargs,
        results, op.returns_tuple, op.phase, sources.get(op.source, op.source),
    )  # fmt: skip
