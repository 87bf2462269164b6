"""`register_rule`: a sharding rule for an op of one's own, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from meshwright.errors import UsageError
from meshwright.layout.types import Reduce
from meshwright.rules import targets
from meshwright.rules.pattern import Pattern, PatternError, Place, parse_pattern
from meshwright.rules.types import Linearity
from meshwright.rules.user import UserRule, keep


def register_rule(
    op: Any,
    text: str | None = None,
    *,
    combine: Mapping[str, Reduce] | None = None,
    fixed: Iterable[str] = (),
    sizes: Mapping[str | int, str | tuple[str | None, ...]] | None = None,
    linear: Linearity = "none",
    whole: bool = False,
    check: bool = True,
) -> None:
    """Say how an op of your own may be cut; takes the place of probing.

    op: its name, as `"mylib::fused_mlp"` (all overloads) or with an overload, or
        the op itself: `torch.ops.mylib.fused_mlp`, one of its overloads, or what
        `torch.library.custom_op` made.
    text: its tensors' dims by named factors, operands in the order of the
        schema (those left out are left out here), then results:
        `"b s h, h f, f h -> b s h"` or `"[b,s,h],[h] -> [b,s,h]"`. `(b s)` is a
        dim that merges two factors, outermost first; `.` one that belongs to
        none and stays whole; `_` a result that the op leaves out. A dim of size
        1 may have any name. A factor that a result lacks is summed.
    combine: factors that are combined otherwise: `{"k": "max"}`.
    fixed: factors that stay whole.
    sizes: arguments that hold sizes, by name or position: `{"width": "f"}`,
        `{"shape": ("b", None, "h")}`.
    linear: `"unary"` when pending sums of the first operand may pass through,
        `"joint"` when those of all operands may together.
    whole: the op runs whole on every device; give no text then.
    check: hold the rule against the op on small inputs when a model first uses it.

    Backward ops have names and rules of their own. Raises UsageError for a text
    that makes no sense, an op that has no such arguments, and for ATen ops that
    have a rule already. A rule that is not what the op does is a RuleError, when
    a model that uses the op is planned.
    """
    if whole == (text is not None):
        raise UsageError(
            "register_rule takes a text, or whole=True, and not both.",
            "Write the dims of the op, as in '[b,s,h],[h] -> [b,s,h]'.",
        )
    overloads = _overloads(op)
    for target, schema in overloads.items():
        if target in targets():
            raise UsageError(
                f"{target} has a rule of Meshwright's own.",
                "Register rules for your own ops; report a rule that is wrong.",
            )
        pattern = None
        if text is not None:
            pattern = _pattern(text, combine, fixed, sizes or {}, linear, target, schema)
        keep(target, UserRule(text or "", pattern, check))


def _pattern(
    text: str,
    combine: Mapping[str, Reduce] | None,
    fixed: Iterable[str],
    sizes: Mapping[str | int, str | tuple[str | None, ...]],
    linear: Linearity,
    target: str,
    schema: Any,
) -> Pattern:
    if linear not in ("none", "unary", "joint"):
        raise UsageError(f"linear is '{linear}'.", "Use 'none', 'unary' or 'joint'.")
    try:
        made = parse_pattern(
            text, combine=combine, fixed=fixed, linear=linear, sizes=_places(sizes, schema)
        )
    except PatternError as error:
        raise UsageError(
            f"The rule '{text}' of {target} can't be read: {error}.",
            "Write operands, '->' and results, as in '[b,s,h],[h] -> [b,s,h]'.",
        ) from error
    if schema is None:
        return made
    tensors = [a for a in schema.arguments if "Tensor" in str(a.type)]
    lists = any("[]" in str(a.type) or "List" in str(a.type) for a in tensors)
    least = sum("Optional" not in str(a.type) for a in tensors)
    if not lists and not least <= len(made.operands) <= len(tensors):
        raise UsageError(
            f"The rule '{text}' has {len(made.operands)} operands; {target} takes "
            f"{len(tensors)} tensors.",
            f"Its schema is {schema}.",
        )
    many = any("[]" in str(item.type) or "List" in str(item.type) for item in schema.returns)
    if not many and len(made.results) != len(schema.returns):
        raise UsageError(
            f"The rule '{text}' has {len(made.results)} results; {target} gives "
            f"{len(schema.returns)}.",
            f"Its schema is {schema}.",
        )
    return made


def _places(
    sizes: Mapping[str | int, str | tuple[str | None, ...]], schema: Any
) -> tuple[tuple[Place, str], ...]:
    names = [] if schema is None else [argument.name for argument in schema.arguments]
    found: list[tuple[Place, str]] = []
    for argument, factors in sizes.items():
        if isinstance(argument, str) and argument not in names:
            raise UsageError(
                f"The op has no argument '{argument}'.", f"It has {', '.join(names) or 'none'}."
            )
        position = names.index(argument) if isinstance(argument, str) else argument
        if isinstance(factors, str):
            found.append(((position, None), factors))
        else:
            found += [
                ((position, item), name) for item, name in enumerate(factors) if name is not None
            ]
    return tuple(found)


def _overloads(op: Any) -> dict[str, Any]:
    """Full names of the overloads that are meant, with their schemas; None for one not loaded."""
    # An OpOverload and a packet show as `mylib.op.default` and `mylib.op`, what
    # `custom_op` makes as `<CustomOpDef(mylib::op)>`.
    name = str(op).removeprefix("<CustomOpDef(").removesuffix(")>")
    parts = name.replace("::", ".").split(".")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(
            f"'{name}' is no name of an op.",
            "Give namespace and name, as in 'mylib::fused_mlp', or the op itself.",
        )
    packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
    if packet is None:
        # Not registered yet, as when rules come first: taken at its word.
        return {".".join(parts if len(parts) == 3 else [*parts, "default"]): None}
    known = packet.overloads()
    if len(parts) == 3 and parts[2] not in known:
        raise UsageError(
            f"{parts[0]}::{parts[1]} has no overload '{parts[2]}'.", f"It has {', '.join(known)}."
        )
    chosen = parts[2:] or known
    return {
        f"{parts[0]}.{parts[1]}.{overload}": getattr(packet, overload)._schema
        for overload in chosen
    }
