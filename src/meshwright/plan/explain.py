"""What a plan decides and why, from its file alone: no model, no PyTorch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from meshwright.errors import UsageError
from meshwright.plan.text import RESIDENCY_TEXT
from meshwright.plan.types import Decision, ParameterPlan, Plan


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
        merged.setdefault((item.axis, stem(item.value), _cut(item)), []).append(item)
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
    direct = [item for item in plan.decisions if item.value == name]
    with_it = [
        item for item in plan.decisions
        if item.value != name and name in _words(item.why)
    ]  # fmt: skip
    kept = plan.parameters.get(name)
    if kept is None and not direct and not with_it:
        known = list(dict.fromkeys((*plan.parameters, *(d.value for d in plan.decisions))))
        close = difflib.get_close_matches(name, known, 3, 0.4)
        close = close or [other for other in known if name in other][:3]
        hint = (
            f"Did you mean {' or '.join(close)}?" if close else f"It knows {', '.join(known[:4])}…"
        )
        raise UsageError(f"The plan knows no parameter or value '{name}'.", hint)
    cut = {item.axis for item in (*direct, *with_it)} | set(kept.storage_axes if kept else ())
    return Lies(
        name,
        tuple((item.axis, item.dim, _cut(item)) for item in direct),
        tuple(with_it),
        kept,
        tuple(axis for axis, size in plan.mesh.items() if axis not in cut and size > 1),
    )


def cut_text(dim: int, outer: int = 1, extent: int | None = None, owner: int | None = None) -> str:
    """`dim 0`, or `dim 0 as [3, 8, …]` where the cut is inside a dim; or who has all of it."""
    if owner is not None:
        return f"dim {dim}, all of it on device {owner}"
    if outer == 1 and extent is None:
        return f"dim {dim}"
    return f"dim {dim} as [{outer}, {extent or 'all'}, …]"


def _cut(item: Decision) -> str:
    return cut_text(item.dim, item.outer, item.extent, item.owner)


def stem(name: str) -> str:
    """A dotted name with `*` for its numbers."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _words(text: str) -> Sequence[str]:
    return text.replace(",", " ").split()
