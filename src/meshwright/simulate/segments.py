"""Cuts a lowered program's ops into segments: the modules that a pipeline can be cut between.

A segment starts at the first forward op of a module and lasts until the next one
starts; ops between modules go with the segment before them. Modules are the members
of lists, such as the layers of a transformer, and whatever lies around lists. Where
some members of a list are alike, lists inside of them are not looked at.

Ops of the backward go where the op that they differentiate went, known by its
module; of a module that runs in several segments, to the latest that the backward
has not left behind.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from meshwright.errors import UsageError
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.merge import ARRIVE
from meshwright.program.blocks import signature
from meshwright.program.types import Op, Ref, refs

# Sources of ops that belong to no module; see `meshwright.lower.lower`.
GATHERING = "parameter gathering"
REDUCTION = "gradient reduction"
_LOSS = "loss"


@dataclass(frozen=True)
class Segments:
    """`forward` and `backward` hold each segment's ops, in the order in which they run.

    repeated: whether the segment is one of several alike, or said to stand for several.
    segment_of: of each value that a forward or backward op makes. operands: of all
    ops of the lowered program, by name.
    """

    names: tuple[str, ...]
    repeated: tuple[bool, ...]
    forward: tuple[tuple[Op, ...], ...]
    backward: tuple[tuple[Op, ...], ...]
    segment_of: Mapping[str, int]
    operands: Mapping[str, tuple[str, ...]]


def segments(lowered: LoweredProgram, starts: frozenset[str] = frozenset()) -> Segments:
    """starts: further modules to start a segment at. Raises UsageError for one without ops."""
    ops = lowered.forward.ops
    modules = _effective_modules(ops)
    first: dict[str, int] = {}
    for index, module in enumerate(modules):
        for path in _prefixes(module):
            first.setdefault(path, index)
    for name in starts:
        if name not in first:
            raise UsageError(
                f"There is no module {name!r} with ops in the forward to cut the model at.",
                f"Modules that can be cut at are {_shown(_chosen(lowered, ops, modules))}.",
            )
    chosen = _chosen(lowered, ops, modules)
    at = {first[name]: name for name in sorted(chosen, key=len, reverse=True)}
    at |= {first[name]: name for name in starts}
    if 0 not in at:
        at[0] = ""
    bounds = sorted(at)
    names = tuple(at[index] for index in bounds)
    spans = [*pairwise(bounds), (bounds[-1], len(ops))]
    forward = tuple(tuple(ops[start:stop]) for start, stop in spans)
    number = {}
    for segment, (start, stop) in enumerate(spans):
        for index in range(start, stop):
            number[ops[index].name] = segment
    segment_of = {
        result: segment
        for segment, group in enumerate(forward)
        for op in group
        for result in op.results
        if result is not None
    }
    operands = _operands(lowered)
    backward = _backward(
        lowered, modules, [number[op.name] for op in ops], len(names), segment_of, operands
    )
    repeated = tuple(chosen.get(name, False) or name in starts for name in names)
    return Segments(names, repeated, forward, backward, segment_of, operands)


def _operands(lowered: LoweredProgram) -> dict[str, tuple[str, ...]]:
    """Asked for often, and `Op.operands` looks into every argument each time."""
    sections = (
        lowered.gather, lowered.forward, lowered.backward, lowered.reduce, lowered.clip
    )  # fmt: skip
    found: dict[str, tuple[str, ...]] = {}
    for section in sections:
        for op in section.ops:
            names: list[str] = []
            for argument in (*op.args, *(item for _, item in op.kwargs)):
                if type(argument) is Ref:
                    names.append(argument.name)
                elif type(argument) is tuple:
                    names.extend(refs(argument))
            assert op.name not in found, f"two ops are called {op.name}"
            found[op.name] = tuple(names)
    return found


def _prefixes(module: str) -> list[str]:
    parts = module.split(".") if module else []
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _effective_modules(ops: Sequence[Op]) -> list[str]:
    """The module of each op; a gathered parameter's is that of the op that it is gathered for."""
    modules = [op.source.module for op in ops]
    following = ""
    for index in range(len(ops) - 1, -1, -1):
        if modules[index] in (GATHERING, REDUCTION):
            modules[index] = following
        elif modules[index] == _LOSS:
            modules[index] = ""
        following = modules[index]
    return modules


@dataclass
class _Node:
    children: dict[str, _Node]
    shape: list[Hashable]  # signatures of the ops in it, in order

    def alike(self) -> bool:
        """Whether it holds numbered modules, at least two of them alike."""
        shapes = [tuple(c.shape) for name, c in self.children.items() if name.isdecimal()]
        return len(set(shapes)) < len(shapes)

    def holds_list(self) -> bool:
        numbered = sum(name.isdecimal() for name in self.children)
        return numbered > 1 or any(child.holds_list() for child in self.children.values())


def _chosen(lowered: LoweredProgram, ops: Sequence[Op], modules: Sequence[str]) -> dict[str, bool]:
    """Modules that start segments, and whether others in the same list are alike."""
    root = _Node({}, [])
    numbers: dict[Hashable, int] = {}
    for op, module in zip(ops, modules, strict=True):
        if op.source.module == GATHERING:  # may be for the block after it
            continue
        kind = signature(_of_any_stream(op), lowered.values)
        number = numbers.setdefault(kind, len(numbers))
        node = root
        for part in module.split(".") if module else ():
            node = node.children.setdefault(part, _Node({}, []))
            node.shape.append(number)
    found: dict[str, bool] = {}

    def visit(node: _Node, path: str) -> None:
        alike = node.alike()
        shapes = [tuple(child.shape) for child in node.children.values()]
        for name, child in node.children.items():
            whole = f"{path}.{name}" if path else name
            if alike and name.isdecimal():
                found[whole] = shapes.count(tuple(child.shape)) > 1
            elif child.holds_list():
                visit(child, whole)
            else:
                found[whole] = False

    visit(root, "")
    return found


def _of_any_stream(op: Op) -> Op:
    """Draws of equal blocks differ by their stream alone."""
    if op.target != "mesh.random":
        return op
    return replace(op, kwargs=tuple(item for item in op.kwargs if item[0] != "stream"))


def _shown(names: Mapping[str, bool]) -> str:
    listed = list(names)
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")


def _backward(
    lowered: LoweredProgram,
    modules: Sequence[str],
    forward_segment: Sequence[int],
    count: int,
    segment_of: dict[str, int],
    operands: Mapping[str, tuple[str, ...]],
) -> tuple[tuple[Op, ...], ...]:
    """The backward's ops by segment; `segment_of` is filled with what they make.

    No op may need what an earlier segment's backward makes, since that runs later.
    """
    where: dict[str, set[int]] = {}
    for module, segment in zip(modules, forward_segment, strict=True):
        for path in ("", *_prefixes(module)):
            where.setdefault(path, set()).add(segment)
    own: dict[str, set[int]] = {}
    for module, segment in zip(modules, forward_segment, strict=True):
        own.setdefault(module, set()).add(segment)
    ops = lowered.backward.ops
    made: dict[str, int] = {}
    current = count - 1
    placed: list[int | None] = []
    for op in ops:
        producers = [made[name] for name in operands[op.name] if name in made]
        least = min(producers, default=count - 1)
        module = op.source.module
        if module == GATHERING:
            placed.append(None)  # goes with the op that follows it
            continue
        if module == REDUCTION:
            segment = least
        else:
            options = own.get(module) or where.get(module) or where[""]
            reachable = [item for item in options if item <= current] or [min(options)]
            segment = min(max(reachable), least)
        placed.append(segment)
        current = min(current, segment) if len(own.get(module, ())) == 1 else current
        for result in op.results:
            if result is not None:
                made[result] = segment
    following = 0
    waits: dict[str, int] = {}  # where what a gather gives is waited for
    for index in range(len(ops) - 1, -1, -1):
        segment_here = placed[index]
        if segment_here is None:
            placed[index] = segment_here = following
            if ops[index].target == ARRIVE:
                waits.update(dict.fromkeys(operands[ops[index].name], segment_here))
            for name in ops[index].results:
                if name in waits:
                    placed[index] = max(segment_here, waits[name])
        else:
            following = segment_here
    groups: list[list[Op]] = [[] for _ in range(count)]
    for op, segment_found in zip(ops, placed, strict=True):
        assert segment_found is not None
        groups[segment_found].append(op)
        for result in op.results:
            if result is not None:
                segment_of[result] = segment_found
    return tuple(tuple(group) for group in groups)
