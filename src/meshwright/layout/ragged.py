"""What lists of positions allow: which of their masks' dims may be cut, and how ops follow.

All that is as long as one list is cut as the list is, or not at all: a list can't be
gathered or moved by collectives of fixed sizes, and its positions count from the start of
the part that it was made of. `Lists` finds out which ops have to do with which list, and
takes from the rules the cuts that one of them could not follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from meshwright.layout.types import Split
from meshwright.program.types import Argument, Length, Op, Program, refs
from meshwright.rules.types import Dims, Factor, FactorCut, OpRule

NONZERO = "mesh.nonzero.default"
INDEXING = frozenset({"mesh.take.default", "mesh.put.default"})

SHAPED: Mapping[str, int] = {
    "aten.view.default": 1, "aten._unsafe_view.default": 1, "aten.reshape.default": 1,
    "aten.expand.default": 1, "aten.full.default": 0, "aten.zeros.default": 0,
    "aten.ones.default": 0, "aten.empty.memory_format": 0, "aten.new_zeros.default": 1,
    "aten.new_ones.default": 1, "aten.new_full.default": 1, "aten.new_empty.default": 1,
    "aten.select_backward.default": 1, "aten.slice_backward.default": 1,
}  # fmt: skip
"""Ops with the shape of their result among the arguments, and where."""

_SAFE = frozenset({"bias_once", "softmax_across", "softmax_backward_across"})
"""Special lowerings that work on any number of rows, whichever other factor they cut."""

_SAFE_ALONG = frozenset({"nll_loss", "nll_loss_backward"})
"""Those that may be cut along the rows themselves, in contiguous parts."""

_ALLOWED = _SAFE | _SAFE_ALONG

Place = tuple[str, int]  # a value and one of its dims


@dataclass(frozen=True)
class Touch:
    """An op that has to do with a list: where the list's factors stand in its rule.

    dims: of an operand or result that holds the list alone, its dim and all its dims.
    before: product of the factors of that dim that stand before the list's.
    factors: those of the op that the list is made of.
    """

    dims: Dims
    dim: int
    before: int
    factors: frozenset[int]

    def cut(self, rule: OpRule, split: Split, parts: int) -> FactorCut | None:
        """How the op is cut where the list is cut by `split`."""
        shifted = replace(split, dim=self.dim, outer=split.outer * self.before)
        return rule.to_factor(self.dims, shifted, parts)


class Lists:
    """The lists of a Program, by the name of each mask's first one.

    touches: for each op, the lists that it has to do with.
    rules: the Program's rules, less what lists can't follow.
    """

    def __init__(self, program: Program, rules: Mapping[str, OpRule]) -> None:
        self.program = program
        self.rules = dict(rules)
        self.touches: dict[str, dict[str, Touch]] = {}
        self.ops: dict[str, list[Op]] = {}  # by list
        self._of: dict[str, str] = {}  # list -> first list of its mask
        self._before: dict[Place, int] = {}
        self._whole: dict[str, str] = {}  # list that can't be cut -> why
        if not program.ragged:
            return
        for op in program.ops:
            if op.target == NONZERO:
                first = op.results[0]
                assert first is not None
                for name in op.results:
                    if name is not None:
                        self._of[name] = first
        for op in program.ops:
            self._look(op)
        self._restrict()

    def bound(self, name: str) -> int:
        """The largest length of a list."""
        return self.program.values[name].shape[0]

    def uncut(self) -> Mapping[str, str]:
        """Lists that stay whole whatever the plan, with the reason."""
        return self._whole

    def _stay(self, name: str, why: str) -> None:
        self._whole.setdefault(name, why)

    def _look(self, op: Op) -> None:
        rule = self.rules[op.name]
        found: dict[str, Touch] = {}
        for name, dims in self._places(op, rule):
            for dim, held in enumerate(self.program.ragged.get(name, ())):
                if held is None:
                    continue
                source = self._of[held]
                alone = self.program.values[name].shape[dim] == self.bound(source)
                if alone:
                    self._before[name, dim] = 1
                before = self._before.get((name, dim))
                known = before is not None and bool(dims[dim]) and (alone or len(dims[dim]) == 1)
                touch = Touch(dims, dim, before or 1, frozenset(dims[dim] if known else ()))
                if source not in found or (known and not found[source].factors):
                    found[source] = touch
        for source, touch in found.items():
            self.touches.setdefault(op.name, {})[source] = touch
            self.ops.setdefault(source, []).append(op)
            self._follow(op, rule, source, touch)
        if len(found) > 1:
            for source in found:
                self._stay(source, f"{op.name} brings together positions of two masks")
        for name in self._read(op):
            self._stay(self._of[name], f"{op.name} works with the positions themselves")
        for name in self._counted(op):
            self._stay(self._of[name], f"{op.name} needs to know how many positions there are")

    def _places(self, op: Op, rule: OpRule) -> Iterator[tuple[str, Dims]]:
        yield from zip(op.operands(), rule.operands, strict=True)
        for name, made in zip(op.results, rule.results, strict=True):
            if name is not None and made is not None:
                yield name, made

    def _follow(self, op: Op, rule: OpRule, source: str, touch: Touch) -> None:
        """See that all dims of the op that are as long as the list hold the same factors."""
        bound = self.bound(source)
        own = touch.factors
        if bound == 1:
            return
        if not own:
            self._stay(source, f"{op.name} does not say how its rows go with the positions")
            return
        product = prod(rule.factors[factor].size for factor in own)
        for name, dims in self._places(op, rule):
            for dim, held in enumerate(self.program.ragged.get(name, ())):
                if held is None or self._of[held] != source:
                    continue
                factors = dims[dim]
                if self.program.values[name].shape[dim] == bound:
                    if frozenset(factors) != own:
                        self._stay(source, f"{op.name} divides the positions into parts")
                    continue
                at = [k for k, factor in enumerate(factors) if factor in own]
                if len(at) != len(own) or at != list(range(at[0], at[0] + len(at))):
                    self._stay(source, f"{op.name} mixes positions with other dims")
                    continue
                before = prod(rule.factors[factor].size for factor in factors[: at[0]])
                if product != bound:
                    before *= touch.before
                if self._before.setdefault((name, dim), before) != before:
                    self._stay(source, f"{op.name} mixes positions with other dims")
        if op.target in _RANDOM:
            self._stay(source, f"{op.name} draws random numbers, by position in the list")
        if rule.follows is not None or any(factor in own for _, factor in rule.unreduced):
            self._stay(source, f"{op.name} needs all positions")
        for factor in own:
            described = rule.factors[factor]
            special = described.special is not None and described.special not in _ALLOWED
            fixed = not described.shardable and op.target not in (NONZERO, *INDEXING)
            if described.ranged is not None or special or fixed:
                self._stay(source, f"{op.name} needs all positions")

    def _read(self, op: Op) -> Iterator[str]:
        """Lists whose positions the op uses as numbers, and not as an index of its own kind."""
        if op.target in INDEXING:
            arguments: tuple[Argument, ...] = tuple(
                argument for position, argument in enumerate(op.args) if position != 1
            )
        else:
            arguments = (*op.args, *(argument for _, argument in op.kwargs))
        for argument in arguments:
            for name in refs(argument):
                if name in self._of:
                    yield name

    def _counted(self, op: Op) -> Iterator[str]:
        """Lists whose length is a number in the op's arguments, beyond a shape."""
        for position, argument in enumerate(op.args):
            if SHAPED.get(op.target) != position:
                yield from _lengths(argument)
        for _, argument in op.kwargs:
            yield from _lengths(argument)

    def _restrict(self) -> None:
        """Close the factors that some op can't follow, in all ops that have to do with a list."""
        outputs = {self.program.loss, *self.program.buffer_updates.values()}
        for name in outputs & self._of.keys():
            self._stay(self._of[name], "the positions are a result of the step")
        for source, ops in self.ops.items():
            fixed: set[int] = set()  # of the mask's own factors
            contiguous = False
            for op in ops:
                rule = self.rules[op.name]
                own = self.touches[op.name][source].factors
                if op.target in INDEXING:
                    fixed |= {f for f in own if not rule.factors[f].shardable}
                contiguous |= any(rule.factors[f].special in _SAFE_ALONG for f in own)
            if contiguous:
                mask = next(op for op in ops if op.target == NONZERO)
                fixed |= self.touches[mask.name][source].factors - {0}
            for op in ops:
                own = self.touches[op.name][source].factors
                described = self.rules[op.name]
                if source in self._whole:
                    closed = own
                elif op.target in INDEXING or op.target == NONZERO:
                    closed = own & fixed
                else:
                    closed = frozenset()
                others = {
                    k for k, factor in enumerate(described.factors)
                    if k not in own and factor.special is not None
                    and factor.special not in _ALLOWED
                }  # fmt: skip
                self._close(op, frozenset(closed | others))

    def _close(self, op: Op, closed: frozenset[int]) -> None:
        rule = self.rules[op.name]
        if not closed:
            return
        factors: list[Factor] = [
            replace(factor, shardable=False) if k in closed else factor
            for k, factor in enumerate(rule.factors)
        ]
        self.rules[op.name] = replace(rule, factors=tuple(factors))


def _lengths(argument: Argument) -> Iterator[str]:
    if isinstance(argument, Length):
        yield argument.value
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _lengths(item)


_RANDOM = frozenset({
    "aten.native_dropout.default", "aten.bernoulli.p", "aten.bernoulli.default",
    "aten.rand_like.default", "aten.randn_like.default", "aten.rand.default", "aten.randn.default",
})  # fmt: skip

__all__ = ["INDEXING", "NONZERO", "SHAPED", "Lists", "Touch"]
