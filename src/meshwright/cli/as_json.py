"""Plans and runs as the objects that `--json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshwright.plan.types import Collective, Plan, Prediction

_FIGURES = {
    "step_time_s", "step_time_interval_s", "peak_memory_bytes", "tokens_per_s", "mfu",
    "collectives", "compute_s", "communication_s", "memory",
}  # fmt: skip


def prediction_json(predicted: Prediction) -> dict[str, Any]:
    return predicted.model_dump(mode="json", include=_FIGURES)


def plan_json(plan: Plan) -> dict[str, Any]:
    """Figures of the plan beside how it was found."""
    return {
        "model": plan.model,
        "cluster": plan.cluster,
        "strategy": plan.strategy,
        "mesh": dict(plan.mesh),
        "microbatches": plan.microbatches,
        "global_batch": plan.global_batch,
        "optimizer": plan.optimizer,
        "clip_norm": plan.clip_norm,
        "rng": plan.rng,
        **prediction_json(plan.predicted),
        "why": plan.why,
        "capture_s": plan.capture_s,
        "search_s": plan.search_s,
        "lower_s": plan.lower_s,
        "alternatives": [
            {"strategy": other.strategy, "mesh": dict(other.mesh), **prediction_json(other),
             "microbatches": other.microbatches, "fits": other.fits, "note": other.note}
            for other in plan.alternatives
        ],
        "gap": plan.gap,
        "lower_bound_s": plan.lower_bound_s,
        "stopped": plan.stopped,
        "evaluated": plan.evaluated,
        "seed": plan.seed,
        "constraints": list(plan.constraints),
        "choices": [item.model_dump() for item in plan.choices],
    }  # fmt: skip


def run_json(plan: Plan, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Prediction beside measurement. `results` are what the processes returned.

    The slowest process sets the pace, and the fullest one needs the memory.
    """
    planned = [item.model_dump() for item in plan.predicted.collectives]
    executed = results[0]["executed"]
    return {
        "collectives": {"planned": planned, "executed": executed},
        "collectives_equal": ordered(planned) == ordered(executed),
        "step_time_s": {
            "predicted": plan.predicted.step_time_s,
            "interval": plan.predicted.step_time_interval_s,
            "measured": _largest(result["step_time_s"] for result in results),
        },
        "peak_memory_bytes": {
            "predicted": plan.predicted.peak_memory_bytes,
            "measured": _largest(result["peak_memory_bytes"] for result in results),
        },
        "strategy": plan.strategy,
        "mesh": dict(plan.mesh),
    }


def _largest(values: Any) -> Any:
    return max((value for value in values if value is not None), default=None)


def ordered(items: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted((c["kind"], c["axis"], c["count"], c["bytes"]) for c in items)


def as_collectives(items: Sequence[dict[str, Any]]) -> tuple[Collective, ...]:
    return tuple(Collective.model_validate(item) for item in items)
