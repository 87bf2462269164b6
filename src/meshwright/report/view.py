"""ReportData as what the template shows: its numbers, sentences and tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from meshwright.plan.text import view as view_of
from meshwright.plan.types import Decision, Plan
from meshwright.report import units
from meshwright.report.charts import chart_data, folded, part_names
from meshwright.report.data import LossPoint, ReportData
from meshwright.report.tables import candidates, collectives, mesh_text, parameters
from meshwright.report.times import time_rows, times_note

RESIDENCY_MEANS = {
    "always": "replicated, always gathered",
    "step": "gathered for a step",
    "microbatch": "gathered for a microbatch",
    "use": "gathered for each use",
}


class Number(NamedTuple):
    name: str
    predicted: str
    measured: str
    deviation: str
    level: str  # good, fair or poor: how near the prediction was; empty when unknown
    within: str = ""  # the interval of the prediction, empty when unknown


def view(data: ReportData) -> dict[str, Any]:
    plan = data.plan
    return {
        "title": data.title,
        "plan": plan,
        "summary": summary(plan),
        "why": plan.why or _default_why(plan),
        "facts": _facts(plan),
        "numbers": key_numbers(data),
        "measured": data.measured is not None,
        "peak": _peak(data),
        "candidates": candidates(plan),
        "collectives": collectives(data),
        "times": time_rows(data),
        "times_note": times_note(data),
        "decisions": [(decision, _whole(decision)) for decision in plan.decisions],
        "parameters": parameters(plan.parameters),
        "residencies": _residencies(plan),
        "loss_note": loss_note(data),
        "checks": data.checks,
        "failed": sum(not check.ok for check in data.checks),
        "charts": chart_data(data),
    }


def summary(plan: Plan) -> str:
    many = "1 microbatch" if plan.microbatches == 1 else f"{plan.microbatches} microbatches"
    return (
        f"{plan.model} on {plan.cluster} runs as {mesh_text(plan.mesh)}, "
        f"a global batch of {units.count(plan.global_batch)} in {many}."
    )


def _default_why(plan: Plan) -> str:
    fitting = sum(a.fits for a in plan.alternatives)
    if len(plan.alternatives) < 2:
        return f"This is what the strategy {plan.strategy} asks for."
    return f"The fastest of {fitting} candidates that fit, out of {len(plan.alternatives)}."


def _facts(plan: Plan) -> list[tuple[str, str]]:
    planning_s = plan.capture_s + plan.search_s + plan.lower_s
    facts = [
        ("Strategy", plan.strategy),
        ("Optimizer", plan.optimizer),
        ("Clip norm", "off" if plan.clip_norm is None else f"{plan.clip_norm:g}"),
    ]
    if planning_s:
        facts.append(("Planned in", units.duration(planning_s)))
    if plan.predicted.mfu is not None:
        facts.append(("Predicted MFU", units.percent(plan.predicted.mfu)))
    if plan.gap is not None:
        facts.append(("Within", f"{units.percent(plan.gap)} of the optimum"))
    return facts


def key_numbers(data: ReportData) -> list[Number]:
    predicted, measured = data.plan.predicted, data.measured
    step_time_s = measured.step_time_s if measured else None
    peak_bytes = measured.peak_memory_bytes if measured else None
    tokens_per_s = measured.tokens_per_s if measured else None
    rows: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
        ("Step time", predicted.step_time_s, step_time_s, units.duration),
        ("Peak memory per device", predicted.peak_memory_bytes, peak_bytes, units.memory),
        ("Tokens", predicted.tokens_per_s, tokens_per_s, units.rate),
        ("Computing", predicted.compute_s or None, None, units.duration),
        ("Communicating", predicted.communication_s or None, None, units.duration),
    ]
    numbers = [_number(*row) for row in rows if row[1] is not None or row[2] is not None]
    if predicted.step_time_interval_s is not None:
        low, high = predicted.step_time_interval_s
        text = f"{units.duration(low)} to {units.duration(high)}"
        numbers[0] = numbers[0]._replace(within=text)
    return numbers


def _number(
    name: str, predicted: float | None, measured: float | None, text: Callable[[float], str]
) -> Number:
    off, level = units.NOT_KNOWN, ""
    if predicted and measured is not None:
        off = units.deviation(measured, predicted)
        distance = abs(measured / predicted - 1)
        level = "good" if distance <= 0.1 else "fair" if distance <= 0.25 else "poor"
    return Number(
        name,
        units.NOT_KNOWN if predicted is None else text(predicted),
        units.NOT_KNOWN if measured is None else text(measured),
        off,
        level,
    )


def _peak(data: ReportData) -> list[tuple[str, int, str, float]]:
    """(part, colour, size, percent) of the predicted peak."""
    names = part_names(data)
    sizes = folded(data.plan.predicted.memory, names)
    total = sum(sizes) or 1
    return [
        (name, colour, units.memory(size), 100 * size / total)
        for colour, (name, size) in enumerate(zip(names, sizes, strict=True))
        if size
    ]


def _whole(decision: Decision) -> str:
    if decision.op is not None or decision.only or decision.fixed == "whole":
        return view_of(decision)
    if decision.extent is None:
        return str(decision.dim)
    return f"{decision.dim}, {decision.extent} after {decision.outer}"


def _residencies(plan: Plan) -> list[tuple[str, int, str]]:
    counts = Counter[str](p.residency for p in plan.parameters.values())
    return [(name, counts[name], means) for name, means in RESIDENCY_MEANS.items() if counts[name]]


def loss_note(data: ReportData) -> str:
    if not data.losses:
        return ""
    if not all(math.isfinite(loss) for _, loss in data.losses):
        return "Some of the losses are not finite; the line has gaps there."
    step, loss = data.losses[-1]
    note = f"At step {step} the loss is {loss:.4f}."
    distance = largest_difference(data.losses, data.reference_losses)
    if distance is not None:
        note += f" It is never further from one device's than {distance:.1e} of its value."
    return note


def largest_difference(losses: Iterable[LossPoint], reference: Iterable[LossPoint]) -> float | None:
    """Largest relative difference over the steps that both have; None when there are none."""
    expected = dict(reference)
    both = [
        (loss, expected[step])
        for step, loss in losses
        if step in expected and math.isfinite(loss) and math.isfinite(expected[step])
    ]
    if not both:
        return None
    return max(abs(a - b) / (abs(b) or 1.0) for a, b in both)
