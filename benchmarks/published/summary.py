"""Errors over rows: median, 90th percentile and rank correlation, by source and overall."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from benchmarks import ranks
from benchmarks.published.predict import Predicted
from benchmarks.published.rows import Row

PARTS = ("fit", "held-out")


def part_of(row: Row) -> str:
    """`fit` or `held-out`, by a hash of all that the row says, so that no hand chooses."""
    return PARTS[hash_of(row)[0] % 2]


def hash_of(row: Row) -> bytes:
    """Of all that the row says of the run and what was measured, wherever in a file it is."""
    said = "|".join(str(getattr(row, name)) for name in _SAID)
    return hashlib.sha256(said.encode()).digest()


_SAID = (
    "source", "model", "layers", "hidden", "heads", "seq_len", "gpu", "n_gpus", "dp", "tp", "cp",
    "pp", "vpp", "zero_or_fsdp", "micro_batch", "global_batch", "activation_recompute",
    "precision", "step_time_s", "tokens_per_s_per_gpu",
)  # fmt: skip


def quantile(numbers: Sequence[float], share: float) -> float | None:
    return float(np.quantile(numbers, share)) if numbers else None


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Of the rows of a source; two of them say nothing."""
    return ranks.rank_correlation(first, second, least=3)


def _step(item: Predicted) -> tuple[float | None, float]:
    return item.measured_s, item.predicted_s


def _memory(item: Predicted) -> tuple[float | None, float]:
    return item.measured_gib, item.predicted_gib


_FIGURES: Mapping[str, Callable[[Predicted], tuple[float | None, float]]] = {
    "step_time": _step, "memory": _memory,
}  # fmt: skip


def figures(rows: Iterable[Predicted]) -> dict[str, dict[str, Any]]:
    """`step_time` and `memory`, each with `count`, `median`, `p90` (absolute relative errors) and
    `rank`: of one source its own rank correlation, of several the median of theirs."""
    rows = list(rows)
    found: dict[str, dict[str, Any]] = {}
    for name, pair in _FIGURES.items():
        pairs = [(item.row.source, *pair(item)) for item in rows]
        known = [(source, given, said) for source, given, said in pairs if given is not None]
        errors = [abs(said / given - 1) for _, given, said in known]
        ranks = []
        for source in dict.fromkeys(source for source, _, _ in known):
            of_source = [(given, said) for name_, given, said in known if name_ == source]
            rank = rank_correlation([a for a, _ in of_source], [b for _, b in of_source])
            if rank is not None:
                ranks.append(rank)
        found[name] = {
            "count": len(errors),
            "median": quantile(errors, 0.5),
            "p90": quantile(errors, 0.9),
            "rank": median(ranks) if ranks else None,
        }
    return found


def report(
    predicted: Sequence[Predicted], skipped: Sequence[tuple[Row | None, int, str]]
) -> dict[str, Any]:
    """The whole result as JSON has it.

    `overall` and `sources` are over fully specified rows; `all_predicted` counts those with
    assumptions as well. `parts` splits the former by generation of device, and into the rows
    that constants were fitted on and those that they were not.
    """
    full = [item for item in predicted if not item.settled.assumed]
    new = [item for item in full if any(kind in item.row.gpu for kind in ("A100", "H100"))]
    old = [item for item in full if "V100" in item.row.gpu]
    sources = dict.fromkeys(item.row.source for item in full)
    return {
        "overall": figures(full),
        "sources": {
            source: figures(item for item in full if item.row.source == source)
            for source in sources
        },
        "parts": {
            "a100_h100": figures(new),
            "v100": figures(old),
            **{
                f"a100_h100 {part}": figures(item for item in new if part_of(item.row) == part)
                for part in PARTS
            },
        },
        "all_predicted": {
            "overall": figures(predicted),
            "sources": {
                source: figures(item for item in predicted if item.row.source == source)
                for source in dict.fromkeys(item.row.source for item in predicted)
            },
        },
        "rows": [row_json(item) for item in predicted],
        "skipped": [
            {
                "line": line,
                "source": row.source if row else None,
                "model": row.model if row else None,
                "reason": reason,
            }
            for row, line, reason in skipped
        ],
    }


def row_json(item: Predicted) -> dict[str, Any]:
    simulation = item.simulation
    return {
        "line": item.row.line,
        "source": item.row.source,
        "model": item.row.model,
        "gpu": item.row.gpu,
        "n_gpus": item.settled.n_gpus,
        "strategy": item.strategy,
        "framework": item.settled.framework.name,
        "fully_specified": not item.settled.assumed,
        "assumed": list(item.settled.assumed),
        "part": part_of(item.row),
        "measured": {
            "step_time_s": item.measured_s,
            "step_time_from": item.measured_from,
            "peak_memory_gib": item.measured_gib,
        },
        "predicted": {
            "step_time_s": item.predicted_s,
            "peak_memory_gib": item.predicted_gib,
            "compute_s": simulation.compute_s,
            "communication_s": simulation.communication_s,
            "optimizer_s": simulation.optimizer_s,
            "exposed_communication_s": simulation.exposed_communication_s,
            "bubble": simulation.bubble,
            "stalls": dict(simulation.stalls),
            "memory": simulation.memory,
            "peak_at": simulation.peak_at,
        },
        "error": {"step_time": item.step_error, "memory": item.memory_error},
    }


def kept(found: Mapping[str, Any]) -> dict[str, Any]:
    """A report in short, as `result.json` holds it: figures to four digits, without `skipped`.

    A row is [line, strategy, measured s, predicted s, measured GiB, predicted GiB].
    """
    figures_alone = ("overall", "sources", "parts", "all_predicted")
    rows = [
        [
            row["line"], row["strategy"],
            row["measured"]["step_time_s"], row["predicted"]["step_time_s"],
            row["measured"]["peak_memory_gib"], row["predicted"]["peak_memory_gib"],
        ]
        for row in found["rows"]
    ]  # fmt: skip
    short: dict[str, Any] = _short({**{name: found[name] for name in figures_alone}, "rows": rows})
    return short


def _short(item: Any) -> Any:
    if isinstance(item, Mapping):
        return {name: _short(value) for name, value in item.items()}
    if isinstance(item, list):
        return [_short(value) for value in item]
    return float(f"{item:.4g}") if isinstance(item, float) else item
