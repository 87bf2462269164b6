"""Predicts and measures (model, plan) pairs on this machine, and says how far apart they are.

    python -m benchmarks.fidelity [--json] [--repeats 5] [--only TEXT] [--out FILE]

Steps and the calibration's probes are measured in turns by the same processes,
so that both meet the machine as it is in those minutes: load that others put
on it slows both. No figure of a step goes into the profile that predicts it.

`error` compares with what was measured. `at_equal_load` scales each repeat by
how the cores were shared in the passes of probes before and after it: where
that wanders, on a machine with other work, it says how much of the error is
the machine's. On a quiet machine both are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.fidelity.pairs import PAIRS, Pair
from benchmarks.fidelity.statistics import (
    at_equal_load,
    fastest_is_right,
    median_absolute,
    relative_error,
    spread,
    worst,
)
from benchmarks.ranks import rank_correlation

from meshwright import api
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Profile
from meshwright.cost.fit import Fit
from meshwright.cost.measured import Measured
from meshwright.plan.types import Plan
from meshwright.runtime.calibrate import fitted
from meshwright.runtime.launch import launch
from meshwright.runtime.worker import available_cores
from meshwright.task import Task
from meshwright.zoo.reference import load_task

_LEAST_S = 0.6  # of steps in each repeat
_PROBE_S = 10.0  # of probes in each repeat
_LIMIT_S = 1800.0


class Subject:
    """A model captured once, and the plans of it."""

    def __init__(self, pair: Pair) -> None:
        self.task: Task = load_task(pair.model.reference, pair.model.options)
        self.model = api.Model(self.task)

    def plan(self, pair: Pair) -> Plan:
        return api.plan(
            self.task, pair.cluster, pair.strategy, microbatches=pair.microbatches,
            model=self.model,
        )  # fmt: skip

    def predicted(self, plan: Plan, profile: Profile) -> Plan:
        return api.predict_again(self.task, plan, profile=profile, model=self.model)


def measure(
    cluster: str, pairs: Sequence[Pair], repeats: int, say: Any
) -> tuple[list[dict[str, Any]], Fit, list[float]]:
    """Rows of the pairs on one cluster, the calibration that was taken beside them, the load."""
    subjects: dict[str, Subject] = {}
    plans = []
    for pair in pairs:
        say(f"{cluster}: planning {pair.model.label} {pair.strategy}")
        subject = subjects.setdefault(pair.model.label, Subject(pair))
        plans.append(subject.plan(pair))
    size = parse_cluster(cluster).size
    payload = {
        "pairs": [
            {"model": pair.model.reference, "options": pair.model.options,
             "plan": plan.model_dump(mode="json")}
            for pair, plan in zip(pairs, plans, strict=True)
        ],
        "repeats": repeats, "probe_s": _PROBE_S, "least_s": _LEAST_S,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="meshwright-fidelity-") as folder:
        found = launch(
            "benchmarks.fidelity.worker:run", payload, size, Path(folder), timeout_s=_LIMIT_S,
            progress=lambda record: say(f"{cluster}: {record['stage']}"),
        )  # fmt: skip
    fit = fitted(
        [Measured.model_validate(item["measured"]) for item in found],
        size, max(1, available_cores() // size),
    )  # fmt: skip
    shared = [fmean(values) for values in zip(
        *(item["measured"]["contention"] for item in found), strict=True
    )]  # fmt: skip
    rows = []
    for index, (pair, plan) in enumerate(zip(pairs, plans, strict=True)):
        again = subjects[pair.model.label].predicted(plan, fit.profile)
        mine = [item["pairs"][index] for item in found]
        rows.append(_row(pair, again, mine, fit.profile, subjects[pair.model.label], shared))
    return rows, fit, found[0]["loads"]


def _row(
    pair: Pair,
    plan: Plan,
    found: Sequence[dict[str, Any]],
    profile: Profile,
    subject: Subject,
    contention: Sequence[float],
) -> dict[str, Any]:
    # Repeats end with a meeting of all processes: the slowest one's time is everyone's.
    repeats = [max(values) for values in zip(*(item["seconds"] for item in found), strict=True)]
    measured_s = median(repeats)
    memory = max(item["peak_memory_bytes"] for item in found)
    predicted = plan.predicted
    interval = predicted.step_time_interval_s
    expected = api.step_breakdown(subject.task, plan, profile=profile, model=subject.model)
    return {
        "cluster": pair.cluster,
        "model": pair.model.label,
        "kind": pair.model.kind,
        "strategy": pair.strategy,
        "microbatches": pair.microbatches,
        "step_time": {
            "predicted": predicted.step_time_s,
            "interval": list(interval) if interval else None,
            "measured": measured_s,
            "repeats": repeats,
            "spread": spread(repeats),
            "error": relative_error(predicted.step_time_s, measured_s),
            "at_equal_load": relative_error(
                predicted.step_time_s, median(at_equal_load(repeats, contention))
            ),
        },
        "memory": {
            "predicted": predicted.peak_memory_bytes,
            "measured": memory,
            "error": relative_error(predicted.peak_memory_bytes, memory),
        },
        "rows": {
            name: {
                "predicted": expected[name].seconds if name in expected else 0.0,
                "measured": _mean_seconds(found, name),
            }
            for name in sorted({*expected, *(key for item in found for key in item["rows"])})
        },
    }


def _mean_seconds(found: Sequence[dict[str, Any]], name: str) -> float:
    return fmean(float(item["rows"].get(name, (0, 0.0))[1]) for item in found)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures over all rows, and whether the right plan was chosen of each model."""
    if not rows:
        return {}
    found: dict[str, Any] = {}
    for name in ("step_time", "memory"):
        errors = [row[name]["error"] for row in rows]
        found[name] = {
            "count": len(errors),
            "median": median_absolute(errors),
            "worst": worst(errors),
            "rank": rank_correlation(
                [row[name]["predicted"] for row in rows], [row[name]["measured"] for row in rows]
            ),
        }
    even = [row["step_time"]["at_equal_load"] for row in rows]
    found["step_time"]["at_equal_load"] = {
        "median": median_absolute(even),
        "worst": worst(even),
    }
    choices: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        time = row["step_time"]
        choices.setdefault(f"{row['model']} on {row['cluster']}", []).append(
            (time["predicted"], time["measured"], time["spread"])
        )
    found["fastest"] = {
        name: fastest_is_right(plans) for name, plans in choices.items() if len(plans) > 1
    }
    return found


def show(rows: Sequence[dict[str, Any]], found: dict[str, Any], loads: Sequence[float]) -> None:
    print(f"{'':8}{'':10}{'':24}{'step time, ms':>24}{'':8}{'memory':>9}")
    for row in rows:
        time, memory = row["step_time"], row["memory"]
        cut = f" /{row['microbatches']}" if row["microbatches"] > 1 else ""
        print(
            f"{row['cluster']:8}{row['model']:8}{row['strategy'] + cut:24}"
            f"{1e3 * time['predicted']:9.1f}{1e3 * time['measured']:9.1f}"
            f" ±{time['spread'] / 2:4.0%}{time['error']:+7.0%}{memory['error']:+9.1%}"
        )
    for name in ("step_time", "memory"):
        figures = found[name]
        rank = "-" if figures["rank"] is None else f"{figures['rank']:.3f}"
        print(
            f"{name}: {figures['count']} pairs, median error {figures['median']:.1%}, "
            f"worst {figures['worst']:+.1%}, rank correlation {rank}"
        )
    even = found["step_time"]["at_equal_load"]
    print(
        f"with the cores shared alike in every repeat: median error {even['median']:.1%}, "
        f"worst {even['worst']:+.1%}"
    )
    wrong = [name for name, right in found["fastest"].items() if not right]
    print(
        f"the plan predicted fastest is measured fastest, or within noise of it: "
        f"{len(found['fastest']) - len(wrong)} of {len(found['fastest'])} models"
        + (f" (not {', '.join(wrong)})" if wrong else "")
    )
    if loads:
        print(f"load of the machine meanwhile: {min(loads):.1f} to {max(loads):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="pairs whose description holds this")
    parser.add_argument("--out", type=Path, help="write the profiles here, by cluster")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error("--repeats must be at least 1")
    wanted = [
        pair for pair in PAIRS
        if given.only in f"{pair.cluster} {pair.model.label} {pair.strategy}"
    ]  # fmt: skip
    if not wanted:
        parser.error(f"no pair holds {given.only!r}")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    rows: list[dict[str, Any]] = []
    profiles, loads = {}, []
    for cluster in dict.fromkeys(pair.cluster for pair in wanted):
        pairs = [pair for pair in wanted if pair.cluster == cluster]
        more, fit, load = measure(cluster, pairs, given.repeats, say)
        rows += more
        loads += load
        profiles[cluster] = fit.profile
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            name = cluster.replace(":", "-")
            (given.out / f"{name}.json").write_text(fit.profile.model_dump_json(indent=1))
    found = summary(rows)
    if given.json:
        noise = {name: p.fitted.noise for name, p in profiles.items() if p.fitted is not None}
        print(json.dumps({**found, "rows": rows, "noise": noise, "loads": loads}, indent=1))
    else:
        show(rows, found, loads)


if __name__ == "__main__":
    main()
