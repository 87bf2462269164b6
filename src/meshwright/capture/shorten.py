"""Captures a model with many equal blocks from a few of them, and proves that this is right.

Lists of modules are looked for whose members run one after another and do the same, each by
itself or in groups of a few: supposed from what they hold (`capture.suppose`) or, where that
does not do, found in the forward of the whole model. Then the step is captured with most of
the middle members left out, rolled up, and unrolled again to the model's own number of them.
Its forward and autograd's graph must be those of the whole model, which runs once for this
without its backward, op by op and value by value; what the backward does follows from them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from meshwright.capture.blueprint import Blueprint
from meshwright.capture.graph import of_graph, with_graph, without_graph
from meshwright.capture.state import Without
from meshwright.capture.trace import Captured, capture
from meshwright.errors import CaptureError
from meshwright.program.blocks import correspondence, signature
from meshwright.program.rolled import CAPTURED, Irregular, Rolled, Run, roll
from meshwright.program.types import Op, Program
from meshwright.program.unroll import Unrolled, unroll
from meshwright.quiet import unlogged
from meshwright.task import Task

_LEAST = 5  # units in the middle that are worth it
_LONGEST = 12  # members of a unit


@dataclass(frozen=True)
class Shortening:
    """Which members are left out of which lists, and the runs of units that they are of."""

    without: Without
    runs: tuple[Run, ...]

    @property
    def stands_for(self) -> dict[str, int]:
        """How many modules each one that is kept of a run stands for."""
        return {member: len(run.units) for run in self.runs for member in run.units[0]}


def forward_of(task: Task, batch: Any, blueprint: Blueprint) -> Captured:
    """The forward of the whole model with autograd's graph."""
    return capture(task, batch=batch, blueprint=blueprint, graph=True, backward=False)


def whole_of(rolled: Rolled, forward: Captured) -> Unrolled:
    """The whole model's Program. forward: of the whole model, on the same batch.

    Raises Irregular, with the reason, where it does not follow from the few blocks.
    """
    state = [item for item in forward.program.inputs if item.kind in ("parameter", "buffer")]
    whole = unroll(rolled, [len(run.units) for run in rolled.runs], state)
    check(whole.program, forward)
    return replace(whole, program=without_graph(whole.program))


def few_of(rolled: Rolled) -> Unrolled:
    """The Program in which one unit stands for each run."""
    few = unroll(rolled, [1] * len(rolled.runs))
    return replace(few, program=without_graph(few.program))


def rolled_up(
    task: Task, batch: Any, blueprint: Blueprint, shortening: Shortening
) -> tuple[Rolled, Captured]:
    try:
        with unlogged():
            captured = capture(
                task, batch=batch, blueprint=blueprint, without=shortening.without, graph=True
            )
    except CaptureError as error:
        raise Irregular(f"the model does not run with fewer blocks ({error.message})") from error
    return roll(_with_graph(captured), shortening.runs), captured


def _with_graph(captured: Captured) -> Program:
    assert captured.graph is not None
    if captured.graph.hooks:
        raise Irregular("hooks hang on gradients")
    return with_graph(captured.program, captured.sequences, captured.graph)


# The proof


def check(unrolled: Program, forward: Captured) -> None:
    """Raises Irregular unless the unrolled Program's forward is the whole model's."""
    actual = _with_graph(forward)
    mine = _forward(unrolled, actual.buffer_updates)
    theirs = _forward(actual, actual.buffer_updates)
    if len(mine) != len(theirs):
        raise Irregular(f"the whole model's forward has {len(theirs)} ops, not {len(mine)}")
    for one, other in zip(mine, theirs, strict=True):
        same = signature(one, unrolled.values) == signature(other, actual.values)
        if not same or one.source.module != other.source.module:
            raise Irregular(f"the whole model has {other.name} where {one.name} was to be")
    names = correspondence(mine, theirs)
    if names is None:
        raise Irregular("the whole model passes values in another way")
    by_value = {item.value: item for item in actual.inputs}
    for item in unrolled.inputs:
        there = names.get(item.value)
        if there is None:
            continue
        counterpart = by_value.get(there)
        if counterpart is None or counterpart.kind != item.kind:
            raise Irregular(f"{item.path} is not used where it was to be")
        if item.kind != "constant" and counterpart.path != item.path:
            raise Irregular(f"{counterpart.path} is used where {item.path} was to be")
    outputs = [(unrolled.loss, actual.loss)]
    for path, name in actual.buffer_updates.items():
        if path not in unrolled.buffer_updates:
            raise Irregular(f"{path} is updated in the whole model alone")
        outputs.append((unrolled.buffer_updates[path], name))
    for mine_name, their_name in outputs:
        if names.get(mine_name) != their_name:
            raise Irregular("the whole model gives another value")


def _forward(program: Program, updates: Mapping[str, str]) -> list[Op]:
    """The forward's ops that the loss and buffer updates need, and autograd's graph."""
    needed = {program.loss, *(program.buffer_updates.get(path, "") for path in updates)}
    found = []
    for op in reversed(program.ops):
        if op.phase != "forward":
            continue
        if of_graph(op):
            found.append(op)
        elif not needed.isdisjoint(op.results):
            found.append(op)
            needed.update(op.operands())
    return found[::-1]


# Finding runs


def find(module: nn.Module, forward: Captured) -> Shortening | None:
    """Runs of equal blocks in the forward of the whole model, None where there are none."""
    program = forward.program
    paths = [op.source.module for op in program.ops]
    state = _state(program)
    return shortening_of(
        (path, keys, _of_list(program, paths, path, keys, module, state))
        for path, keys in lists_of(module)
    )


def shortening_of(
    lists: Iterable[tuple[str, Sequence[str], list[int] | None]],
) -> Shortening | None:
    """From lists of modules, outer ones first: path, keys, and a number for each member.

    Members of one number are alike; None leaves the list as it is. The last member is not
    looked at: it always stays. Lists inside one that is shortened stay as they are.
    """
    without: dict[str, frozenset[str]] = {}
    runs: list[Run] = []
    taken: list[str] = []
    for path, keys, numbers in lists:
        if any(path == other or path.startswith(other + ".") for other in taken):
            continue
        found = _runs(path, keys, numbers[: len(keys) - 1]) if numbers else []
        if not found:
            continue
        taken.append(path)
        runs += found
        dropped = {unit for run in found for units in run.units[CAPTURED:] for unit in units}
        without[path] = frozenset(name.rpartition(".")[2] for name in dropped)
    return Shortening(without, tuple(runs)) if runs else None


def _runs(path: str, keys: Sequence[str], numbers: Sequence[int]) -> list[Run]:
    names = [f"{path}.{key}" if path else key for key in keys]
    return [
        Run(
            tuple(tuple(names[k : k + period]) for k in range(start, stop, period)),
            names[start - 1],
            names[stop],
        )
        for start, stop, period in _stretches(numbers)
    ]


def has_lists(module: nn.Module) -> bool:
    """Whether there are lists of modules that may be worth shortening."""
    return any(True for _ in lists_of(module))


def lists_of(module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Modules whose children are numbered, outer ones first: keys in order."""
    for path, owner in module.named_modules():
        keys = list(owner._modules)
        if len(keys) > _LEAST and keys == [str(number) for number in range(len(keys))]:
            children = list(owner._modules.values())
            if None not in children and len({id(child) for child in children}) == len(children):
                yield path, keys


def _state(program: Program) -> Mapping[str, list[tuple[Hashable, ...]]]:
    """What every module holds, by name: the rest of each path, with shape and the like."""
    found: dict[str, list[tuple[Hashable, ...]]] = {}
    for item in program.inputs:
        if item.kind not in ("parameter", "buffer"):
            continue
        value = program.values[item.value]
        prefix = item.path.rpartition(".")[0]
        while prefix:
            rest = item.path[len(prefix) :]
            found.setdefault(prefix, []).append(
                (rest, value.shape, value.dtype, item.kind, item.trainable, len(item.aliases))
            )
            prefix = prefix.rpartition(".")[0]
    return found


def _of_list(
    program: Program,
    paths: Sequence[str],
    path: str,
    keys: Sequence[str],
    module: nn.Module,
    state: Mapping[str, list[tuple[Hashable, ...]]],
) -> list[int] | None:
    names = [f"{path}.{key}" if path else key for key in keys]
    index = {name: number for number, name in enumerate(names)}
    depth = path.count(".") + (2 if path else 1)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, place in enumerate(paths):
        number = index.get(".".join(place.split(".")[:depth]))
        if number is not None:
            first.setdefault(number, position)
            last[number] = position
    ordered = [number for number in range(len(names)) if number in first]
    if ordered != list(range(len(names))):
        return None
    for number in ordered[1:]:
        if last[number - 1] >= first[number]:
            return None  # members run in turns, or more than once
    users: dict[str, set[int]] = {}
    for number in ordered[:-1]:
        for op in program.ops[first[number] : first[number + 1]]:
            for name in op.operands():
                users.setdefault(name, set()).add(number)
    # A parameter of a member is used by that one alone; what passes between two comes from one.
    inside = {r for op in program.ops[first[0] : first[ordered[-1]]] for r in op.results}
    shared = {name for name, found in users.items() if len(found) > 1 and name not in inside}
    kinds: dict[Hashable, int] = {}
    numbers: list[int] = []
    for number in ordered[:-1]:
        ops = program.ops[first[number] : first[number + 1]]
        own = names[number]
        shape = (
            tuple(signature(op, program.values) for op in ops),
            tuple(name for op in ops for name in op.operands() if name in shared),
            tuple(state.get(own, ())),
            tuple(op.source.module[len(own) :] if op.source.module.startswith(own + ".") else ""
                  for op in ops),
        )  # fmt: skip
        if hooked(module.get_submodule(own)):
            return None
        numbers.append(kinds.setdefault(shape, len(kinds)))
    return numbers


def _stretches(numbers: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, stop, period) of the middles of runs that repeat, longest first taken.

    A unit stays before each run and after it, since layouts differ there.
    """
    found: list[tuple[int, int, int]] = []
    for period in range(1, min(_LONGEST, len(numbers) // _LEAST) + 1):
        start = 0
        while start + period < len(numbers):
            stop = start
            while stop + period < len(numbers) and numbers[stop] == numbers[stop + period]:
                stop += 1
            if stop == start:
                start += 1
                continue
            end = stop + period
            begin = start + period
            units = (end - begin) // period
            if end < len(numbers):
                units -= 1
            if units >= _LEAST:
                found.append((begin, begin + units * period, period))
            start = stop + 1
    found.sort(key=lambda item: (item[0] - item[1], item[2]))
    chosen: list[tuple[int, int, int]] = []
    for start, stop, period in found:
        if all(stop < one or other < start for one, other, _ in chosen):
            chosen.append((start, stop, period))
    return sorted(chosen)


def hooked(module: nn.Module) -> bool:
    """Whether functions hang on the gradients of a module or of its parameters."""
    return any(
        owner._backward_hooks or owner._backward_pre_hooks
        or any(item is not None and item._backward_hooks for item in owner._parameters.values())
        for owner in module.modules()
    )  # fmt: skip
