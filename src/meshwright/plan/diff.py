"""How two plans differ, field by field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from meshwright.plan.types import Plan

# What says how long planning took or who made it, not what the plan is.
_PASSING = frozenset({"capture_s", "search_s", "lower_s", "meshwright_version", "alternatives"})


@dataclass(frozen=True)
class Difference:
    """`field` is a dotted path. A value of None is one that the plan does not have."""

    field: str
    first_value: Any
    second_value: Any

    @property
    def first(self) -> str:
        return _text(self.first_value)

    @property
    def second(self) -> str:
        return _text(self.second_value)


def diff_plans(first: Plan, second: Plan) -> tuple[Difference, ...]:
    """Every field in which the plans differ, in the order of the file."""
    mine, theirs = _fields(first), _fields(second)
    return tuple(
        Difference(field, mine.get(field), theirs.get(field))
        for field in dict.fromkeys((*mine, *theirs))
        if mine.get(field) != theirs.get(field)
    )


def _fields(plan: Plan) -> dict[str, Any]:
    content = plan.model_dump(mode="json", exclude=set(_PASSING))
    # By what they are about, so that one more decision does not shift all others.
    decisions = {
        f"decisions.{item['axis']}.{item['value']}": {
            key: value for key, value in item.items() if key not in ("axis", "value")
        }
        for item in content.pop("decisions")
    }
    collectives = {
        f"predicted.collectives.{item['kind']}.{item['axis']}": {
            "count": item["count"],
            "bytes": item["bytes"],
        }
        for item in content["predicted"].pop("collectives")
    }
    flat: dict[str, Any] = {}
    for name, value in {**content, **decisions, **collectives}.items():
        _flatten(name, value, flat)
    return flat


def _flatten(name: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(f"{name}.{key}", inner, into)
    else:
        into[name] = value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
