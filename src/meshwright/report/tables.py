"""The tables of the page: candidates, collectives and parameters, as rows of text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from meshwright.plan.types import Alternative, Collective, ParameterPlan, Plan
from meshwright.report import units
from meshwright.report.data import ReportData


class Candidate(NamedTuple):
    chosen: bool
    fits: bool
    strategy: str
    mesh: str
    microbatches: int
    step_time: str
    share: float  # of the slowest candidate's step time, in percent
    memory: str
    communication: str
    note: str


class CollectiveRow(NamedTuple):
    kind: str
    axis: str
    planned: str
    executed: str
    same: bool | None  # None when nothing was executed


class ParameterRow(NamedTuple):
    name: str
    alike: int
    residency: str
    storage: str


def mesh_text(mesh: dict[str, int]) -> str:
    return " × ".join(f"{axis} {extent}" for axis, extent in mesh.items()) or "one device"


def candidates(plan: Plan) -> list[Candidate]:
    """The alternatives, those that fit first and the fastest first; the plan is among them."""
    own = Alternative(
        **plan.predicted.model_dump(),
        strategy=plan.strategy,
        mesh=plan.mesh,
        microbatches=plan.microbatches,
    )
    seen = list(plan.alternatives)
    chosen = next((a for a in seen if _same_choice(a, own)), None)
    if chosen is None:
        chosen = own
        seen.append(own)
    seen.sort(key=lambda a: (not a.fits, a.step_time_s, a is not chosen))
    slowest = max(a.step_time_s for a in seen) or 1.0
    return [
        Candidate(
            chosen=a is chosen,
            fits=a.fits,
            strategy=a.strategy,
            mesh=mesh_text(a.mesh),
            microbatches=a.microbatches,
            step_time=units.duration(a.step_time_s),
            share=100 * a.step_time_s / slowest,
            memory=units.memory(a.peak_memory_bytes),
            communication=units.duration(a.communication_s),
            note=a.note,
        )
        for a in seen
    ]


def _same_choice(a: Alternative, own: Alternative) -> bool:
    return (
        a.mesh == own.mesh
        and a.microbatches == own.microbatches
        and a.peak_memory_bytes == own.peak_memory_bytes
        and math.isclose(a.step_time_s, own.step_time_s, rel_tol=1e-9)
    )


def collectives(data: ReportData) -> list[CollectiveRow]:
    planned = _by_kind(data.plan.predicted.collectives)
    executed = _by_kind(data.measured.collectives) if data.measured else None
    rows = []
    for kind, axis in dict.fromkeys([*planned, *(executed or {})]):
        ours = planned.get((kind, axis))
        theirs = None if executed is None else executed.get((kind, axis))
        same = None if executed is None else ours == theirs
        rows.append(CollectiveRow(kind, axis, _amount(ours), _amount(theirs), same))
    return rows


def _by_kind(items: Iterable[Collective]) -> dict[tuple[str, str], tuple[int, int]]:
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for item in items:
        count, size = totals.get((item.kind, item.axis), (0, 0))
        totals[item.kind, item.axis] = (count + item.count, size + item.bytes)
    return totals


def _amount(amount: tuple[int, int] | None) -> str:
    if amount is None:
        return "none"
    return f"{units.count(amount[0])} · {units.memory(amount[1])}"


def parameters(plans: dict[str, ParameterPlan]) -> list[ParameterRow]:
    """One row for all parameters that differ in a layer's number alone and are planned alike."""
    alike: dict[tuple[str, ParameterPlan], list[str]] = {}
    for name, plan in plans.items():
        pattern = re.sub(r"(?:(?<=\.)|^)\d+(?=\.|$)", "*", name)
        alike.setdefault((pattern, plan), []).append(name)
    return [
        ParameterRow(
            name=names[0] if len(names) == 1 else pattern,
            alike=len(names),
            residency=plan.residency,
            storage=_storage(plan),
        )
        for (pattern, plan), names in alike.items()
    ]


def _storage(plan: ParameterPlan) -> str:
    if not plan.storage_axes:
        return "whole"
    dim = "" if plan.storage_dim is None else f" on dim {plan.storage_dim}"
    return f"cut over {', '.join(plan.storage_axes)}{dim}"
