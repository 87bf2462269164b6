"""What lowering makes of each op by itself, under every cut that it can have.

The oracle (`meshwright.search.oracle`) chooses how every op of a small Program is cut.
Its costs are those of what really runs: each form is made by the code that lowers plans,
special lowerings included, with the operands lying as that form needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

from meshwright.cluster.mesh import Mesh
from meshwright.cost.table import CostTable
from meshwright.errors import UsageError
from meshwright.layout.assignment import Assignment, Parameter, storage_split
from meshwright.layout.cuts import ordered
from meshwright.layout.groups import Analysis
from meshwright.layout.lowered import StoredParameter
from meshwright.layout.transitions import transition
from meshwright.layout.types import REPLICATED, Layout, Split
from meshwright.lower.builder import Builder
from meshwright.lower.choose import choose
from meshwright.lower.clean import section
from meshwright.lower.deferred import waits
from meshwright.lower.lower import Lowering
from meshwright.plan.types import BUCKET_BYTES, Residency
from meshwright.program.types import ITEM_BYTES, Op, Source, Value
from meshwright.rules.factory import SHAPE_ALONE
from meshwright.rules.types import FactorCut
from meshwright.search.oracle import (
    FREE,
    Choice,
    Choosing,
    Cost,
    Form,
    Kept,
    Merging,
    Piece,
    Problem,
    Step,
    Storing,
)
from meshwright.simulate.section import run_section

_ADD = "aten.add.Tensor"
_HERE = Source("conversion")
_ONCE: tuple[Residency, ...] = ("always", "step")

Cuts = Mapping[str, FactorCut]


@dataclass
class Alone:
    """Lowers the ops of one Program one by one, on one mesh, and prices what comes out."""

    analysis: Analysis
    mesh: Mesh
    costs: CostTable
    optimizer: str = "adamw"
    bucket_bytes: int = BUCKET_BYTES
    ring: frozenset[str] = frozenset()
    _lowering: Lowering = field(init=False)
    _steps: dict[tuple[object, ...], tuple[Step, ...] | None] = field(
        init=False, default_factory=dict
    )

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

    def _bucket_seconds(self, key: tuple[str, str, str], nbytes: int) -> float:
        kind, axis, _ = key
        return self.costs.collective(kind, self.mesh.extent(axis), self.mesh.stride(axis), nbytes)

    # The whole Program.

    def problem(self, residencies: Sequence[Residency] = _ONCE) -> Problem:
        """All of the Program as choices, cuts those of the groups of dims that belong together."""
        program = self.analysis.program
        cuts: dict[str, dict[FactorCut, None]] = {}
        splits: dict[str, dict[Split, None]] = {}
        for group in self.analysis.groups():
            for name, cut in group.cuts.items():
                cuts.setdefault(name, {})[cut] = None
            for value, split in group.members.items():
                splits.setdefault(value, {})[split] = None
        forms = {
            op.name: self.forms(
                op, {axis: tuple(cuts.get(op.name, ())) for axis in self.mesh.names}
            )
            for op in program.ops
        }
        lies = {
            item.value: self._layouts(splits.get(item.value, {}))
            if item.kind in ("batch", "buffer")
            else (REPLICATED,)
            for item in program.inputs
            if item.kind != "parameter"
        }
        options = {
            item.path: self._options(item.value, splits.get(item.value, {}), residencies)
            for item in program.inputs_of("parameter")
        }
        return self._problem(forms, lies, options)

    def planned(self, assignment: Assignment) -> tuple[Problem, Choice]:
        """What a plan's assignment chooses, op by op, and the Program with no other choice."""
        recording = _Recording(self.analysis, assignment, self.coordinate)
        recording.run()
        program = self.analysis.program
        forms = {op.name: self._chosen(op, *recording.seen[op.name]) for op in program.ops}
        inputs = {
            item.value: ordered(assignment.layout_of(item.value), self.mesh)
            if item.kind in ("batch", "buffer")
            else REPLICATED
            for item in program.inputs
            if item.kind != "parameter"
        }
        parameters = {
            path: Storing(item.compute, item.storage, item.residency)
            for path, item in assignment.parameters.items()
        }
        problem = self._problem(
            {name: (form,) for name, form in forms.items()},
            {name: (layout,) for name, layout in inputs.items()},
            {path: (how,) for path, how in parameters.items()},
        )
        return problem, Choice(forms, inputs, parameters)

    def _problem(
        self,
        forms: Mapping[str, tuple[Form, ...]],
        inputs: Mapping[str, tuple[Layout, ...]],
        options: Mapping[str, tuple[Storing, ...]],
    ) -> Problem:
        program = self.analysis.program
        buffers = {item.path: item.value for item in program.inputs_of("buffer")}
        return Problem(
            ops=tuple(self._choosing(op, forms[op.name]) for op in program.ops),
            inputs=inputs,
            parameters=tuple(
                Kept(item.path, item.value, program.gradients.get(item.path), options[item.path])
                for item in program.inputs_of("parameter")
            ),
            ends=((program.loss, REPLICATED),),
            updates=tuple((made, buffers[path]) for path, made in program.buffer_updates.items()),
            steps=self.steps,
            once=self.once,
            axes=self.mesh.names,
            merging=Merging(self.bucket_bytes, self._bucket_seconds),
            beside=any(profile.device != "cpu" for profile in self.costs.profiles),
        )

    def _choosing(self, op: Op, forms: tuple[Form, ...]) -> Choosing:
        names = self.analysis.operands[op.name]
        values = self.analysis.program.values
        parameters = {item.value for item in self.analysis.program.inputs_of("parameter")}
        storages = {values[name].storage for name in op.results if name is not None}
        return Choosing(
            op.name,
            op.phase,
            forms,
            tuple(names[position] for position in self.linear(op)),
            self.defers(op),
            next((name for name in storages if name in parameters), None),
        )

    def _layouts(self, splits: Mapping[Split, None]) -> tuple[Layout, ...]:
        """No cut, and each cut over each axis; of several axes, those that fit together."""
        found = [REPLICATED]
        for axis in self.mesh.names:
            more = []
            for layout in found:
                for split in splits:
                    try:
                        more.append(ordered(layout.with_shard(axis, split), self.mesh))
                    except AssertionError:
                        continue
            found += more
        return tuple(dict.fromkeys(found))

    def _options(
        self, value: str, splits: Mapping[Split, None], residencies: Sequence[Residency]
    ) -> tuple[Storing, ...]:
        shape = self.analysis.program.values[value].shape
        found = []
        for compute in self._layouts(splits):
            found.append(Storing(compute, compute, "always"))
            free = [axis for axis in self.mesh.names if compute.split(axis) is None]
            storage = compute
            for axis in free:
                split = storage_split(shape, storage, self.mesh, axis)
                if split is None:
                    continue
                storage = ordered(storage.with_shard(axis, split), self.mesh)
                found += [
                    Storing(compute, storage, residency)
                    for residency in residencies
                    if residency != "always"
                ]
        return tuple(found)

    def once(self, stored: Mapping[str, Layout], inputs: Mapping[str, Layout]) -> float:
        """Seconds once a step: the optimizer's, the loop's, and those of fetching the batch."""
        program = self.analysis.program
        b = Builder(self.mesh, self.coordinate)
        parameters = []
        for item in program.inputs_of("parameter"):
            value = program.values[item.value]
            b.declare(item.value, value.shape, value.dtype, stored[item.value])
            parameters.append(
                StoredParameter(
                    item.path, value.shape, value.dtype, stored[item.value], item.value,
                    item.trainable, program.gradients.get(item.path),
                )
            )  # fmt: skip
        seconds = self.costs.optimizer(parameters, b.values, self.optimizer)
        seconds += self.costs.step_overhead(1)
        if any(profile.device != "cpu" for profile in self.costs.profiles):
            nbytes = 0
            for item in program.inputs_of("batch"):
                value = program.values[item.value]
                b.declare(item.value, value.shape, value.dtype, inputs[item.value])
                if item.value in self.read:
                    nbytes += b.values[item.value].nbytes
            tiers = [{tier.name for tier in p.lower_tiers} for p in self.costs.profiles]
            if nbytes and all("host" in names for names in tiers):
                seconds += self.costs.tier(nbytes, "host", "read")
        return seconds

    # From and to plans.

    def _chosen(self, op: Op, cuts: Cuts, given: Sequence[Layout], asked: Layout) -> Form:
        involved = self.linear(op)
        pending = [REPLICATED] * len(given)
        for axis in self.mesh.names:
            if axis in cuts or not involved:
                continue
            waiting = [p for p in involved if given[p].reduction(axis) == "sum"]
            bare = all(given[p].split(axis) is None for p in involved)
            if waiting == list(involved) or (waiting and bare and self.defers(op)
                                             and asked.split(axis) is None):  # fmt: skip
                for position in waiting:
                    pending[position] = pending[position].with_partial(axis, "sum")
        form = self.form(op, cuts, pending, asked)
        if form is None:
            raise AssertionError(f"{op.name} is not lowered alone as it is in the plan")
        return form

    def assignment(self, choice: Choice, problem: Problem) -> Assignment:
        """A choice as what lowering takes: every op held to its cuts."""
        wanted: dict[str, dict[str, Split]] = {axis: {} for axis in self.mesh.names}
        held: dict[str, dict[str, FactorCut | None]] = {axis: {} for axis in self.mesh.names}
        for name, layout in choice.inputs.items():
            for axis, split in layout.shards:
                wanted[axis][name] = split
        for op in self.analysis.program.ops:
            form = choice.forms[op.name]
            for axis in self.mesh.names:
                held[axis][op.name] = dict(form.cuts).get(axis)
            for axis, split in form.asked.shards:
                if op.results[0] is not None:
                    wanted[axis][op.results[0]] = split
        parameters = {}
        for item in problem.parameters:
            how = choice.parameters[item.path]
            parameters[item.path] = Parameter(
                item.path, item.value, how.compute, how.storage, how.residency
            )
        return Assignment(self.mesh, wanted, parameters, held=held, ring=self.ring)


class _Recording(Lowering):
    """A lowering that notes how each op was cut, and how its operands lay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: dict[str, tuple[Cuts, list[Layout], Layout]] = {}

    def _phase(self, phase: str) -> list[Op]:
        self.b.ops = []
        self.b.phase = "forward" if phase == "forward" else "backward"
        for op in self.program.phase_ops(self.b.phase):
            self.lower_op(op)
        return self.b.ops

    def lower_op(self, op: Op) -> None:
        rule, names = self.analysis.rules[op.name], self.analysis.operands[op.name]
        operands = [self.find(name) for name in names]
        layouts = [self.b.whole[name].layout for name in operands]
        chosen = choose(
            op, rule, self.assignment, names, layouts, self.program.values,
            self.ragged.ties(op), self.b.settled(operands),
        )  # fmt: skip
        asked = self.assignment.layout_of(op.results[0]) if op.results[0] else REPLICATED
        special = any(rule.factors[cut.factor].special for cut in chosen.values())
        self.seen.setdefault(op.name, (chosen, layouts, asked if special else REPLICATED))
        super().lower_op(op)


def _is_collective(op: Op) -> bool:
    return op.target.startswith("mesh.") and op.target.split(".")[1] in (
        "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "halo",
        "ring_shift",
    )  # fmt: skip


__all__ = ["Alone"]
