"""Groups: dims across the Program that must be cut alike.

A group is the closure of one cut (a value and a `Split`) under the rules'
identities, forward and backward. What the closure says is static and cheap:
which parameters it cuts, how much matrix work it divides, where sums stay
pending, and at which ops it ends. This is named-dimension analysis as in
TOAST, with Shardy-like factors.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from meshwright.layout.ragged import Lists
from meshwright.layout.types import Split
from meshwright.program.blocks import Repeat, repeats, signature
from meshwright.program.types import Op, Phase, Program
from meshwright.rules.factory import SHAPE_ALONE
from meshwright.rules.registry import rules_of
from meshwright.rules.types import Dims, FactorCut, OpRule
from meshwright.rules.user import Prober

Member = tuple[str, Split]


@dataclass(frozen=True)
class Group:
    """The closure of `seed`.

    members: how the group cuts each value it reaches.
    cuts: the factor that each op it reaches is cut along.
    pending: values left with a pending sum over an axis that takes this group.
    ends: ops at which the cut can't go on.
    """

    seed: Member
    members: Mapping[str, Split]
    cuts: Mapping[str, FactorCut]
    pending: tuple[str, ...]
    ends: tuple[str, ...]

    def __contains__(self, member: Member) -> bool:
        return self.members.get(member[0]) == member[1]


@dataclass(eq=False)
class Analysis:
    """A Program with its rules and who uses what; groups are found on demand and kept.

    prober: finds rules of ops that have none; without one such an op is an error.
    """

    program: Program
    prober: Prober | None = None
    rules: Mapping[str, OpRule] = field(init=False)
    lists: Lists = field(init=False)
    _groups: dict[Member, Group] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.lists = Lists(self.program, rules_of(self.program, self.prober))
        self.rules = self.lists.rules

    @cached_property
    def touching(self) -> Mapping[str, tuple[tuple[Op, OpRule, Dims], ...]]:
        """For each value, the ops that use or make it, with its dims in their rules."""
        found: dict[str, list[tuple[Op, OpRule, Dims]]] = {name: [] for name in self.program.values}
        for op in self.program.ops:
            rule = self.rules[op.name]
            for name, dims in zip(op.operands(), rule.operands, strict=True):
                found[name].append((op, rule, dims))
            for result, made in zip(op.results, rule.results, strict=True):
                if result is not None and made is not None:
                    found[result].append((op, rule, made))
        return {name: tuple(items) for name, items in found.items()}

    @cached_property
    def operands(self) -> Mapping[str, tuple[str, ...]]:
        """What each op uses, by the op's name, in the order of its rule's operands."""
        return {op.name: tuple(op.operands()) for op in self.program.ops}

    @cached_property
    def by_name(self) -> Mapping[str, Op]:
        return {op.name: op for op in self.program.ops}

    @cached_property
    def made_by(self) -> Mapping[str, Op]:
        """The op that makes each value that is no input."""
        return {name: op for op in self.program.ops for name in op.results if name is not None}

    @cached_property
    def gradient_of(self) -> Mapping[str, str]:
        """By the name of a trainable parameter's value, that of its gradient."""
        gradients = self.program.gradients
        found = {}
        for item in self.program.inputs_of("parameter"):
            gradient = gradients.get(item.path)
            if gradient is not None and gradient in self.made_by:
                found[item.value] = gradient
        return found

    @cached_property
    def runs(self) -> Mapping[Phase, tuple[Repeat, ...]]:
        """Where each phase's ops repeat."""
        phases: tuple[Phase, ...] = ("forward", "backward")
        return {phase: repeats(self.program, self.program.phase_ops(phase)) for phase in phases}

    @cached_property
    def kinds(self) -> Mapping[str, int]:
        """A number for each op by name, the same for ops that do the same."""
        numbers: dict[Hashable, int] = {}
        return {
            op.name: numbers.setdefault(signature(op, self.program.values), len(numbers))
            for op in self.program.ops
        }

    @cached_property
    def summed_first(self) -> frozenset[str]:
        """Values of which a pending sum is best taken before they are used.

        Several ops use them and one, maybe by way of views, can't work on a term: were the
        others given terms, each would have its own to reduce.
        """
        users: dict[str, set[str]] = {}
        whole: set[str] = set()  # somewhere down its views it is needed whole
        values = self.program.values
        for op in reversed(self.program.ops):
            if op.target in SHAPE_ALONE:
                continue
            rule = self.rules[op.name]
            made = next((name for name in op.results if name is not None), None)
            for position, name in enumerate(self.operands[op.name]):
                users.setdefault(name, set()).add(op.name)
                alone = rule.linear == "none" or (rule.linear == "unary" and position)
                if alone or (made in whole and values[made].numel >= values[name].numel):
                    whole.add(name)
        return frozenset(name for name in whole if len(users[name]) > 1)

    def group(self, value: str, split: Split) -> Group:
        """The group that cuts `value` by `split`."""
        found = self._groups.get((value, split))
        if found is None:
            found = self._closure((value, split))
            for member in found.members.items():
                self._groups.setdefault(member, found)
        return found

    def seeds(self) -> Iterable[Member]:
        """Whole dims of all values, in program order: every group starts at one of them."""
        for value in self.program.values.values():
            for dim, size in enumerate(value.shape):
                if size > 1:
                    yield value.name, Split(dim, 1, size)

    def groups(self) -> tuple[Group, ...]:
        """All groups, each once, in program order of their seeds."""
        unique: dict[int, Group] = {}
        for seed in self.seeds():
            group = self.group(*seed)
            unique.setdefault(id(group), group)
        return tuple(unique.values())

    def _closure(self, seed: Member) -> Group:
        members: dict[str, Split] = {}
        cuts: dict[str, FactorCut] = {}
        pending: dict[str, None] = {}
        ends: dict[str, None] = {}
        stack = [seed]
        while stack:
            value, split = stack.pop()
            if value in members:
                continue
            members[value] = split
            # The optimizer steps a parameter where its gradient is. It comes last: what ops say
            # of the gradient goes before.
            gradient = self.gradient_of.get(value)
            if gradient is not None:
                stack.insert(0, (gradient, split))
            for op, rule, dims in self.touching[value]:
                cut = rule.to_factor(dims, split)
                if cut is None or not rule.factors[cut.factor].shardable:
                    ends[op.name] = None
                    continue
                if op.name in cuts:
                    if cuts[op.name] != cut:
                        ends[op.name] = None
                    continue
                cuts[op.name] = cut
                reached = [
                    *zip(op.operands(), rule.operands, strict=True),
                    *zip(op.results, rule.results, strict=True),
                ]
                for name, other in reached:
                    if name is None or other is None:
                        continue
                    target = rule.to_split(other, cut)
                    if target is not None and name not in members:
                        stack.append((name, target))
                for position, name in enumerate(op.results):
                    if name is not None and rule.reduces(position, cut.factor):
                        pending[name] = None
        return Group(seed, members, cuts, tuple(pending), tuple(ends))
