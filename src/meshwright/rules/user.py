"""Rules that users register for ops of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from meshwright.errors import RuleError
from meshwright.rules.pattern import Pattern, PatternError, replicated
from meshwright.rules.types import OpRule

if TYPE_CHECKING:
    from meshwright.rules.registry import Call


@dataclass(frozen=True)
class UserRule:
    """pattern: None for an op that the user wants whole on every device."""

    text: str
    pattern: Pattern | None
    check: bool


class Prober(Protocol):
    """What finds and checks rules by running ops; needs PyTorch, so it is handed in."""

    def probe(self, call: Call) -> OpRule:
        """A rule of an op that has none. Raises RuleError when none can be found."""

    def check(self, call: Call, rule: UserRule) -> None:
        """Raises RuleError when a user's rule is not what the op does."""


_RULES: dict[str, UserRule] = {}


def keep(target: str, rule: UserRule) -> None:
    """Take up a rule for an op by its full name; a later one takes the place of an earlier."""
    _RULES[target] = rule


def forget(target: str) -> None:
    """Drop the rule of an op, if it has one."""
    _RULES.pop(target, None)


def find(target: str) -> UserRule | None:
    return _RULES.get(target)


def apply(rule: UserRule, call: Call) -> OpRule:
    """The user's rule at the shapes of a call. Raises RuleError where it does not fit."""
    if rule.pattern is None:
        made = replicated(call.shapes, call.results).rule(call.shapes, call.results)
        return replace(made, origin="runs whole on every device, as registered")
    try:
        made = rule.pattern.rule(call.shapes, call.results)
    except PatternError as error:
        shapes = ", ".join(str(list(shape)) for shape in call.shapes)
        raise RuleError(
            f"The rule '{rule.text}' does not fit {call.op.target} in {call.op.source}: {error}.",
            f"There its tensors are {shapes}. Correct the text given to register_rule.",
        ) from error
    return replace(made, origin=f"rule registered: {rule.text}")
