"""The table of rules: which function gives an op its rule."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property

from meshwright.errors import RuleError
from meshwright.program.types import Argument, Op, Program, Ref, Value
from meshwright.rules import user
from meshwright.rules.types import OpRule, Shape
from meshwright.rules.user import Prober


@dataclass(frozen=True)
class Call:
    """One op with the shapes of its operands and results: what a rule function sees."""

    op: Op
    shapes: tuple[Shape, ...]  # of operands, in `Op.operands()` order
    results: tuple[Shape | None, ...]
    values: Mapping[str, Value]

    @cached_property
    def _kwargs(self) -> dict[str, Argument]:
        return dict(self.op.kwargs)

    def arg(self, position: int, name: str, default: Argument = None) -> Argument:
        """An argument by position or name, as PyTorch's schema would bind it."""
        if position < len(self.op.args):
            return self.op.args[position]
        return self._kwargs.get(name, default)

    def ints(self, position: int, name: str, default: Argument = None) -> tuple[int, ...]:
        argument = self.arg(position, name, default)
        if isinstance(argument, tuple):
            return tuple(int(item) for item in argument if isinstance(item, int))
        return (argument,) if isinstance(argument, int) else ()

    def integer(self, position: int, name: str, default: int = 0) -> int:
        argument = self.arg(position, name, default)
        assert isinstance(argument, int), (self.op.target, name, argument)
        return argument

    def has(self, position: int, name: str) -> bool:
        """Whether an optional tensor argument was given."""
        return isinstance(self.arg(position, name), Ref)


RuleFunction = Callable[[Call], OpRule]
_RULES: dict[str, RuleFunction] = {}


def rule(*targets: str) -> Callable[[RuleFunction], RuleFunction]:
    """Register a rule function for ops by their full ATen names."""

    def register(function: RuleFunction) -> RuleFunction:
        for target in targets:
            if target in _RULES:
                raise ValueError(f"{target} has two rules")
            _RULES[target] = function
        return function

    return register


def targets() -> tuple[str, ...]:
    """Every op that has a rule."""
    return tuple(sorted(_RULES))


def rules_of(program: Program, prober: Prober | None = None) -> Mapping[str, OpRule]:
    """The rule of each op by the op's name; ops alike in all but names share one.

    prober: finds the rule of an op that has none, and checks those of users.
    """
    found: dict[Hashable, OpRule] = {}
    result: dict[str, OpRule] = {}
    for op in program.ops:
        key = _signature(op, program.values)
        rule_ = found.get(key)
        if rule_ is None:
            rule_ = found[key] = rule_of(op, program.values, prober)
        result[op.name] = rule_
    return result


def rule_of(op: Op, values: Mapping[str, Value], prober: Prober | None = None) -> OpRule:
    """The rule of one op at its concrete shapes: the user's, Meshwright's own, or a probed one.

    Raises RuleError, naming the op, its module and source line, when none is known or found.
    """
    function = _RULES.get(op.target)
    given = user.find(op.target)
    if function is None and given is None and prober is None:
        raise RuleError(
            f"{op.target} in {op.source} has no sharding rule.",
            "Write the op with others that have one, or give it a rule with "
            "meshwright.register_rule; `meshwright.rules.registry.targets()` lists what is known.",
        )
    call = Call(
        op,
        tuple(values[name].shape for name in op.operands()),
        tuple(None if name is None else values[name].shape for name in op.results),
        values,
    )
    if given is not None:
        if given.check and prober is not None:
            prober.check(call, given)
        return user.apply(given, call)
    if function is None:
        assert prober is not None
        return prober.probe(call)
    made = function(call)
    if len(made.operands) != len(call.shapes) or len(made.results) != len(call.results):
        raise AssertionError(f"the rule of {op.target} does not cover its operands and results")
    return made


def _signature(op: Op, values: Mapping[str, Value]) -> Hashable:
    def flat(argument: Argument) -> Hashable:
        if isinstance(argument, Ref):
            return values[argument.name].shape
        if isinstance(argument, tuple):
            return ("tuple", *(flat(item) for item in argument))
        return (type(argument), argument)

    return (
        op.target,
        tuple(flat(item) for item in op.args),
        tuple((name, flat(item)) for name, item in op.kwargs),
        tuple(None if name is None else values[name].shape for name in op.results),
    )
