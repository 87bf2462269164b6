"""What compiled or hand-fused kernels make of a run of ops: bytes at the border, one launch.

Chains of pointwise ops, copies, casts and reductions along rows become one
kernel wherever they go over the same elements, as torch.compile's Inductor and
the fused kernels of training frameworks do it: what is made and used up inside
passes through no memory. Products, attention, collectives and scattered writes
run as they are and end a chain.

Groups have levels: every edge between two groups, or a group and an op on its
own, goes from a lower level to a higher one, so no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from meshwright.cost.compute import only_renames
from meshwright.cost.families import family_of
from meshwright.cost.traffic import reads
from meshwright.program.types import Op, Value

_EVERYWHERE = frozenset({"pointwise", "transcendental", "factory", "random", "copy"})
_GATHERS = frozenset({"embedding", "gather", "index_select", "index", "take_along_dim"})
_REDUCTIONS = frozenset(
    {
        "sum", "mean", "prod", "amax", "amin", "max", "min", "all", "any", "argmax", "argmin",
        "std", "var", "var_mean", "std_mean", "linalg_vector_norm", "norm", "logsumexp",
        "nll_loss_forward",
    }
)  # fmt: skip
_ROW_NORMS = frozenset(
    {
        "native_layer_norm", "native_layer_norm_backward", "rms_norm", "layer_norm",
        "_fused_rms_norm", "_fused_rms_norm_backward",
    }
)  # fmt: skip

Direction = Literal["rows", "columns"]


class Fused(NamedTuple):
    """One op's part of a kernel: all of its bytes and launches, or none of them."""

    nbytes: int
    launches: int


@dataclass(slots=True)
class _Group:
    level: int
    elements: int
    direction: Direction | None = None
    ops: list[int] = field(default_factory=list)
    reads: dict[str, int] = field(default_factory=dict)  # bytes by storage
    makes: set[str] = field(default_factory=set)  # storages
    again: int = 0  # bytes read by further kernels, such as those of a weight's gradient
    launches: int = 1


def fuse(
    ops: Sequence[Op], values: Mapping[str, Value], outlives: Collection[str]
) -> list[Fused | None]:
    """For each of `ops`, which run in order: its part of a fused kernel, or None.

    An op with None runs as it is and keeps its own cost. `outlives` names the
    values that are used after these ops. The first op of a kernel has all of
    its bytes and its launches, the others none.
    """
    return _Fusion(ops, values, outlives).run()


class _Fusion:
    def __init__(
        self, ops: Sequence[Op], values: Mapping[str, Value], outlives: Collection[str]
    ) -> None:
        self.ops = ops
        self.values = values
        self.outlives = {values[name].storage for name in outlives if name in values}
        self.groups: list[_Group] = []
        self.group_of_op: list[int | None] = []
        self.maker: dict[str, int] = {}  # group that can go on with a value
        self.level: dict[str, int] = {}  # of what makes a value
        self.readers: dict[str, int] = {}  # last group that reads a storage
        self.merged: dict[int, int] = {}

    def run(self) -> list[Fused | None]:
        alone = []  # ops that pass values on without a kernel
        for index, op in enumerate(self.ops):
            operands = list(dict.fromkeys(op.operands()))
            self.group_of_op.append(None)
            if self._renames(op):
                alone.append(index)
                self._pass_on(op, operands)
                continue
            direction = _direction(op, self.values)
            if direction == "never":
                self._run_alone(op, operands)
                continue
            self._join(index, op, operands, None if direction == "any" else direction)
        return self._parts(set(alone))

    def _renames(self, op: Op) -> bool:
        family = family_of(op.target)
        return family not in ("collective", "opaque") and only_renames(op, self.values, family)

    def _pass_on(self, op: Op, operands: list[str]) -> None:
        for result in op.results:
            if result is None or not operands:
                continue
            source = operands[0]
            self.level[result] = max(self.level.get(name, 0) for name in operands)
            if source in self.maker:
                self.maker[result] = self.maker[source]

    def _run_alone(self, op: Op, operands: list[str]) -> None:
        level = 1 + max((self.level.get(name, 0) for name in operands), default=0)
        for result in op.results:
            if result is not None:
                self.level[result] = level
                self.maker.pop(result, None)

    def _join(self, index: int, op: Op, operands: list[str], direction: Direction | None) -> None:
        values = self.values
        made = [item for item in op.results if item is not None]
        sizes = [values[name].numel for name in made]
        if _name(op) not in _GATHERS and family_of(op.target) != "factory":
            sizes += [values[name].numel for name in operands]
        elements = max(sizes, default=1)
        number = self._choose(operands, elements, direction)
        if number is None:
            level = 1 + max((self.level.get(name, 0) for name in operands), default=0)
            number = len(self.groups)
            self.groups.append(_Group(level, elements))
        group = self.groups[number]
        group.direction = group.direction or direction
        group.ops.append(index)
        self.group_of_op[index] = number
        for name, nbytes in reads(op, values).items():
            storage = values[name].storage
            if storage not in group.makes:
                group.reads[storage] = max(group.reads.get(storage, 0), nbytes)
                self.readers[storage] = number
        for name in made:
            self.level[name] = group.level
            if values[name].storage == name or values[name].storage in group.makes:
                group.makes.add(values[name].storage)
            small = values[name].numel < elements and direction == "columns"
            if small:  # complete when all rows are: another kernel goes on with it
                self.maker.pop(name, None)
            else:
                self.maker[name] = number
        if _name(op).endswith("norm_backward"):
            # The gradients of scale and shift are sums over the rows, in a kernel of their own.
            group.again += sum(values[name].nbytes for name in operands[:2])
            group.launches += 1

    def _choose(
        self, operands: list[str], elements: int, direction: Direction | None
    ) -> int | None:
        """The group to go on with; merges others of its level where the op needs both."""
        makers = [self._root(self.maker[name]) for name in operands if name in self.maker]
        readers = [
            self._root(self.readers[storage])
            for name in operands
            if (storage := self.values[name].storage) in self.readers
        ]
        for number in sorted(set(makers), reverse=True) + sorted(set(readers), reverse=True):
            group = self.groups[number]
            if not self._fits(group, elements, direction, number in makers):
                continue
            others = []
            legal = True
            for name in operands:
                maker = self._root(self.maker[name]) if name in self.maker else None
                if maker == number or self.level.get(name, 0) < group.level:
                    continue
                if maker is None or self.groups[maker].level != group.level:
                    legal = False
                    break
                if not self._mergeable(group, self.groups[maker], direction):
                    legal = False
                    break
                others.append(maker)
            if legal:
                for other in set(others):
                    self._merge(other, number)
                return number
        return None

    @staticmethod
    def _fits(group: _Group, elements: int, direction: Direction | None, makes: bool) -> bool:
        if direction and group.direction not in (None, direction):
            return False
        if elements == group.elements:
            return True
        # What was reduced along rows goes on, row by row, in the same kernel.
        return (
            makes
            and direction is None
            and group.direction == "rows"
            and elements < group.elements
            and group.elements % max(elements, 1) == 0
        )

    @staticmethod
    def _mergeable(one: _Group, other: _Group, direction: Direction | None) -> bool:
        wanted = {item for item in (one.direction, other.direction, direction) if item}
        return one.elements == other.elements and len(wanted) <= 1

    def _merge(self, gone: int, into: int) -> None:
        source, target = self.groups[gone], self.groups[into]
        for index in source.ops:
            self.group_of_op[index] = into
        target.ops += source.ops
        target.makes |= source.makes
        for storage, nbytes in source.reads.items():
            target.reads[storage] = max(target.reads.get(storage, 0), nbytes)
        target.direction = target.direction or source.direction
        target.again += source.again
        target.launches += source.launches - 1
        source.ops = []
        self.merged[gone] = into

    def _root(self, number: int) -> int:
        while number in self.merged:
            number = self.merged[number]
        return number

    def _parts(self, alone: set[int]) -> list[Fused | None]:
        used_by: dict[str, set[int | None]] = {}
        for index, op in enumerate(self.ops):
            if index in alone:
                continue
            for name in op.operands():
                used_by.setdefault(self.values[name].storage, set()).add(self.group_of_op[index])
        parts: list[Fused | None] = [
            Fused(0, 0) if index in alone or number is not None else None
            for index, number in enumerate(self.group_of_op)
        ]
        for number, group in enumerate(self.groups):
            if not group.ops:
                continue
            written = 0
            for index in group.ops:
                made = [item for item in self.ops[index].results if item is not None]
                for name in made:
                    storage = self.values[name].storage
                    inside = storage in group.makes and storage not in self.outlives
                    if not inside or used_by.get(storage, set()) - {number}:
                        written += self.values[name].nbytes
            read = sum(
                nbytes for storage, nbytes in group.reads.items() if storage not in group.makes
            )
            if read + written:
                parts[min(group.ops)] = Fused(read + written + group.again, group.launches)
        return parts


def _name(op: Op) -> str:
    return op.target.split(".")[1]


def _direction(op: Op, values: Mapping[str, Value]) -> Literal["any", "rows", "columns", "never"]:
    """Along what an op reduces, if it does; `never` where it runs in a kernel of its own."""
    family, name = family_of(op.target), _name(op).removesuffix("_")
    if name == "nll_loss_backward":  # one element of each row, elsewhere zeros
        return "any"
    if not op.target.startswith("aten."):
        return "never"
    if family in _EVERYWHERE or name in _GATHERS:
        return "any"
    if name in _ROW_NORMS:
        return "rows"
    if family != "softmax" and name not in _REDUCTIONS:
        return "never"
    source = values[next(op.operands())]
    dims = op.args[1] if len(op.args) > 1 else None
    if name == "nll_loss_forward" or dims is None or not source.shape:
        return "columns"
    given = dims if isinstance(dims, tuple) else (dims,)
    rank = len(source.shape)
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in given):
        return "columns"
    last = {item % rank for item in given if isinstance(item, int)}
    return "rows" if last and last == set(range(rank - len(last), rank)) else "columns"
