"""Lowering of ops whose sizes are only known when the step runs.

The plan works with the largest sizes. What runs does not: sizes in the arguments of ops
become lengths of lists, taken when the step runs (`mesh.length`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from meshwright.layout.ragged import INDEXING, NONZERO, SHAPED
from meshwright.layout.types import REPLICATED, Layout
from meshwright.lower.choose import FREE, Ties
from meshwright.lower.special import Site
from meshwright.program.types import Argument, Length, Op, Ref
from meshwright.rules.types import FactorCut, OpRule

if TYPE_CHECKING:
    from meshwright.lower.lower import Lowering

_PUT = "mesh.put.default"
_PRODUCTS = frozenset({"aten.mul.Tensor"})  # linear in each operand, the others given


class Ragged:
    """What a lowering knows of lists: over which axes each may be cut, and their lengths."""

    def __init__(self, lowering: Lowering) -> None:
        self._lowering = lowering
        self._lists = lowering.analysis.lists
        self._b = lowering.b
        self._busy = {source: self._taken(source) for source in self._lists.ops}
        self._axes = frozenset(axis for axes in self._busy.values() for axis in axes)
        self._whole = self._masks()

    def touches(self, op: Op) -> bool:
        return op.name in self._lists.touches

    def concerns(self, op: Op) -> bool:
        """Whether lists decide anything of how an op is lowered."""
        ragged = self._lowering.program.ragged
        return (
            self.touches(op)
            or bool(self._whole.get(op.name))
            or any(name in ragged for name in (*op.operands(), *op.results))
        )

    def busy(self, value: str) -> frozenset[str]:
        """Axes over which the list `value` stays whole since an op on it is cut otherwise."""
        return self._busy.get(value, frozenset())

    def _taken(self, source: str) -> frozenset[str]:
        assignment, analysis = self._lowering.assignment, self._lowering.analysis
        found = set()
        for axis in assignment.mesh.names:
            wanted, parts = assignment.wanted[axis], assignment.mesh.extent(axis)
            for op in self._lists.ops[source]:
                rule, own = analysis.rules[op.name], self._lists.touches[op.name][source].factors
                places = [*zip(op.operands(), rule.operands, strict=True)]
                places += [
                    (name, dims) for name, dims in zip(op.results, rule.results, strict=True)
                    if name is not None and dims is not None
                ]  # fmt: skip
                for name, dims in places:
                    split = wanted.get(name)
                    cut = rule.to_factor(dims, split, parts) if split is not None else None
                    if cut is not None and cut.factor not in own:
                        found.add(axis)
        return frozenset(found)

    def _masks(self) -> dict[str, frozenset[str]]:
        """Ops that only serve lists that stay whole, with the axes they are whole over.

        They make masks, or views and fresh tensors to index. What they are made of is
        gathered once, and not each mask and each view by itself.
        """
        if not self._busy:
            return {}
        program = self._lowering.program
        uses: dict[str, list[Op]] = {}
        for op in program.ops:
            for name in dict.fromkeys(op.operands()):
                uses.setdefault(name, []).append(op)
        results = {program.loss, *program.buffer_updates.values(), *program.gradients.values()}
        found: dict[str, frozenset[str]] = {}
        for op in reversed(program.ops):
            if op.target == NONZERO:
                found[op.name] = self._busy.get(op.results[0] or "", frozenset())
                continue
            if op.name in self._lists.touches or results.intersection(op.results):
                continue
            users = [user for name in op.results if name for user in uses.get(name, ())]
            cheap = not any(op.operands()) or all(
                name is None or program.values[name].is_view for name in op.results
            )
            axes = [self._served(user, found, cheap) for user in users]
            if axes and (shared := frozenset.intersection(*axes)):
                found[op.name] = shared
        return found

    def _served(
        self, user: Op, found: Mapping[str, frozenset[str]], indexed: bool
    ) -> frozenset[str]:
        """Axes over which `user` needs what it uses whole."""
        touches = self._lists.touches.get(user.name)
        if user.target == NONZERO or not touches:
            return found.get(user.name, frozenset())
        if not indexed or user.target not in INDEXING:
            return frozenset()
        return frozenset.intersection(*(self._busy[source] for source in touches))

    def ties(self, op: Op) -> Ties:
        """How an op must be cut, and must not be, for the sake of its lists."""
        touches = self._lists.touches.get(op.name)
        rule = self._lowering.analysis.rules[op.name]
        if not touches:
            axes = self._whole.get(op.name)
            every = frozenset(range(len(rule.factors)))
            return Ties({}, dict.fromkeys(axes, every)) if axes else FREE
        mesh = self._lowering.assignment.mesh
        required: dict[str, FactorCut] = {}
        closed: dict[str, frozenset[int]] = {}
        for source, touch in touches.items():
            if op.target == NONZERO:
                for axis in self._busy[source]:
                    closed[axis] = closed.get(axis, frozenset()) | touch.factors
                continue
            layout = self._b.whole[self._lowering.find(source)].layout
            for axis in mesh.names:
                split = layout.split(axis)
                if split is None:
                    closed[axis] = closed.get(axis, frozenset()) | touch.factors
                    continue
                cut = touch.cut(rule, split, mesh.extent(axis))
                if cut is None or not rule.factors[cut.factor].shardable:
                    raise AssertionError(f"{op.name} can't follow the list {source} over {axis}")
                required[axis] = cut
        return Ties(required, closed)

    # Lengths.

    def length(self, source: str, times: int, op: Op) -> Ref:
        """`times` the length of this device's part of a list, a number when the step runs."""
        name = self._lowering.find(source)
        return Ref(
            self._b.emit(
                "mesh.length", (Ref(name), times), (), "int64", REPLICATED,
                like=f"{source}/length", source=op.source,
            )
        )  # fmt: skip

    def sizes(self, value: str, local: str, op: Op) -> tuple[int | Ref, ...]:
        """The local shape of one of the Program's values, lengths where they are not known."""
        whole = self._b.whole[local]
        found: list[int | Ref] = list(self._b.values[local].shape)
        for dim, source in enumerate(self._lowering.program.ragged.get(value, ())):
            if source is None:
                continue
            cut = {axis for axis, _ in self._b.whole[self._lowering.find(source)].layout.shards}
            rest = Layout(tuple(item for item in whole.layout.shards if item[0] not in cut))
            times = self._b.local(whole.shape, rest)[dim] // self._lists.bound(source)
            found[dim] = self.length(source, times, op)
        return tuple(found)

    def told(self, op: Op, made: Op) -> Op:
        """A localized op with lengths in the place of largest sizes."""
        if not self._lowering.program.ragged:
            return made
        args = list(made.args)
        shape = SHAPED.get(made.target)
        result, local = op.results[0], made.results[0]
        for position in range(len(args)):
            if position != shape:
                before = op.args[position] if position < len(op.args) else None
                args[position] = self._restored(before, args[position], op)
            elif result in self._lowering.program.ragged and local is not None:
                assert result is not None
                args[position] = self.sizes(result, local, op)
        kwargs = tuple(
            (name, self._restored(argument, now, op))
            for (name, now), (_, argument) in zip(made.kwargs, op.kwargs, strict=True)
        )
        return replace(made, args=tuple(args), kwargs=kwargs)

    def _restored(self, before: Argument, now: Argument, op: Op) -> Argument:
        if isinstance(before, Length):
            return self.length(before.value, before.times, op)
        if isinstance(before, tuple) and isinstance(now, tuple) and len(before) == len(now):
            return tuple(self._restored(b, n, op) for b, n in zip(before, now, strict=True))
        return now

    def drawn(self, op: Op, made: Op) -> Op:
        """A random op over a list, which is whole: its draws go by position in the list."""
        result, local = op.results[0], made.results[0]
        assert result is not None and local is not None
        whole = list(self._b.whole[local].shape)
        for dim, source in enumerate(self._lowering.program.ragged[result]):
            if source is not None:
                bound = self._lists.bound(source)
                whole[dim] = self.length(source, whole[dim] // bound, op)  # type: ignore[call-overload]
        kwargs = tuple(
            (name, tuple(whole) if name == "shape" else argument) for name, argument in made.kwargs
        )
        return replace(made, kwargs=kwargs)

    # Sums that stay pending until what lists brought together is whole again.

    def terms(
        self,
        op: Op,
        rule: OpRule,
        names: Sequence[str],
        operands: list[str],
        chosen: Mapping[str, FactorCut],
    ) -> None:
        """Where some operands of a sum are pending, have the others be terms of it too.

        Reducing the pending ones would take a collective for each expert of a mixture.
        """
        if rule.linear != "joint" or not self.touches(op):
            return
        positions = rule.linear_operands or tuple(range(len(operands)))
        for axis in self._lowering.assignment.mesh.names:
            if axis in chosen:
                continue
            layouts = {p: self._b.whole[operands[p]].layout for p in positions}
            pending = [p for p in positions if layouts[p].reduction(axis) == "sum"]
            others = [p for p in positions if p not in pending]
            if not pending or any(layouts[p].reduction(axis) for p in others):
                continue
            for p in others:
                operands[p] = self.term(names[p], operands[p], axis, op)

    def bias(
        self,
        op: Op,
        rule: OpRule,
        names: Sequence[str],
        operands: list[str],
        chosen: Mapping[str, FactorCut],
    ) -> frozenset[int]:
        """Have the bias of a product with a cut contraction be a term of one device.

        That is the device that has the contraction to itself, where one has. Returns the
        operands that are as they should be.
        """  # fmt: skip
        specials = {rule.factors[cut.factor].special for cut in chosen.values()}
        if "bias_once" not in specials or not self.touches(op) or "addmm" not in op.target:
            return frozenset()
        for axis, cut in chosen.items():
            if rule.factors[cut.factor].special == "bias_once":
                operands[0] = self.term(names[0], operands[0], axis, op, cut.shift)
        return frozenset({0})

    def term(self, name: str, local: str, axis: str, op: Op, keeper: int = 0) -> str:
        """A value as a term of a sum over `axis`: itself on one device, zeros elsewhere.

        One that lies on that device alone already is one.
        """
        b = self._b
        whole, dtype = b.whole[local], b.values[local].dtype
        split = whole.layout.split(axis)
        if split is not None and (split.extent, split.shift) != (1, keeper):
            local = b.convert(local, whole.layout.without(axis), op.source)
            whole = b.whole[local]
        layout = whole.layout.with_partial(axis, "sum")
        if self._lowering.coordinate[axis] == keeper:
            made = b.emit("mesh.term", (Ref(local),), whole.shape, dtype, layout,
                          like=local, source=op.source)  # fmt: skip
            if local in b.zeros:
                b.zeros.add(made)
            return made
        made = b.declare(b.fresh(local), whole.shape, dtype, layout)
        self.fill(name, made, 0, op)
        return made

    def unreduced(
        self, rule: OpRule, layouts: Sequence[Layout], chosen: dict[str, FactorCut]
    ) -> dict[str, FactorCut]:
        """`chosen` less the axes over which lists are whole and the op adds or views pending sums.

        What all experts give is added up first, and then reduced once.
        """
        if rule.linear == "none" or not self._axes:
            return chosen
        involved = layouts if rule.linear == "joint" else layouts[:1]
        return {
            axis: cut
            for axis, cut in chosen.items()
            if axis not in self._axes or any(x.reduction(axis) != "sum" for x in involved)
        }

    def pending(
        self, op: Op, layouts: Sequence[Layout], chosen: Mapping[str, object]
    ) -> frozenset[str]:
        """Axes on which the sum of one factor of a product stays pending through it."""
        if op.target not in _PRODUCTS or not self.touches(op):
            return frozenset()
        found = set()
        for axis in self._lowering.assignment.mesh.names:
            held = [layout.reduction(axis) for layout in layouts]
            one = held.count("sum") == 1 and held.count(None) == len(held) - 1
            if axis not in chosen and one and all(x.split(axis) is None for x in layouts):
                found.add(axis)
        return frozenset(found)

    # Zeros: what a device knows without computing it, as one that has no part of an expert.

    def fill(self, value: str, local: str, number: float, op: Op) -> None:
        """Fill a declared local value of the Program's `value` with one number."""
        b = self._b
        whole, dtype = b.whole[local], b.values[local].dtype
        shape = self.sizes(value, local, op)
        b.fill(number, whole.shape, dtype, whole.layout, like=local, source=op.source,
               name=local, sizes=shape)  # fmt: skip
        if number == 0:
            b.zeros.add(local)

    def known(
        self, op: Op, rule: OpRule, operands: Sequence[str], layout: Layout | None
    ) -> str | None:
        """What an op gives when operands are zeros: "" for zeros, or the operand that it equals."""
        b = self._b
        if not self.touches(op) or layout is None or not b.zeros.intersection(operands):
            return None
        zero = [name in b.zeros for name in operands]
        if op.target in _PRODUCTS or (rule.linear == "unary" and zero[0]):
            return ""
        if rule.linear != "joint":
            return None
        positions = rule.linear_operands or tuple(range(len(operands)))
        if all(zero[p] for p in positions):
            return ""
        rest = [p for p in positions if not zero[p]]
        same = len(rest) == 1 and b.whole[operands[rest[0]]].layout == layout
        if op.target == _PUT and op.args[3] is True and rest == [0] and same:
            return operands[0]
        return None


def bias_term(site: Site, ragged: Ragged, op: Op) -> tuple[str | None, ...]:
    """addmm with a cut contraction, its sum left pending: the bias is a term of one device."""
    layout, shape, result = site.layouts[0], site.shapes[0], op.results[0]
    assert layout is not None and shape is not None and result is not None
    b = site.b
    if site.empty and site.operands[0] in b.zeros:
        name = b.declare(b.fresh(result), shape, site.dtypes[0] or "float32", layout)
        ragged.fill(result, name, 0, op)
        return (name,)
    made = site.emit(
        site.op.target, tuple(site.operand(k) for k in range(3)), shape, layout,
        site.dtypes[0], site.op.kwargs,
    )  # fmt: skip
    return (made.name,)
