"""Which factor an op is cut along, for each axis."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from meshwright.layout.assignment import Assignment
from meshwright.layout.cuts import compatible
from meshwright.layout.types import Layout, Split
from meshwright.lower.special_table import CONTIGUOUS
from meshwright.program.types import Op, Value
from meshwright.rules.types import Dims, FactorCut, OpRule


@dataclass(frozen=True)
class Ties:
    """Cuts that an op must have, and by axis the factors that it must not be cut along."""

    required: Mapping[str, FactorCut] = field(default_factory=dict)
    closed: Mapping[str, frozenset[int]] = field(default_factory=dict)


FREE = Ties()


def choose(
    op: Op,
    rule: OpRule,
    assignment: Assignment,
    operands: Sequence[str],
    layouts: Sequence[Layout],
    values: Mapping[str, Value],
    ties: Ties = FREE,
    settled: Collection[str] = (),
    kept: Sequence[Collection[Layout]] = (),
) -> dict[str, FactorCut]:
    """The cut of each axis of the mesh; an axis that is not a key computes replicas.

    `layouts` are the current ones of the `operands`, `kept` others that they were brought
    into for ops before; `settled` are axes over which a pending sum of one of them has been
    reduced for another op already. An op that an earlier decision holds is cut as that says.
    Else what the groups want of the results counts, and how the operands already lie: of
    both, the cut that moves fewest bytes wins, of equals the one that leaves most where
    they are; so does that where nothing is wanted of the results.
    """
    chosen: dict[str, FactorCut] = {}
    for axis in assignment.mesh.names:
        if axis in ties.required:
            chosen[axis] = ties.required[axis]
            continue
        wanted = assignment.wanted[axis]
        holds = assignment.held.get(axis)
        if not wanted and not holds and not any(layout.shards for layout in layouts):
            continue
        parts = assignment.mesh.extent(axis)
        candidates: dict[FactorCut, int] = {}
        if rule.follows is not None:
            split = layouts[rule.follows].split(axis)
            cut = rule.to_factor(rule.operands[rule.follows], split, parts) if split else None
            if cut is not None and allowed(rule, cut, parts, chosen):
                chosen[axis] = cut
            continue
        held = holds.get(op.name) if holds is not None else None
        sums = holds is not None and axis not in settled and _sums(rule, axis, layouts)
        if held is None and (sums or (holds is not None and op.name in holds)):
            continue
        closed = ties.closed.get(axis, frozenset())
        if held is not None and held.factor not in closed and allowed(rule, held, parts, chosen):
            chosen[axis] = held
            continue
        for result, dims in zip(op.results, rule.results, strict=True):
            split = wanted.get(result) if result is not None else None
            if split is not None and dims is not None:
                cut = rule.to_factor(dims, split, parts)
                if cut is not None and allowed(rule, cut, parts, chosen):
                    candidates.setdefault(cut, 0)
        asked = bool(candidates)
        lying = _lying(axis, layouts, kept)
        for name, dims, splits in zip(operands, rule.operands, lying, strict=True):
            asks = () if splits or asked or name not in wanted else (wanted[name],)
            for split in (*splits, *asks):
                cut = rule.to_factor(dims, split, parts)
                if cut is not None and allowed(rule, cut, parts, chosen):
                    here = values[name].nbytes if splits else 0
                    candidates[cut] = candidates.get(cut, 0) + here
        candidates = {cut: here for cut, here in candidates.items() if cut.factor not in closed}
        if asked and len(candidates) > 1:
            moved = _Moves(op, rule, axis, assignment, operands, layouts, lying, values, chosen)
            chosen[axis] = min(candidates, key=lambda cut: (moved(cut), -candidates[cut]))
        elif candidates:
            chosen[axis] = max(candidates, key=lambda cut: candidates[cut])
    return chosen


def _sums(rule: OpRule, axis: str, layouts: Sequence[Layout]) -> bool:
    """Whether the op is linear in values whose sums are pending: they are reduced after it."""
    involved = layouts if rule.linear == "joint" else layouts[:1]
    return (
        rule.linear != "none"
        and bool(involved)
        and all(layout.reduction(axis) == "sum" for layout in involved)
    )


def _lying(
    axis: str, layouts: Sequence[Layout], kept: Sequence[Collection[Layout]]
) -> list[tuple[Split, ...]]:
    """How each operand is to be had cut over the axis without moving it, its own cut first."""
    found = []
    for position, layout in enumerate(layouts):
        splits = dict.fromkeys((layout.split(axis),))
        if kept:
            splits.update(dict.fromkeys(other.split(axis) for other in kept[position]))
        found.append(tuple(split for split in splits if split is not None))
    return found


def _alike(one: Split, other: Split | None, parts: int) -> bool:
    """Whether two splits divide a tensor at the same places."""
    if other is None or one == other:
        return one == other
    even = one.extent % parts == 0 and other.extent % parts == 0
    return even and (one.dim, one.outer, one.shift) == (other.dim, other.outer, other.shift)


@dataclass(frozen=True)
class _Moves:
    """Bytes that a cut of an op moves, of what the axes before leave of each tensor: its
    operands before, its results after."""

    op: Op
    rule: OpRule
    axis: str
    assignment: Assignment
    operands: Sequence[str]
    layouts: Sequence[Layout]
    lying: Sequence[Collection[Split]]
    values: Mapping[str, Value]
    chosen: Mapping[str, FactorCut]

    def __call__(self, cut: FactorCut) -> float:
        moved = 0.0
        wanted, parts = self.assignment.wanted[self.axis], self.assignment.mesh.extent(self.axis)
        for position, dims in enumerate(self.rule.operands):
            layout, needed = self.layouts[position], self.rule.to_split(dims, cut)
            here = layout.split(self.axis)
            nbytes = self._left(self.values[self.operands[position]].nbytes, dims)
            if layout.reduction(self.axis):
                moved += nbytes * (1 if needed else 2)
            elif here is not None and not any(
                _alike(lies, needed, parts) for lies in self.lying[position]
            ):
                moved += nbytes / (parts if needed else 1)
        for position, result in enumerate(self.op.results):
            made = self.rule.results[position]
            if result is None or made is None:
                continue
            nbytes = self._left(self.values[result].nbytes, made)
            asked, given = wanted.get(result), self.rule.to_split(made, cut)
            if self.rule.reduces(position, cut.factor):
                moved += nbytes * (1 if asked else 2)
            elif asked and given and not _alike(given, asked, parts):
                moved += nbytes / parts
        return moved

    def _left(self, nbytes: float, dims: Dims) -> float:
        """What the cuts over the axes before leave of an operand or a result."""
        for axis, cut in self.chosen.items():
            if self.rule.to_split(dims, cut) is not None:
                nbytes = nbytes / self.assignment.mesh.extent(axis)
        return nbytes


def allowed(
    rule: OpRule, cut: FactorCut, parts: int, chosen: Mapping[str, FactorCut] | None = None
) -> bool:
    """Whether an op can be cut so, beside what other axes have chosen."""
    factor = rule.factors[cut.factor]
    if not factor.shardable or (factor.special in CONTIGUOUS and cut.outer != 1):
        return False
    if factor.ranged is not None:
        # Ranges are those of whole dims in the parts of one axis.
        taken = any(other.factor == cut.factor for other in (chosen or {}).values())
        return not taken and cut == FactorCut(factor.ranged, 1, factor.size)
    # A result that does without the factor is computed by every device, which must have
    # something to compute it with.
    everywhere = factor.special is None and any(cut.factor == f for _, f in rule.unreduced)
    if everywhere and not Split(0, cut.outer, cut.extent).part(parts - 1, parts)[1]:
        return False
    return all(_fit(cut, other) for other in (chosen or {}).values())


def _fit(one: FactorCut, other: FactorCut) -> bool:
    """Whether two axes can hold both cuts: of other factors, or nested parts of one."""
    return one.factor != other.factor or compatible(
        Split(0, one.outer, one.extent), Split(0, other.outer, other.extent)
    )
