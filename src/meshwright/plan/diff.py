"""How two plans differ, field by field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meshwright.plan.explain import choice_text
from meshwright.plan.text import nbytes, view
from meshwright.plan.types import Choice, Decision, Plan

# What says how long planning took or who made it, not what the plan is.
_PASSING = frozenset({
    "capture_s", "search_s", "lower_s", "meshwright_version", "alternatives", "evaluated",
})  # fmt: skip


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


def grouped(differences: Sequence[Difference]) -> tuple[tuple[str, str, str], ...]:
    """(what, first, second) for reading: parameters that differ alike are one row."""
    merged: dict[tuple[str, str, str], list[str]] = {}
    for item in differences:
        name, field = item.field, ""
        if item.field.startswith("parameters."):
            name, _, field = item.field.removeprefix("parameters.").rpartition(".")
        merged.setdefault((field or name, item.first, item.second), []).append(name)
    rows = []
    for (field, first, second), names in merged.items():
        what = field
        if names[0] != field:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            what = f"{field} of {names[0]}{more}"
        rows.append((what, first, second))
    return tuple(rows)


def _fields(plan: Plan) -> dict[str, Any]:
    content = plan.model_dump(mode="json", exclude=set(_PASSING))
    # By what they are about, so that one more decision does not shift all others.
    decisions = {
        f"decisions.{item['axis']}.{item['op'] or item['value']}" + (".op" if item["op"] else ""): {
            key: value
            for key, value in item.items()
            if key != "axis" and (key != "value" or item["op"])
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
    origins = {
        f"origins.{item['part']}.{item['kind']}.{item['axis']}.{item['module'] or 'top module'}": {
            "count": item["count"],
            "bytes": item["bytes"],
        }
        for item in content.pop("origins")
    }
    merged = {
        f"predicted.before_merging.{item['kind']}.{item['axis']}": {
            "count": item["count"],
            "bytes": item["bytes"],
        }
        for item in content["predicted"].pop("before_merging")
    }
    choices = {
        f"choices.{item['subject']}": {
            key: value for key, value in item.items() if key not in ("subject", "why")
        }
        for item in content.pop("choices")
    }
    constraints = {f"constraints.{text}": "asked for" for text in content.pop("constraints")}
    flat: dict[str, Any] = {}
    for name, value in content.items():
        _flatten(name, value, flat)
    return {**flat, **constraints, **decisions, **collectives, **merged, **origins, **choices}


def _choice(value: dict[str, Any]) -> str:
    """`cut, next best whole (+1.2 ms)`."""
    item = Choice(subject="", **value)
    return f"{item.chosen}, next best {item.second or '-'} ({choice_text(item)})"


def _flatten(name: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(f"{name}.{key}", inner, into)
    else:
        into[name] = value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        if "second" in value:
            return _choice(value)
        if "dim" in value:
            return view(Decision(**{"axis": "", "value": "", **value}))
        return f"{value['count']} of {nbytes(value['bytes'])}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
