"""What lowering makes of one op by itself, under every cut that it can have.

Each form is made by the code that lowers plans, special lowerings included, with the operands
lying as that form needs them, and priced with the simulator's costs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

from meshwright.cluster.mesh import Mesh
from meshwright.cost.table import CostTable
from meshwright.errors import UsageError
from meshwright.layout.assignment import Assignment
from meshwright.layout.cuts import ordered
from meshwright.layout.groups import Analysis
from meshwright.layout.transitions import transition
from meshwright.layout.types import REPLICATED, Layout, Split
from meshwright.lower.builder import Builder
from meshwright.lower.choose import choose
from meshwright.lower.clean import section
from meshwright.lower.deferred import waits
from meshwright.lower.lower import Lowering
from meshwright.plan.types import BUCKET_BYTES
from meshwright.program.blocks import signature
from meshwright.program.types import ITEM_BYTES, Op, Source, Value
from meshwright.rules.factory import SHAPE_ALONE
from meshwright.rules.types import FactorCut
from meshwright.search.oracle import FREE, Cost, Form, Piece, Step
from meshwright.simulate.section import run_section

__all__ = ["Cuts", "OpForms"]

_ADD = "aten.add.Tensor"
_HERE = Source("conversion")

Cuts = Mapping[str, FactorCut]


@dataclass
class OpForms:
    """Lowers the ops of one Program one by one, on one mesh, and prices what comes out.

    Ops that do the same are lowered once. Raises UsageError for a Program with sizes that are
    known only when the step runs, or with modules that run as they are.
    """

    analysis: Analysis
    mesh: Mesh
    costs: CostTable
    optimizer: str = "adamw"
    bucket_bytes: int = BUCKET_BYTES
    ring: frozenset[str] = frozenset()
    _lowering: Lowering = field(init=False)
    _steps: dict[Hashable, tuple[Step, ...] | None] = field(init=False, default_factory=dict)
    _forms: dict[Hashable, tuple[Op, tuple[Form, ...]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        program = self.analysis.program
        if program.ragged:
            raise UsageError(
                "The oracle does not cover sizes that are known only when the step runs.",
                "Ask it about a model without lists of positions.",
            )
        if any(rule.follows is not None for rule in self.analysis.rules.values()):
            raise UsageError(
                "The oracle does not cover modules that run as they are.",
                "Ask it about a model without any.",
            )
        wanted: dict[str, dict[str, Split]] = {axis: {} for axis in self.mesh.names}
        self.coordinate = self.mesh.coordinate(0)
        self._lowering = Lowering(self.analysis, Assignment(self.mesh, wanted, {}), self.coordinate)
        self._lowering.gradient_of = {}
        self.read = {name for op in program.ops for name in op.operands()}
        self.read |= {program.loss, *program.buffer_updates.values()}
        self.read |= {name for name in program.gradients.values() if name is not None}

    # Ops.

    def form(
        self,
        op: Op,
        cuts: Cuts,
        given: Sequence[Layout] | None = None,
        asked: Layout = REPLICATED,
    ) -> Form | None:
        """`op` cut by `cuts`, None where it can't be.

        given: how its operands lie, of which pending sums are looked at alone. asked: the
        layout asked of its first result.
        """
        analysis, lowering, values = self.analysis, self._lowering, self.analysis.program.values
        rule, names = analysis.rules[op.name], analysis.operands[op.name]
        given = given or [REPLICATED] * len(names)
        layouts = []
        for dims, layout in zip(rule.operands, given, strict=True):
            shards = []
            for axis in self.mesh.names:
                cut = cuts.get(axis)
                split = rule.to_split(dims, cut) if cut is not None else None
                if split is not None:
                    shards.append((axis, split))
            partial = tuple(item for item in layout.partial if item[0] not in dict(shards))
            layouts.append(ordered(Layout(tuple(shards), partial), self.mesh))
        wanted: dict[str, dict[str, Split]] = {axis: {} for axis in self.mesh.names}
        first = op.results[0]
        for axis, split in asked.shards:
            if first is not None:
                wanted[axis][first] = split
        held = {axis: {op.name: cuts.get(axis)} for axis in self.mesh.names}
        assignment = Assignment(self.mesh, wanted, {}, held=held, ring=self.ring)
        if choose(op, rule, assignment, names, layouts, values) != dict(cuts):
            return None
        lowering.assignment = assignment
        lowering.b = b = Builder(self.mesh, self.coordinate)
        lowering.forward, lowering.backward = {}, {}
        b.phase = op.phase
        found: dict[str, Layout] = {}
        for name, layout in zip(names, layouts, strict=True):
            if found.setdefault(name, layout) != layout:
                return None
            self._declare(b, name, layout)
            lowering.forward[name] = name
        try:
            lowering.lower_op(op)
        except AssertionError:
            return None
        return self._read(op, cuts, asked, found, b)

    def _declare(self, b: Builder, name: str, layout: Layout) -> None:
        value = self.analysis.program.values[name]
        b.declare(name, value.shape, value.dtype, layout, value.storage)
        owner = self.analysis.program.values.get(value.storage)
        if owner is not None and owner.name not in b.values and owner.numel < value.numel:
            # Expanded: what is read is the memory behind it.
            local = min(owner.numel, b.values[name].numel)
            b.values[owner.name] = Value(owner.name, (local,), owner.dtype, owner.name)

    def _read(
        self, op: Op, cuts: Cuts, asked: Layout, given: Mapping[str, Layout], b: Builder
    ) -> Form:
        """What the builder was left with, as a form."""
        lowering = self._lowering
        table = lowering.forward if op.phase == "forward" else lowering.backward
        made = {name: table[name] for name in op.results if name is not None and name in table}
        inside: list[tuple[str, Layout, Layout]] = []
        conversions: set[str] = set()
        for name, layout in given.items():
            for target, local in b.converted.get(name, {}).items():
                if local in b.values and local != name:
                    inside.append((name, layout, target))
                    conversions.add(local)
        ops = [one for one in b.ops if not conversions.intersection(one.results)]
        keep = tuple(local for name, local in made.items() if name in self.read)
        ops = list(section(ops, keep).ops) if keep else ops
        passes = frozenset(
            axis
            for local in made.values()
            for axis, _ in b.whole[local].layout.partial
            if axis not in cuts
        )
        unread = op.target in SHAPE_ALONE
        return Form(
            cuts=tuple(sorted(cuts.items())),
            asked=asked,
            needs=() if unread else tuple(given.items()),
            results=tuple((name, b.whole[local].layout) for name, local in made.items()),
            cost=self.price(ops, b.values),
            inside=tuple(inside),
            passes=passes,
        )

    def price(self, ops: Sequence[Op], values: Mapping[str, Value]) -> Cost:
        """What local ops take, collectives among them."""
        if not ops:
            return FREE
        made = {name for op in ops for name in op.results}
        inputs = tuple(dict.fromkeys(n for op in ops for n in op.operands() if n not in made))
        whole = section(ops, tuple(name for name in made if name is not None))
        run = run_section(
            replace(whole, inputs=inputs), values, self.mesh, self.costs,
            entering={}, keep=values.keys(),
        )  # fmt: skip
        host_s = sum(
            self.costs.op(op, tuple(op.operands()), values).host_s
            for op in whole.ops
            if not _is_collective(op)
        )
        return Cost(run.compute_s + run.communication_s, host_s)

    def forms(self, op: Op, cuts: Mapping[str, Sequence[FactorCut]]) -> tuple[Form, ...]:
        """Every form of `op`; `cuts` are those to try over each axis."""
        key = self._kind(op, cuts)
        known = self._forms.get(key)
        if known is None:
            known = self._forms[key] = (op, self._lowered(op, cuts))
        first, forms = known
        if first is op:
            return forms
        mine, theirs = (
            [*self.analysis.operands[one.name], *(name or "" for name in one.results)]
            for one in (first, op)
        )
        return tuple(_renamed(form, dict(zip(mine, theirs, strict=True))) for form in forms)

    def _kind(self, op: Op, cuts: Mapping[str, Sequence[FactorCut]]) -> Hashable:
        """All that the forms of an op depend on: equal for ops that have the same."""
        analysis, values = self.analysis, self.analysis.program.values
        rule = analysis.rules[op.name]
        names = [*analysis.operands[op.name], *(name for name in op.results if name is not None)]
        storages = [values[name].storage for name in names]
        owners = [values.get(storage) for storage in storages]
        return (
            signature(op, values),
            op.phase,
            (rule.factors, rule.operands, rule.results, rule.linear, rule.linear_operands),
            (rule.unreduced, rule.target),
            tuple((axis, tuple(some)) for axis, some in cuts.items()),
            tuple(names.index(name) for name in names),
            tuple(storages.index(storage) for storage in storages),
            tuple(names.index(storage) if storage in names else -1 for storage in storages),
            tuple(owner.shape if owner is not None else None for owner in owners),
            tuple(name in self.read for name in names),
            tuple(name in analysis.summed_first for name in names),
            self.linear(op),
            self.defers(op),
        )

    def _lowered(self, op: Op, cuts: Mapping[str, Sequence[FactorCut]]) -> tuple[Form, ...]:
        special = any(factor.special for factor in self.analysis.rules[op.name].factors)
        first = op.results[0]
        found: dict[tuple[object, ...], Form] = {}
        choices = [(None, *cuts.get(axis, ())) for axis in self.mesh.names]
        for combination in product(*choices):
            chosen = {
                axis: cut
                for axis, cut in zip(self.mesh.names, combination, strict=True)
                if cut is not None
            }
            for given, unsplit in self._given(op, chosen):
                for asked in self._asked(first) if special and chosen else (REPLICATED,):
                    form = self.form(op, chosen, given, asked)
                    pending = {axis for layout in given for axis, _ in layout.partial}
                    if form is None or not pending <= form.passes:
                        continue
                    form = replace(form, unsplit=unsplit)
                    key = (form.cuts, form.needs, form.results, form.inside, unsplit)
                    known = found.get(key)
                    if known is None or form.cost < known.cost:
                        found[key] = form
        return tuple(found.values())

    def _given(
        self, op: Op, chosen: Cuts
    ) -> Iterator[tuple[list[Layout], tuple[tuple[str, str], ...]]]:
        """Ways in which operands' sums may be pending, with what must be made uncut for that."""
        names = self.analysis.operands[op.name]
        nothing = [REPLICATED] * len(names)
        options: list[list[tuple[tuple[int, ...], tuple[tuple[str, str], ...]]]] = []
        free = [axis for axis in self.mesh.names if axis not in chosen]
        involved = self.linear(op)
        for axis in free:
            ways: list[tuple[tuple[int, ...], tuple[tuple[str, str], ...]]] = [((), ())]
            if involved:
                ways.append((involved, ()))
                if self.defers(op):
                    for one, other in ((0, 1), (1, 0)):
                        ways.append(((one,), ((names[other], axis),)))
            options.append(ways)
        for combination in product(*options):
            given = list(nothing)
            unsplit: list[tuple[str, str]] = []
            for axis, (positions, bare) in zip(free, combination, strict=True):
                for position in positions:
                    given[position] = given[position].with_partial(axis, "sum")
                unsplit += bare
            yield given, tuple(unsplit)

    def _asked(self, result: str | None) -> list[Layout]:
        splits = {axis: self._splits(result) for axis in self.mesh.names} if result else {}
        found = [REPLICATED]
        for axis, options in splits.items():
            found += [REPLICATED.with_shard(axis, split) for split in options]
        return found

    def _splits(self, value: str) -> list[Split]:
        """Cuts of whole dims of a value."""
        shape = self.analysis.program.values[value].shape
        return [Split(dim, 1, size) for dim, size in enumerate(shape) if size > 1]

    def linear(self, op: Op) -> tuple[int, ...]:
        """Operands whose pending sums pass through `op`, where all of them are pending."""
        rule, names = self.analysis.rules[op.name], self.analysis.operands[op.name]
        if rule.linear == "none" or not names:
            return ()
        if rule.linear == "unary":
            return () if names[0] in self.analysis.summed_first else (0,)
        return rule.linear_operands or tuple(range(len(names)))

    def defers(self, op: Op) -> bool:
        """Whether an addition lets its sum wait where one of its two terms is pending."""
        names, first = self.analysis.operands[op.name], op.results[0]
        return (
            op.target == _ADD
            and len(set(names)) == 2
            and first is not None
            and waits(self.analysis, first)
        )

    # Conversions.

    def steps(self, value: str, source: Layout, target: Layout) -> tuple[Step, ...] | None:
        """Layouts on the way from `source` to `target`, with what each step takes."""
        whole = self.analysis.program.values[value]
        key = (whole.shape, whole.dtype, source, target)
        if key not in self._steps:
            self._steps[key] = self._convert(whole, source, target)
        return self._steps[key]

    def _convert(self, whole: Value, source: Layout, target: Layout) -> tuple[Step, ...] | None:
        source, target = ordered(source, self.mesh), ordered(target, self.mesh)
        b = Builder(self.mesh, self.coordinate)
        b.declare(whole.name, whole.shape, whole.dtype, source)
        try:
            way = transition(source, target)
            b.convert(whole.name, target, _HERE)
        except AssertionError:
            return None
        return tuple(
            Step(ordered(step.after, self.mesh), self.price([op], b.values), self._piece(op, b))
            for step, op in zip(way, b.ops, strict=True)
        )

    def _piece(self, op: Op, b: Builder) -> Piece | None:
        """What a collective of a parameter or its gradient is in a bucket of others."""
        kind = op.target.split(".")[1]
        if not self.bucket_bytes or kind not in ("all_reduce", "reduce_scatter", "all_gather"):
            return None
        name = op.results[0] if kind == "all_gather" else next(op.operands())
        assert name is not None
        value, whole = b.values[name], b.whole[name]
        parts = prod(self.mesh.extent(axis) for axis, _ in whole.layout.shards)
        packed = prod(whole.shape) * ITEM_BYTES[value.dtype] // parts
        axis = str(dict(op.kwargs)["axis"])
        return Piece((kind, axis, value.dtype), value.nbytes, packed)

    def bucket_seconds(self, key: tuple[str, str, str], nbytes: int) -> float:
        kind, axis, _ = key
        return self.costs.collective(kind, self.mesh.extent(axis), self.mesh.stride(axis), nbytes)


def _renamed(form: Form, names: Mapping[str, str]) -> Form:
    return replace(
        form,
        needs=tuple((names[name], layout) for name, layout in form.needs),
        results=tuple((names[name], layout) for name, layout in form.results),
        inside=tuple((names[name], have, want) for name, have, want in form.inside),
        unsplit=tuple((names[name], axis) for name, axis in form.unsplit),
    )


def _is_collective(op: Op) -> bool:
    return op.target.startswith("mesh.") and op.target.split(".")[1] in (
        "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "halo",
        "ring_shift",
    )  # fmt: skip
