"""A whole Program as the oracle's problem, and the oracle's choice as a plan.

The oracle (`meshwright.search.oracle`) chooses how every op of a small Program is cut. Its
costs are those of what really runs: see `op_forms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from meshwright.layout.assignment import Assignment, Parameter, storage_split
from meshwright.layout.cuts import ordered
from meshwright.layout.lowered import StoredParameter
from meshwright.layout.types import REPLICATED, Layout, Split
from meshwright.lower.builder import Builder
from meshwright.lower.choose import choose
from meshwright.lower.lower import Lowering
from meshwright.lower.op_forms import Cuts, OpForms
from meshwright.plan.types import Residency
from meshwright.program.types import Op
from meshwright.rules.types import FactorCut
from meshwright.search.oracle import Choice, Choosing, Form, Kept, Merging, Problem, Storing

__all__ = ["Alone"]

_ONCE: tuple[Residency, ...] = ("always", "step")


class Alone(OpForms):
    """The ops of one Program on one mesh, and what holds them together."""

    # The whole Program.

    def problem(self, residencies: Sequence[Residency] = _ONCE) -> Problem:
        """All of the Program as choices, cuts those of the groups of dims that belong together.

        On accelerators without layouts in which some devices have nothing: their collectives keep
        their place (`LoweredProgram.uniform`), so that all costs would be others.
        """
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
        forms = {name: tuple(filter(self._everywhere, some)) for name, some in forms.items()}
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
            merging=Merging(self.bucket_bytes, self.bucket_seconds),
            beside=self._beside,
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
                        cut = ordered(layout.with_shard(axis, split), self.mesh)
                    except AssertionError:
                        continue
                    if self._held(cut):
                        more.append(cut)
            found += more
        return tuple(dict.fromkeys(found))

    @cached_property
    def _beside(self) -> bool:
        return any(profile.device != "cpu" for profile in self.costs.profiles)

    def _held(self, layout: Layout) -> bool:
        """Whether every device has a part, where it matters."""
        return not self._beside or all(
            split.part(parts - 1, parts)[1]
            for axis, split in layout.shards
            for parts in (self.mesh.extent(axis),)
        )

    def _everywhere(self, form: Form) -> bool:
        layouts = [layout for _, layout in (*form.needs, *form.results)]
        layouts += [layout for _, have, want in form.inside for layout in (have, want)]
        return all(map(self._held, layouts))

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
                if not self._held(storage):
                    break
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

    def lower_ops(self, ops: Sequence[Op]) -> None:
        for op in ops:
            self.lower_op(op)

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
