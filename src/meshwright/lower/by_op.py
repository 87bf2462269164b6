"""A layout of every op by itself as decisions that a plan stores.

Ops follow what they use, so few decisions say it all: those on inputs, and on ops that would
else be cut in another way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from meshwright.layout.assignment import Assignment
from meshwright.layout.by_op import decision_on
from meshwright.layout.groups import Analysis
from meshwright.layout.types import Split
from meshwright.lower.alone import Alone
from meshwright.lower.choose import choose
from meshwright.lower.lower import Lowering
from meshwright.plan.types import Decision, ParameterPlan
from meshwright.program.types import Op
from meshwright.rules.types import FactorCut
from meshwright.search.oracle import Choice, Problem

_WHY = "the best layout of each op by itself"


@dataclass
class OpByOp:
    """What `search.op_level` asks of lowering, of one Program on one mesh."""

    alone: Alone

    def problem(self) -> Problem:
        return self.alone.problem()

    def decided(
        self, choice: Choice, problem: Problem
    ) -> tuple[tuple[Decision, ...], dict[str, ParameterPlan]]:
        return decided(self.alone.analysis, self.alone.assignment(choice, problem))


def decided(
    analysis: Analysis, assignment: Assignment
) -> tuple[tuple[Decision, ...], dict[str, ParameterPlan]]:
    """Decisions and parameters that `assign` makes an equal plan of.

    assignment: it holds every op, as `Alone.assignment` makes it. Raises PlanError where an op is
    cut in a way that no dim of what it uses or makes tells.
    """
    made: list[Decision] = []
    wanted = {axis: dict(cuts) for axis, cuts in assignment.wanted.items()}
    parameters = {}
    for path, item in assignment.parameters.items():
        axes = tuple(axis for axis, _ in item.storage.shards if item.compute.split(axis) is None)
        parameters[path] = ParameterPlan(
            residency=item.residency if axes else "always", storage_axes=axes
        )
        for axis, split in item.compute.shards:
            wanted[axis][item.value] = split
    paths = {item.value: item.path for item in analysis.program.inputs}
    for axis, cuts in wanted.items():
        for value, split in cuts.items():
            made.append(_lies(analysis, axis, value, paths.get(value, value), split))
    following = replace(assignment, wanted=wanted)
    walk = _Following(analysis, following, following.mesh.coordinate(0))
    walk.run()
    for axis, pins in walk.pins.items():
        parts = assignment.mesh.extent(axis)
        for name, cut in pins.items():
            op = analysis.by_name[name]
            made.append(decision_on(analysis, op, axis, cut, parts, _WHY))
    return tuple(made), parameters


def _lies(analysis: Analysis, axis: str, value: str, path: str, split: Split) -> Decision:
    size = analysis.program.values[value].shape[split.dim]
    plain = split.outer == 1 and split.extent == size
    return Decision(
        axis=axis, value=path, dim=split.dim, outer=split.outer,
        extent=None if plain else split.extent, only=True, why=_WHY,
    )  # fmt: skip


class _Following(Lowering):
    """A lowering of what holds every op, which notes those that would not be cut so by themselves.

    pins: by axis and op, the cut that has to be said. Up to each op the program is as it will be
    with these alone, so that what the op would do by itself is known.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pins: dict[str, dict[str, FactorCut | None]] = {
            axis: {} for axis in self.assignment.mesh.names
        }
        self.free = replace(self.assignment, held=dict(self.pins))

    def lower_ops(self, ops: Sequence[Op]) -> None:
        for op in ops:
            self.lower_op(op)

    def lower_op(self, op: Op) -> None:
        self._follow(op)
        super().lower_op(op)

    def _follow(self, op: Op) -> None:
        rule, names = self.analysis.rules[op.name], self.analysis.operands[op.name]
        operands = [self.find(name) for name in names]
        layouts = [self.b.whole[name].layout for name in operands]
        kept_as = [self.b.converted.get(name, {}).keys() for name in operands]
        settled = self.b.settled(operands)

        def chosen(assignment: Assignment) -> Mapping[str, FactorCut]:
            return choose(
                op, rule, assignment, names, layouts, self.program.values, self.ragged.ties(op),
                settled, kept_as,
            )  # fmt: skip

        held = chosen(self.assignment)
        while True:
            alone = chosen(self.free)
            differs = next(
                (
                    axis
                    for axis in self.assignment.mesh.names
                    if held.get(axis) != alone.get(axis) and op.name not in self.pins[axis]
                ),
                None,
            )
            if differs is None:
                return
            self.pins[differs][op.name] = held.get(differs)


__all__ = ["OpByOp", "decided"]
