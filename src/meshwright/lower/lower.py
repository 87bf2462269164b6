"""Lowering: a Program and an Assignment become one device's local program.

Placements are known, so the local program is the same ops on local shapes,
with collectives where layouts change and a few special lowerings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from meshwright.layout.assignment import Assignment, Parameter
from meshwright.layout.cuts import ordered
from meshwright.layout.groups import Analysis
from meshwright.layout.lowered import LoweredProgram, Section, StoredParameter
from meshwright.layout.types import REPLICATED, Layout, Reduce
from meshwright.lower.builder import Builder
from meshwright.lower.choose import choose
from meshwright.lower.clean import section, used_by
from meshwright.lower.clip import clip_section
from meshwright.lower.deferred import as_term, deferred, waits
from meshwright.lower.empty import emptied, known_results, neutral
from meshwright.lower.ragged import Ragged, bias_term
from meshwright.lower.repeat import lower_repeats
from meshwright.lower.results import pending_through, result_layouts
from meshwright.lower.special import Site
from meshwright.lower.special_random import RANDOM, random
from meshwright.lower.special_table import COVERS, SPECIAL
from meshwright.program.types import Argument, Input, Op, Ref, Source
from meshwright.rules.factory import SHAPE_ALONE
from meshwright.rules.types import OpRule

_REDUCE = Source("gradient reduction")
_GATHER = Source("parameter gathering")


def _at_line_of(op: Op | None, source: Source) -> Source:
    """`source`, which belongs to no module, with the user's line that it is there for."""
    if op is None:
        return source
    return replace(source, file=op.source.file, line=op.source.line, code=op.source.code)


def lower(
    analysis: Analysis,
    assignment: Assignment,
    coordinate: Mapping[str, int],
    bucket_bytes: int = 0,
) -> LoweredProgram:
    """The local program of the device at `coordinate` of the assignment's mesh.

    bucket_bytes: up to which its collectives are merged, by `layout.merge`, where it is run or
    simulated.
    """
    return Lowering(analysis, assignment, coordinate, bucket_bytes).run()


@dataclass
class Lowering:
    """One lowering under way: where each value is found, and the ops so far."""

    analysis: Analysis
    assignment: Assignment
    coordinate: Mapping[str, int]
    bucket_bytes: int = 0

    def __post_init__(self) -> None:
        self.program = self.analysis.program
        self.b = Builder(self.assignment.mesh, self.coordinate)
        # Where each of the Program's values is found, per phase: the backward may
        # hold its own copy of a gathered parameter or of a view of one.
        self.forward: dict[str, str] = {}
        self.backward: dict[str, str] = {}
        self.parameter_of = {p.value: p for p in self.assignment.parameters.values()}
        self.made_by = {
            name: op for op in self.program.ops for name in op.results if name is not None
        }
        self.streams = {
            op.name: k for k, op in enumerate(op for op in self.program.ops if op.target in RANDOM)
        }
        self.gradient_of: dict[str, list[str]] = {}
        for path, value in self.program.gradients.items():
            if value is not None:
                self.gradient_of.setdefault(value, []).append(path)
        self.accumulated: dict[str, str] = {}
        self.buffer_updates: dict[str, str] = {}
        self.ragged = Ragged(self)

    def run(self) -> LoweredProgram:
        for item in self.program.inputs:
            self._declare(item)
        gather = self._gather()
        forward = self._phase("forward")
        loss = self._finish_forward()
        backward = self._phase("backward")
        self._finish_gradients()
        accumulated = tuple(self.accumulated.values())
        reduce, reduced = self._reduce()
        clip, norm = clip_section(self.b, reduced if self.assignment.clip else ())

        # The backward takes from the forward what it uses and does not make itself.
        backward_section = section(backward, accumulated)
        made = {name for op in forward for name in op.results if name is not None}
        saved = tuple(name for name in backward_section.inputs if name in made)
        outputs = tuple(dict.fromkeys((loss, *self.buffer_updates.values(), *saved)))
        forward_section = section(forward, outputs)
        from_gather = {name for op in gather for name in op.results}
        gathered = tuple(
            dict.fromkeys(
                name
                for name in (*forward_section.inputs, *backward_section.inputs)
                if name in from_gather
            )
        )
        needed = used_by(
            self.b.values,
            (item.value for item in self.program.inputs),
            (section(gather, gathered), forward_section, backward_section, reduce, clip),
        )
        tangent = next((i.value for i in self.program.inputs_of("tangent")), None)
        return LoweredProgram(
            mesh=self.assignment.mesh,
            values={name: self.b.values[name] for name in needed},
            layouts={name: self.b.whole[name].layout for name in needed},
            parameters=tuple(self._stored(item) for item in self.program.inputs_of("parameter")),
            buffers=tuple(self._stored(item) for item in self.program.inputs_of("buffer")),
            batch={item.path: item.value for item in self.program.inputs_of("batch")},
            constants={item.path: item.value for item in self.program.inputs_of("constant")},
            tangent=tangent,
            loss=loss,
            buffer_updates=self.buffer_updates,
            saved=saved,
            accumulated=self.accumulated,
            gather=section(gather, gathered),
            forward=forward_section,
            backward=backward_section,
            reduce=reduce,
            clip=clip,
            norm=norm,
            bucket_bytes=self.bucket_bytes,
            unshared=self._unshared(),
            uniform=self._uniform(),
        )

    def _uniform(self) -> bool:
        """Whether every device runs the same ops; all devices say the same."""
        layouts = {whole.layout for whole in self.b.whole.values()}
        return not self.program.ragged and all(
            split.part(parts - 1, parts)[1]
            for layout in layouts
            for axis, split in layout.shards
            for parts in (self.assignment.mesh.extent(axis),)
        )

    def _unshared(self) -> frozenset[str]:
        """Parameters whose gradient, as the Program has it, no op of the Program uses."""
        used = {name for op in self.program.ops for name in op.operands()}
        used |= {self.program.loss, *self.program.buffer_updates.values()}
        return frozenset(
            path
            for path, name in self.program.gradients.items()
            if name is not None and name not in used
        )

    def _declare(self, item: Input) -> None:
        value = self.program.values[item.value]
        parameter = self.parameter_of.get(item.value)
        if parameter is not None:
            layout = parameter.storage
        elif item.kind in ("tangent", "constant"):
            layout = REPLICATED
        else:
            layout = ordered(self.assignment.layout_of(item.value), self.assignment.mesh)
        self.b.declare(item.value, value.shape, value.dtype, layout)
        self.forward[item.value] = item.value

    def _stored(self, item: Input) -> StoredParameter:
        value = self.program.values[item.value]
        return StoredParameter(
            path=item.path,
            shape=value.shape,
            dtype=value.dtype,
            storage=self.b.whole[item.value].layout,
            value=item.value,
            trainable=item.trainable,
            gradient=self.reduced.get(item.path) if item.kind == "parameter" else None,
        )

    def _gather(self) -> list[Op]:
        """Once a step: gather the parameters whose gathered form lives for the whole step."""
        self.b.ops = []
        for parameter in self.assignment.parameters.values():
            if not self.analysis.touching[parameter.value]:
                continue
            if parameter.residency == "step" and parameter.storage != parameter.compute:
                self.forward[parameter.value] = self._gathered(parameter.value, parameter)
        return self.b.ops

    def _phase(self, phase: str) -> list[Op]:
        self.b.ops = []
        self.b.phase = "forward" if phase == "forward" else "backward"
        self.lower_ops(self.program.phase_ops(self.b.phase))
        return self.b.ops

    def lower_ops(self, ops: Sequence[Op]) -> None:
        """A phase's ops in order; repeated blocks are copies of one."""
        lower_repeats(self, ops)

    def of_parameter(self, value: str) -> bool:
        """Whether a value is a view of a parameter, so that the backward may make it anew."""
        return self.program.values[value].storage in self.parameter_of

    def standing(self, value: str) -> object:
        """What the plan says of a value by name: equal for values that are lowered alike."""
        parameters = [self.assignment.parameters[p] for p in self.gradient_of.get(value, ())]
        own = self.parameter_of.get(value)
        residencies = tuple(
            (p.compute, p.storage, p.residency) for p in (*parameters, *([own] if own else ()))
        )
        fixed = self.assignment.fixed.get(value)
        first = value in self.analysis.summed_first
        return residencies, self.ragged.busy(value), waits(self.analysis, value), first, fixed

    def find(self, value: str) -> str:
        """The local name of a value in the current phase, gathering a parameter at first use."""
        if self.b.phase == "backward":
            if value in self.backward:
                return self.backward[value]
            again = self._again(value)
            if again is not None:
                return again
        name = self.forward[value]
        parameter = self.parameter_of.get(value)
        if parameter is None or parameter.residency in ("always", "step"):
            return name
        if name == value and parameter.storage != parameter.compute:
            name = self._gathered(value, parameter)
            self.forward[value] = name
        return name

    def _gathered(self, value: str, parameter: Parameter) -> str:
        """The parameter as it is computed with; the line is that of its first use."""
        first = next((op for op, _, _ in self.analysis.touching[value]), None)
        return self.b.convert(value, parameter.compute, _at_line_of(first, _GATHER))

    def _again(self, value: str) -> str | None:
        """In the backward: a parameter of residency `use`, or a view of one, made once more.

        Saving either would keep the gathered parameter alive between forward and backward.
        """
        parameter = self.parameter_of.get(value)
        if parameter is not None:
            if parameter.residency != "use" or parameter.storage == parameter.compute:
                return None
            self.b.forget(value)
            name = self._gathered(value, parameter)
            self.backward[value] = name
            return name
        root = self.parameter_of.get(self.program.values[value].storage)
        if root is None or root.residency != "use" or root.storage == root.compute:
            return None
        op = self.made_by[value]
        if op.phase == "forward":
            self.lower_op(op)
            return self.backward[value]
        return None

    def lower_op(self, op: Op) -> None:
        """Lower one op: choose its cuts, bring the operands there, emit it."""
        rule = self.analysis.rules[op.name]
        names = self.analysis.operands[op.name]
        operands = [self.find(name) for name in names]
        layouts = [self.b.whole[name].layout for name in operands]
        ties = self.ragged.ties(op)
        settled = self.b.settled(operands)
        values = self.program.values
        kept_as = [self.b.converted.get(name, {}).keys() for name in operands]
        chosen = choose(op, rule, self.assignment, names, layouts, values, ties, settled, kept_as)
        first = rule.linear == "unary" and names[0] in self.analysis.summed_first
        if not first:
            chosen = self.ragged.unreduced(rule, layouts, chosen)
        self.ragged.terms(op, rule, names, operands, chosen)
        layouts = [self.b.whole[name].layout for name in operands]
        kept = pending_through(rule, layouts, chosen)
        if first:
            kept = frozenset()
        kept |= self.ragged.pending(op, layouts, chosen)
        terms = deferred(self.analysis, self.assignment, op, layouts, chosen) - kept
        kept |= terms
        ready = self.ragged.bias(op, rule, names, operands, chosen)
        for position, dims in enumerate(rule.operands):
            if position in ready:
                continue
            shards = []
            for axis in self.assignment.mesh.names:
                cut = chosen.get(axis)
                split = rule.to_split(dims, cut) if cut is not None else None
                if split is not None:
                    shards.append((axis, split))
            partial = tuple(item for item in layouts[position].partial if item[0] in kept)
            if op.target in SHAPE_ALONE:
                continue
            operands[position] = self.b.convert(
                operands[position], Layout(tuple(shards), partial), op.source
            )
            operands[position] = as_term(self.b, operands[position], terms, op.source)
        results = result_layouts(op, rule, self.assignment.mesh, chosen, kept)
        specials = {
            special
            for cut in chosen.values()
            if (special := rule.factors[cut.factor].special) is not None
        }
        made: tuple[str | None, ...]
        if specials or op.target in RANDOM:
            site = Site(
                self.b, op, rule, tuple(operands), chosen, results,
                tuple(self.assignment.layout_of(r) if r else REPLICATED for r in op.results),
                tuple(None if r is None else self.program.values[r].shape for r in op.results),
                tuple(None if r is None else self.program.values[r].dtype for r in op.results),
                self.streams.get(op.name, 0),
                self.assignment.ring,
            )  # fmt: skip
            for special in sorted(specials & COVERS.keys()):
                specials -= COVERS[special]
            if len(specials) > 1:
                raise AssertionError(f"{op.name}: {sorted(specials)} at once")
            if specials == {"bias_once"} and self.ragged.touches(op):
                made = bias_term(site, self.ragged, op)
            else:
                made = SPECIAL[specials.pop()](site) if specials else random(site)
            if op.target in RANDOM and self.ragged.touches(op):
                drawn = self.b.ops.pop()
                self.b.ops.append(self.ragged.drawn(op, drawn))
        else:
            empty = emptied(chosen, self.assignment.mesh, self.coordinate)
            made = self._plain(op, rule, names, operands, results, empty)
        table = self.forward if self.b.phase == "forward" else self.backward
        for result, local in zip(op.results, made, strict=True):
            if result is not None and local is not None:
                if result in self.assignment.fixed:
                    local = self._as_asked(result, local, op.source)
                table[result] = local
                if self.b.phase == "backward" and result in self.gradient_of:
                    self._gradient(result, local)

    def _as_asked(self, value: str, local: str, source: Source) -> str:
        """A result brought to how it was asked to lie, over the axes of which something was."""
        layout = self.b.whole[local].layout
        for axis, split in self.assignment.fixed[value].items():
            layout = layout.without(axis)
            layout = layout if split is None else layout.with_shard(axis, split)
        return self.b.convert(local, layout, source)

    def _plain(
        self,
        op: Op,
        rule: OpRule,
        names: tuple[str, ...],
        operands: list[str],
        results: tuple[Layout | None, ...],
        empty: frozenset[int],
    ) -> tuple[str | None, ...]:
        """The same op on local shapes; nothing of it where `empty` factors leave nothing to do."""
        known_as = self.ragged.known(op, rule, operands, results[0])
        if known_as:
            return (known_as,)
        local: list[str | None] = []
        again = self.b.phase == "backward" and op.phase == "forward"
        for result, layout in zip(op.results, results, strict=True):
            if result is None or layout is None:
                local.append(None)
                continue
            value = self.program.values[result]
            storage = None
            if value.is_view:
                storage = next(
                    (
                        self.b.values[mine].storage
                        for name, mine in zip(names, operands, strict=True)
                        if self.program.values[name].storage == value.storage
                    ),
                    None,
                )
            name = self.b.fresh(result) if again or result in self.b.values else result
            local.append(self.b.declare(name, value.shape, value.dtype, layout, storage))
        sizes = tuple(None if n is None else self.b.values[n].shape for n in local)
        known = ("sum",) if known_as == "" else known_results(rule, empty, sizes)
        if known is not None:
            for made_name, reduce in zip(local, known, strict=True):
                if made_name is not None and self.ragged.touches(op):
                    number = neutral(reduce, self.b.values[made_name].dtype)
                    self.ragged.fill(
                        op.results[local.index(made_name)] or "", made_name, number, op
                    )
                elif made_name is not None:
                    self._fill(made_name, reduce, op.source)
            return tuple(local)
        position = iter(operands)

        def rename(argument: Argument) -> Argument:
            if isinstance(argument, Ref):
                return Ref(next(position))
            if isinstance(argument, tuple):
                return tuple(rename(item) for item in argument)
            return argument

        args = tuple(rename(argument) for argument in op.args)
        kwargs = tuple((name, rename(argument)) for name, argument in op.kwargs)
        made = Op(
            local[0] or op.name, op.target, args, kwargs, tuple(local),
            op.returns_tuple, self.b.phase, op.source,
        )  # fmt: skip
        if rule.localize is not None:
            shapes = tuple(self.b.values[name].shape for name in operands)
            made = replace(
                made, args=rule.localize(made, shapes, sizes), target=rule.target or made.target
            )
        self.b.ops.append(self.ragged.told(op, made))
        return tuple(local)

    def _fill(self, name: str, reduce: Reduce, source: Source) -> None:
        whole, dtype = self.b.whole[name], self.b.values[name].dtype
        self.b.fill(
            neutral(reduce, dtype), whole.shape, dtype, whole.layout,
            like=name, source=source, name=name,
        )  # fmt: skip

    def _finish_forward(self) -> str:
        """The loss as every device sees it, and buffers as they are stored."""
        source = Source("loss")
        name = self.find(self.program.loss)
        loss = self.b.convert(name, REPLICATED, source)
        for path, value in self.program.buffer_updates.items():
            stored = next(i for i in self.program.inputs_of("buffer") if i.path == path)
            layout = self.b.whole[stored.value].layout
            self.buffer_updates[path] = self.b.convert(self.find(value), layout, source)
        return loss

    def _gradient(self, value: str, local: str) -> None:
        """A gradient is complete: reduce it now where its parameter's residency ends here."""
        for path in self.gradient_of[value]:
            parameter = self.assignment.parameters[path]
            if parameter.residency in ("microbatch", "use"):
                source = _at_line_of(self.made_by.get(value), _REDUCE)
                local = self.b.convert(local, self._reduced_into(local, parameter), source)
            self.accumulated[path] = local

    def _reduced_into(self, gradient: str, parameter: Parameter) -> Layout:
        """What a gradient is brought to in each microbatch: cut as its parameter is stored.

        Sums over axes that the storage isn't cut over wait for the end of the step: the parts
        that devices add up are no smaller after them.
        """
        pending = self.b.whole[gradient].layout.partial
        cut = [axis for axis, _ in parameter.storage.shards]
        if not all(reduce == "sum" for _, reduce in pending):
            return parameter.storage
        return Layout(
            parameter.storage.shards, tuple(item for item in pending if item[0] not in cut)
        )

    def _finish_gradients(self) -> None:
        """Gradients that no backward op makes: a forward value, or the tangent itself."""
        for path, value in self.program.gradients.items():
            if value is not None and path not in self.accumulated:
                self._gradient(value, self.find(value))
        # A backward op may have needed a gradient reduced already; that is what adds up then.
        for path, local in self.accumulated.items():
            storage = self.assignment.parameters[path].storage
            self.accumulated[path] = self.b.reached(local, storage)

    def _reduce(self) -> tuple[Section, tuple[tuple[str, Parameter], ...]]:
        """Once a step: bring accumulated gradients to the layout of storage, latest first made."""
        self.b.ops = []
        self.reduced: dict[str, str] = {}
        for path, local in self.accumulated.items():
            source = _at_line_of(self.made_by.get(self.program.gradients[path] or ""), _REDUCE)
            self.reduced[path] = self.b.convert(
                local, self.assignment.parameters[path].storage, source
            )
        outputs = tuple(dict.fromkeys(self.reduced.values()))
        pairs = tuple(
            (name, self.assignment.parameters[path]) for path, name in self.reduced.items()
        )
        return section(self.b.ops, outputs), pairs
