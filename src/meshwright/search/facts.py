"""What guesses about points rest on: facts of the Program that hold for every point.

Each op's time and what of it a cut divides, which ops and parameters each axis cuts, what it
leaves pending, gathers or exchanges, and when values come and go. Each is found once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from meshwright.cost.families import family_of
from meshwright.cost.flops import op_flops
from meshwright.cost.table import CostTable
from meshwright.errors import MeshwrightError, StrategyError
from meshwright.layout.assignment import own_ops, resolve
from meshwright.layout.groups import Analysis, Group
from meshwright.plan.types import Decision
from meshwright.search import axis_context, axis_edge, axis_expert, axis_spatial
from meshwright.search.sequence_groups import token_groups
from meshwright.search.space import ClassKey, Space

__all__ = ["Facts"]


@dataclass(frozen=True)
class _Class:
    """What cutting one class of groups does: ops that it cuts, sums that it leaves pending
    (how many, and their bytes in all), parameters that it divides, and what its forward ops use
    whole: bytes by the number of the op that makes it."""

    mask: NDArray[np.bool_]
    count: int
    nbytes: int
    paths: tuple[str, ...]
    wholes: Mapping[int, float]


@dataclass(frozen=True)
class _Lifetimes:
    """Of each value: the op that makes it, the last that uses it, by number, and its bytes."""

    born: NDArray[np.int_]
    gone: NDArray[np.int_]
    nbytes: NDArray[np.float64]

    def peak(self, share: NDArray[np.float64]) -> float:
        """Most bytes that are there at once, where each op makes a share of its results."""
        if not len(self.born):
            return 0.0
        held = self.nbytes * share[self.born]
        count = len(share) + 1
        comes = np.bincount(self.born, held, count)
        goes = np.bincount(self.gone + 1, held, count)
        return float(np.cumsum(comes - goes).max())


class Facts:
    """weights: how many equal ops an op of the Program stands for, by its module, where the
    Program was shortened."""

    def __init__(self, space: Space, costs: CostTable, weights: Mapping[str, int]) -> None:
        self.space = space
        self.weights = weights
        self.costs = costs
        analysis = space.first
        program = analysis.program
        self.microbatches = space.strategy.microbatches or 1  # that the Program is for
        self.ops = [op for op in program.ops if family_of(op.target) != "view"]
        self.number = {op.name: k for k, op in enumerate(self.ops)}
        weight = np.array(
            [weights.get(_top(op.source.module, weights), 1) for op in self.ops], float
        )
        fixed, variable, host = [], [], []
        for op in self.ops:
            seconds, launches, host_s = self._cost(op.name)
            start = min(seconds, costs.streaming(1, launches)) if launches else 0.0
            fixed.append(start)
            variable.append(seconds - start)
            host.append(host_s)
        self.fixed = np.array(fixed) * weight
        self.variable = np.array(variable) * weight
        self.host_s = float((np.array(host) * weight).sum())
        self.weight_of = {
            item.path: weights.get(_top(item.path, weights), 1)
            for item in program.inputs_of("parameter")
        }
        self._masks: dict[str, NDArray[np.bool_]] = {}
        self._groups: dict[str, tuple[Group, ...]] = {}
        self._class_facts: dict[tuple[int, ClassKey], _Class | None] = {}
        self._exchanged: dict[str, tuple[Counter[int], Counter[int]]] = {}
        self._makers = {
            name: op.name for op in program.ops for name in op.results if name is not None
        }
        self._weight_of_op = {
            op.name: weights.get(_top(op.source.module, weights), 1) for op in program.ops
        }
        self.lives = self._lifetimes(weight)

    def _cost(self, name: str) -> tuple[float, int, float]:
        op = self.space.first.by_name[name]
        try:
            cost = self.costs.op(
                op, self.space.first.operands[name], self.space.first.program.values
            )
        except MeshwrightError:
            return 0.0, 0, 0.0
        return cost.seconds, cost.launches, cost.host_s

    def _lifetimes(self, weight: NDArray[np.float64]) -> _Lifetimes:
        """When each value that an op makes comes and goes, parameters' gradients left out."""
        analysis = self.space.first
        program = analysis.program
        makers: dict[str, int] = {}
        last: dict[str, int] = {}
        reach = 0  # number of the op at or before which views are taken
        for op in program.ops:
            number = self.number.get(op.name)
            if number is None:
                number = reach
            else:
                reach = number
                for name in op.results:
                    if name is not None:
                        makers.setdefault(program.values[name].storage, number)
            for name in (*analysis.operands[op.name], *op.results):
                if name is not None:
                    last[program.values[name].storage] = number
        gradients = {program.values[n].storage for n in program.gradients.values() if n}
        given = {program.values[item.value].storage for item in program.inputs}
        backward = [op.phase == "backward" for op in self.ops]
        born, gone, nbytes = [], [], []
        for storage, number in makers.items():
            if storage in gradients or storage in given or storage not in program.values:
                continue
            end = last[storage]
            # What waits for the backward is there in every block that the op stands for.
            times = weight[number] if backward[end] and not backward[number] else 1.0
            born.append(number)
            gone.append(end)
            nbytes.append(program.values[storage].nbytes * times)
        return _Lifetimes(np.array(born, int), np.array(gone, int), np.array(nbytes, float))

    def groups(self, axis: str) -> tuple[Group, ...]:
        """Groups that an axis other than `tensor` cuts."""
        found = self._groups.get(axis)
        if found is None:
            found = self._groups[axis] = tuple(self._find(axis))
        return found

    def _find(self, axis: str) -> Iterable[Group]:
        analysis = self.space.first
        if axis in ("data", "replica"):
            leaves = [
                (item, analysis.program.values[item.value].shape[0])
                for item in analysis.program.inputs_of("batch")
                if analysis.program.values[item.value].shape
            ]
            for item, size in leaves:
                if size > 1 and size == leaves[0][1]:  # as the batch is cut by name
                    decision = Decision(axis=axis, value=item.path, dim=0)
                    yield analysis.group(*resolve(analysis, decision))
            return
        if axis == "sequence":
            yield from (item.group for item in token_groups(analysis))
            return
        decide = {
            "context": axis_context, "spatial": axis_spatial, "edge": axis_edge,
            "expert": axis_expert,
        }[axis]  # fmt: skip
        try:
            decisions = decide.decisions(analysis, 2)
        except StrategyError:
            return
        for decision in decisions:
            value, split = resolve(analysis, decision)
            group = analysis.group(value, split)
            yield _alone(analysis, group, value) if decision.alone else group

    def mask(self, axis: str) -> NDArray[np.bool_]:
        found = self._masks.get(axis)
        if found is None:
            found = self._masks[axis] = self._of(self.groups(axis))
        return found

    def _of(self, groups: Iterable[Group]) -> NDArray[np.bool_]:
        mask = np.zeros(len(self.ops), bool)
        for group in groups:
            for name in group.cuts:
                number = self.number.get(name)
                if number is not None:
                    mask[number] = True
        return mask

    def class_of(self, parts: int, key: ClassKey) -> _Class | None:
        if (parts, key) in self._class_facts:
            return self._class_facts[parts, key]
        item = self.space.classes(parts).get(key)
        found = None
        if item is not None:
            program = self.space.first.program
            gradients = {name for name in program.gradients.values() if name}
            count = nbytes = 0
            for group in item.groups:
                for name in group.pending:
                    if name not in gradients:
                        weight = self._weight(name)
                        count += weight
                        nbytes += program.values[name].nbytes * weight
            paths = tuple(
                parameter.path
                for parameter in program.inputs_of("parameter")
                if any(parameter.value in group.members for group in item.groups)
            )
            found = _Class(self._of(item.groups), count, nbytes, paths, self._wholes(item.groups))
        self._class_facts[parts, key] = found
        return found

    def _wholes(self, groups: Iterable[Group]) -> dict[int, float]:
        analysis = self.space.first
        values = analysis.program.values
        found: dict[int, float] = {}
        for group in groups:
            for name in group.cuts:
                if analysis.by_name[name].phase != "forward":
                    continue
                for used in analysis.operands[name]:
                    maker = self._makers.get(values[used].storage)
                    if used in group.members or maker not in self.number:
                        continue
                    found[self.number[maker]] = values[used].nbytes * self._weight_of_op[maker]
        return found

    def _weight(self, value: str) -> int:
        """How many values one of the Program stands for."""
        op = self._makers.get(value)
        return self._weight_of_op[op] if op is not None else 1

    @cached_property
    def experts(self) -> frozenset[str]:
        """Values that the axis `expert` cuts."""
        return frozenset(name for group in self.groups("expert") for name in group.members)

    @cached_property
    def _to_gradients(self) -> frozenset[str]:
        """Parameters' gradients, and what views, copies and casts make them of."""
        analysis = self.space.first
        found: set[str] = set()
        stack = [name for name in analysis.program.gradients.values() if name]
        while stack:
            name = stack.pop()
            found.add(name)
            made = analysis.made_by.get(name)
            if made is not None and len(analysis.operands[made.name]) == 1:
                before = analysis.operands[made.name][0]
                if analysis.program.values[before].numel == analysis.program.values[name].numel:
                    stack.append(before)
        return frozenset(found)

    def moved(self, axis: str) -> tuple[Counter[int], Counter[int]]:
        """Bytes of each sum that an axis leaves pending, and of each value that it gathers.

        With how often there is one of so many.
        """
        found = self._exchanged.get(axis)
        if found is not None:
            return found
        analysis = self.space.first
        values = analysis.program.values
        gradients = self._to_gradients
        # Parameters are not exchanged: those that an axis cuts stay where they are.
        stay = {values[item.value].storage for item in analysis.program.inputs_of("parameter")}
        pending: Counter[int] = Counter()
        ends: Counter[int] = Counter()
        alone = [
            group for group in self.groups(axis) if group.ends and group.ends == (*group.cuts,)
        ]
        for group in self.groups(axis):
            if axis == "context":
                for name in group.cuts:
                    if family_of(analysis.by_name[name].target) == "attention":
                        weight = self._weight_of_op[name]
                        for used in analysis.operands[name][1:3]:
                            ends[values[used].nbytes] += weight
                continue
            for name in group.pending:
                if name not in gradients:
                    pending[values[name].nbytes] += self._weight(name)
            for name in group.ends if group not in alone else ():
                for used in dict.fromkeys(analysis.operands[name]):
                    if used in group.members and values[used].storage not in stay:
                        ends[values[used].nbytes] += self._weight_of_op[name]
        for name in axis_expert.travelling(analysis, alone):
            ends[values[name].nbytes] += self._weight(name)
        self._exchanged[axis] = pending, ends
        return pending, ends


def _alone(analysis: Analysis, group: Group, value: str) -> Group:
    """A group of which `value` alone is cut: the matrix work that uses it, to which tokens go."""
    cuts = {
        name: cut
        for name, cut in own_ops(analysis, group, value, analysis.gradient_of.get(value)).items()
        if op_flops(analysis.by_name[name], analysis.program.values)
    }
    moved = {
        name: split for name, split in group.members.items()
        if name == value or any(name in analysis.operands[op] for op in cuts)
    }  # fmt: skip
    return Group(group.seed, moved, cuts, (), tuple(cuts))


def _top(module: str, weights: Mapping[str, int]) -> str:
    """The module of `weights` that `module` lies in."""
    for name in weights:
        if module == name or module.startswith(f"{name}."):
            return name
    return module
