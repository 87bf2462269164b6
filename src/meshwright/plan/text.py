"""A plan as text: the table that `print(plan)` shows, within 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from meshwright.plan.types import Collective, Decision, ParameterPlan, Plan

_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
RESIDENCY_TEXT = {
    "always": "whole on every device",
    "step": "sharded between steps, gathered once a step",
    "microbatch": "sharded, gathered for each microbatch",
    "use": "sharded, gathered at each use",
}


def format_plan(plan: Plan) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items()) or "one device"
    predicted = plan.predicted
    lines = [
        f"{plan.model}: {plan.strategy} on {plan.cluster}",
        "",
        f"  mesh             {mesh}",
        f"  global batch     {plan.global_batch} in {plan.microbatches} "
        f"microbatch{'es' if plan.microbatches > 1 else ''}",
        f"  step time        {seconds(predicted.step_time_s)}{interval(predicted)} predicted "
        f"({seconds(predicted.compute_s)} compute, "
        f"{seconds(predicted.communication_s)} communication)",
        f"  peak memory      {nbytes(predicted.peak_memory_bytes)} a device",
    ]
    if predicted.tokens_per_s is not None:
        lines.append(f"  throughput       {predicted.tokens_per_s:,.0f} tokens/s")
    if predicted.mfu is not None:
        lines.append(f"  model flops      {predicted.mfu:.1%} of the devices' peak")
    lines += ["", f"  {plan.why}" if plan.why else ""]
    lines += ["", "  Collectives per device and step"]
    lines += _collectives(predicted.collectives)
    lines += _origins(plan)
    lines += ["", "  Sharded over the mesh"]
    lines += _decisions(plan)
    lines += ["", "  Parameters"]
    lines += _residencies(plan.parameters)
    if plan.constraints:
        lines += ["", "  Asked for", *(f"    {text}" for text in plan.constraints)]
    if plan.remarks:
        lines += ["", "  Of note", *(f"    {line}" for line in plan.remarks)]
    if plan.alternatives:
        lines += ["", "  Also considered"]
        rows = [
            (
                other.strategy,
                seconds(other.step_time_s),
                nbytes(other.peak_memory_bytes),
                "" if other.fits else "does not fit",
            )
            for other in plan.alternatives[:8]
        ]
        lines += table(("strategy", "step time", "peak memory", ""), rows)
    return "\n".join(line.rstrip() for line in lines)


def _collectives(collectives: Sequence[Collective]) -> list[str]:
    if not collectives:
        return ["    none"]
    rows = [(c.kind, c.axis, str(c.count), nbytes(c.bytes)) for c in collectives]
    return table(("kind", "axis", "count", "bytes"), rows)


def _origins(plan: Plan, most: int = 16) -> list[str]:
    if len(plan.origins) < 2:
        return []
    rows = [
        (item.part, item.kind, item.axis, str(item.count), item.module or "top module")
        for item in plan.origins
    ]
    lines = ["", "  Which come from"]
    lines += table(("part of the step", "kind", "axis", "count", "module"), rows[:most])
    if len(rows) > most:
        lines.append(f"    and {len(rows) - most} more; the plan's file lists them all")
    return lines


def _decisions(plan: Plan) -> list[str]:
    """Decisions that differ only in a layer's number are shown as one."""
    merged: dict[tuple[str, str, str], int] = {}
    for decision in plan.decisions:
        key = (decision.axis, stem(decision.subject), view(decision))
        merged[key] = merged.get(key, 0) + 1
    if not merged:
        return ["    nothing"]
    rows = [
        (axis, subject, seen, f"{count} times" if count > 1 else "")
        for (axis, subject, seen), count in merged.items()
    ]
    return table(("axis", "value and all that goes with it", "cut along", ""), rows)


def view(decision: Decision) -> str:
    """What a decision cuts, as in `dim 0`, `dim 0 as [3, 8, …]` or `this op alone, not cut`."""
    whole = decision.fixed == "whole"
    cut = cut_text(decision.dim, decision.outer, decision.extent, decision.owner)
    if decision.op is not None:
        of = f" of {decision.value}" if decision.value != decision.op else ""
        return "this op alone, not cut" if whole else f"this op alone, {cut}{of}"
    if whole:
        return "stays whole"
    return f"by itself, {cut}" if decision.only else cut


def cut_text(dim: int, outer: int = 1, extent: int | None = None, owner: int | None = None) -> str:
    """`dim 0`, or `dim 0 as [3, 8, …]` where the cut is inside a dim; or who has all of it."""
    if owner is not None:
        return f"dim {dim}, all of it on device {owner}"
    if outer == 1 and extent is None:
        return f"dim {dim}"
    return f"dim {dim} as [{outer}, {extent or 'all'}, …]"


def stem(name: str) -> str:
    """A dotted name with `*` for its numbers."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _residencies(parameters: dict[str, ParameterPlan]) -> list[str]:
    counts: dict[tuple[str, str, str], int] = {}
    for item in parameters.values():
        cut_over = [c.axis for c in item.cuts if c.axis not in item.storage_axes]
        key = (item.residency, ", ".join(item.storage_axes), ", ".join(cut_over))
        counts[key] = counts.get(key, 0) + 1
    lines = []
    for (residency, axes, cut), count in counts.items():
        text = RESIDENCY_TEXT[residency] + (f" (over {axes})" if axes else "")
        if cut:
            text = f"cut over {cut}" + (f", and {text}" if axes else " for good")
        lines.append(f"    {count} {text}")
    return lines


def table(head: Sequence[str], rows: Iterable[Sequence[str]], indent: str = "    ") -> list[str]:
    body = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[k]) for row in body) for k in range(len(head))]
    return [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in body
    ]


def seconds(value: float) -> str:
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 1e-3:
        return f"{value * 1e3:.1f} ms"
    return f"{value * 1e6:.0f} µs"


class _Timed(Protocol):
    @property
    def step_time_interval_s(self) -> tuple[float, float] | None: ...


def interval(predicted: _Timed) -> str:
    """As in ` (1.90 s to 2.31 s)`; empty where the machine's noise is not known."""
    if predicted.step_time_interval_s is None:
        return ""
    low, high = predicted.step_time_interval_s
    return f" ({seconds(low)} to {seconds(high)})"


def nbytes(value: int) -> str:
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value} B"
