"""What a plan decides and why, from its file alone: no model, no PyTorch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from meshwright.errors import UsageError
from meshwright.plan.text import RESIDENCY_TEXT, nbytes, seconds, stem, view
from meshwright.plan.types import Choice, Decision, ParameterPlan, Plan


@dataclass(frozen=True)
class Decided:
    """Decisions that differ only in a layer's number. `value` has `*` in its place."""

    axis: str
    value: str
    cut: str
    why: str
    count: int


@dataclass(frozen=True)
class Kept:
    """Parameters that are kept alike; a name has `*` for a layer's number."""

    residency: str
    meaning: str
    axes: tuple[str, ...]
    count: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Lies:
    """How one parameter or value lies on the mesh, as far as the plan says it.

    cuts: (axis, dim, how) of decisions that name it. goes_with: decisions whose
    reason mentions it. `kept` is None for what is no parameter.
    """

    name: str
    cuts: tuple[tuple[str, int, str], ...]
    goes_with: tuple[Decision, ...]
    kept: ParameterPlan | None
    replicated_over: tuple[str, ...]


def decisions(plan: Plan) -> tuple[Decided, ...]:
    merged: dict[tuple[str, str, str], list[Decision]] = {}
    for item in plan.decisions:
        merged.setdefault((item.axis, stem(item.subject), view(item)), []).append(item)
    return tuple(
        Decided(
            axis, value, cut, stem(items[0].why) if len(items) > 1 else items[0].why, len(items)
        )
        for (axis, value, cut), items in merged.items()
    )


def residencies(plan: Plan) -> tuple[Kept, ...]:
    merged: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, item in plan.parameters.items():
        merged.setdefault((item.residency, item.storage_axes), []).append(name)
    return tuple(
        Kept(residency, RESIDENCY_TEXT[residency], axes, len(names),
             tuple(dict.fromkeys(stem(name) for name in names)))
        for (residency, axes), names in merged.items()
    )  # fmt: skip


def lies(plan: Plan, name: str) -> Lies:
    """Raises UsageError, with the closest names, for one that the plan does not know."""
    direct = [item for item in plan.decisions if item.subject == name]
    asked = {item.axis for item in direct if item.fixed == "whole"}
    with_it = [
        item for item in plan.decisions
        if item.subject != name and name in _words(item.why)
    ]  # fmt: skip
    kept = plan.parameters.get(name)
    if kept is None and not direct and not with_it:
        known = list(dict.fromkeys((*plan.parameters, *(d.subject for d in plan.decisions))))
        close = difflib.get_close_matches(name, known, 3, 0.4)
        close = close or [other for other in known if name in other][:3]
        hint = (
            f"Did you mean {' or '.join(close)}?" if close else f"It knows {', '.join(known[:4])}…"
        )
        raise UsageError(f"The plan knows no parameter or value '{name}'.", hint)
    cut = {item.axis for item in (*direct, *with_it)} - asked | set(
        kept.storage_axes if kept else ()
    )
    return Lies(
        name,
        tuple((item.axis, item.dim, view(item)) for item in direct),
        tuple(with_it),
        kept,
        tuple(axis for axis, size in plan.mesh.items() if axis not in cut and size > 1),
    )


@dataclass(frozen=True)
class Spent:
    """Collectives over one axis, per device and step, by what they are for.

    seconds: what they take alone; some of it may be hidden behind compute. None where the
    plan does not say.
    """

    axis: str
    module: str
    kind: str
    part: str
    count: int
    bytes: int
    seconds: float | None


def spent(plan: Plan) -> tuple[Spent, ...]:
    """What cutting over each axis costs in collectives, the costliest first."""
    rows = [
        Spent(o.axis, o.module or "top module", o.kind, o.part, o.count, o.bytes, o.seconds)
        for o in plan.origins
    ]
    return tuple(sorted(rows, key=lambda row: (-(row.seconds or 0.0), -row.bytes)))


def spent_by_axis(plan: Plan) -> dict[str, float]:
    """Seconds of collectives over each axis of the mesh, those with nothing to say included."""
    totals = {axis: 0.0 for axis, size in plan.mesh.items() if size > 1}
    for row in plan.origins:
        totals[row.axis] = totals.get(row.axis, 0.0) + (row.seconds or 0.0)
    return totals


def choices_about(plan: Plan, name: str) -> tuple[Choice, ...]:
    """Choices whose subject names this parameter or value, by itself or by a pattern."""
    return tuple(
        item
        for item in plan.choices
        if any(_fits(word, name) for word in _words(item.subject) if "." in word or word == name)
    )


def spent_in(plan: Plan, name: str) -> tuple[Spent, ...]:
    """Collectives of the module that holds a parameter or makes a value."""
    module = stem(name.partition("/")[0] if "/" in name else name.rpartition(".")[0])
    return tuple(row for row in spent(plan) if row.module == module) if module else ()


def choice_text(item: Choice) -> str:
    """By how much the second best is worse, as in `+1.2 ms, -0.50 GiB`."""
    if item.second is None:
        return item.why or "nothing else was costed"
    if item.slower_s is None:
        time = "does not fit"
    elif abs(item.slower_s) < 5e-10:
        time = "as fast"
    else:
        time = f"{'+' if item.slower_s > 0 else '-'}{seconds(abs(item.slower_s))}"
    if not item.more_bytes:
        return time
    return f"{time}, {'+' if item.more_bytes > 0 else '-'}{nbytes(abs(item.more_bytes))}"


_ENDED = {
    "asked": "it was asked for by name",
    "proved": "no plan can be better, as a bound shows",
    "exhausted": "everything that analysis left open was costed",
    "effort": "it had done the work that it may do, and no named strategy is better",
    "settled": "many candidates in a row were no better",
    "budget": "its time was over",
}


def standing(plan: Plan) -> list[tuple[str, str]]:
    """How the search ended, and how far from the best the plan may be."""
    rows = []
    if plan.stopped is not None:
        many = f"{plan.evaluated} candidate{'s' if plan.evaluated != 1 else ''} costed"
        rows.append(("search ended", f"{_ENDED[plan.stopped]}; {many}"))
    if plan.lower_bound_s is not None:
        gap = f", this one {plan.gap:.0%} slower" if plan.gap is not None else ""
        rows.append(("no plan takes less than", f"{seconds(plan.lower_bound_s)} a step{gap}"))
    if plan.constraints:
        rows.append(("asked for", "; ".join(plan.constraints)))
    return rows


def _words(text: str) -> Sequence[str]:
    return text.replace(",", " ").split()


def _fits(pattern: str, name: str) -> bool:
    parts = (re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(".*".join(parts), name) is not None
