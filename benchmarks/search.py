"""What the search finds: beside named strategies, beside the oracle, how fast, and whether twice
the same.

    python benchmarks/search.py [--json] [--parts worse,speed,oracle,same] [--minutes 20]

`worse`: every model of the equivalence suite on 8, 64 and 512 devices, with a fast network
and a slow one: the best named strategy that fits beside `auto`, in simulated time. `speed`:
planning time and resident memory of very large models, each in a process of its own.
`oracle`: how far plans of small programs are from the best that per-op layouts can give.
`same`: the same input and seed in several processes, also with other hashes.

`--minutes` is for the table of `worse`; cells that it leaves out are counted as such.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "equivalence"))

DEVICES = (8, 64, 512)
NETWORKS = {"fast": 1.0, "slow": 10.0}  # the slow one has a tenth of the bandwidth
KIND = "h100-sxm"
SAME = 1e-9  # relative: times that differ by less are equal

LARGE: Mapping[str, tuple[str, str, Mapping[str, str], float, float]] = {
    "Llama 8B on 64 H100": (
        "hf:llama-3-8b", "8x8:h100-sxm", {"seq_len": "8192", "global_batch": "128"}, 20, 3e9,
    ),
    "Llama 405B on 16,384 H100": (
        "hf:llama-3-405b", "2048x8:h100-sxm", {"seq_len": "8192", "global_batch": "2048"}, 60, 6e9,
    ),
    "GPT 1T on 3,072 A100": (
        "hf:gpt-1t", "384x8:a100-80g", {"seq_len": "2048", "global_batch": "3072"}, 60, 6e9,
    ),
}  # fmt: skip
"""By title: model, cluster, options, seconds and bytes to stay below."""

REPEATED = (
    ("zoo:gpt", "2x8:h100-sxm", {"layers": "4"}),
    ("zoo:moe", "2x8:h100-sxm", {"size": "small"}),
    ("zoo:dlrm", "2x8:h100-sxm", {"size": "small"}),
)

_CHILD = """
import json, resource, sys, time
started = time.perf_counter()
import meshwright
from meshwright.zoo.reference import load_task
given = json.loads(sys.argv[1])
task = load_task(given["model"], {**given["options"]})
plan = meshwright.plan(task, given["cluster"], "auto", seed=given["seed"],
                       budget_s=given["budget_s"])
print(json.dumps({
    "plan": plan.model_dump(mode="json"),
    "seconds": time.perf_counter() - started,
    "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def cluster_of(devices: int, slower: float) -> Any:
    """Hosts of eight, the links between them so many times slower than the kind's own."""
    from meshwright.cluster.parse import parse_cluster

    cluster = parse_cluster(f"{max(devices // 8, 1)}x{min(devices, 8)}:{KIND}")
    if slower == 1:
        return cluster
    groups = []
    for group in cluster.groups:
        levels = [
            level.model_copy(update={"bytes_per_s": level.bytes_per_s / slower})
            if level.devices > group.devices or group.hosts == 1
            else level
            for level in group.levels
        ]
        groups.append(group.model_copy(update={"levels": tuple(levels)}))
    return cluster.model_copy(update={"groups": tuple(groups), "text": f"{cluster.text} slow"})


def cell(model: Any, cluster: Any, budget_s: float) -> dict[str, Any]:
    """The best named strategy that fits, and auto, on one cluster."""
    from meshwright.errors import NoPlanFits, StrategyError
    from meshwright.planner import plan
    from meshwright.search.catalogue import named

    best, tried = None, 0
    for text in named(model.microbatch(1)[1], cluster.size, model.global_batch):
        try:
            made = plan(model.task, cluster, text, model=model)
        except (StrategyError, NoPlanFits):
            continue
        tried += 1
        if best is None or made.predicted.step_time_s < best.predicted.step_time_s:
            best = made
    started = time.perf_counter()
    found = plan(model.task, cluster, "auto", model=model, budget_s=budget_s)
    auto_s = found.predicted.step_time_s
    named_s = best.predicted.step_time_s if best else None
    return {
        "named": best.strategy if best else None,
        "named_s": named_s,
        "tried": tried,
        "auto": found.strategy,
        "auto_s": auto_s,
        "ratio": auto_s / named_s if named_s else None,
        "stopped": found.stopped,
        "evaluated": found.evaluated,
        "search_s": time.perf_counter() - started,
    }


def cells(
    only: str, devices: tuple[int, ...], budget_s: float, minutes: float
) -> Iterator[dict[str, Any]]:
    """The table's cells, as far as the minutes reach. The batch has an example for each device."""
    from matrix import ROWS

    from meshwright.model import Model

    until = time.perf_counter() + 60 * minutes
    for row in ROWS:
        if only not in row.name:
            continue
        load, (reference, options) = row.make.func, row.make.args
        for count in devices:
            model = None
            for network, slower in NETWORKS.items():
                where = {"model": row.name, "devices": count, "network": network}
                if time.perf_counter() > until:
                    yield {**where, "left_out": True}
                    continue
                if model is None:
                    batch = max(count, int(options.get("global_batch", 1)))
                    model = Model(load(reference, {**options, "global_batch": str(batch)}))
                yield {**where, **cell(model, cluster_of(count, slower), budget_s)}


def never_worse(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"{'model':26s} {'devices':>7s} {'network':7s} {'named ms':>9s} {'auto ms':>9s} "
        f"{'ratio':>6s}  best named | auto")  # fmt: skip
    found = []
    for item in cells(given.only, given.devices, given.budget_seconds, given.minutes):
        found.append(item)
        start = f"{item['model']:26s} {item['devices']:7d} {item['network']:7s}"
        if item.get("left_out"):
            say(f"{start} left out")
        elif item["ratio"] is None:
            say(f"{start} {'none fits':>9s} {item['auto_s'] * 1e3:9.3f} {'':6s}  {item['auto']}")
        else:
            say(
                f"{start} {item['named_s'] * 1e3:9.3f} {item['auto_s'] * 1e3:9.3f} "
                f"{item['ratio']:6.3f}  {item['named']} | {item['auto']}"
            )
    costed = [item for item in found if not item.get("left_out")]
    ratios = [item["ratio"] for item in costed if item["ratio"] is not None]
    summary = {
        "cells": len(found),
        "left_out": len(found) - len(costed),
        "only_auto_fits": len(costed) - len(ratios),
        "worse": sum(ratio > 1 + SAME for ratio in ratios),
        "equal": sum(abs(ratio - 1) <= SAME for ratio in ratios),
        "better": sum(ratio < 1 - SAME for ratio in ratios),
    }
    if ratios:
        summary["better_share"] = summary["better"] / len(ratios)
    say(" ".join(f"{name}={value}" for name, value in summary.items()))
    return {**summary, "table": found}


def child(
    model: str, cluster: str, options: Mapping[str, str], *, seed: int = 0, budget_s: float = 20,
    hashes: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One plan in a process of its own."""
    given = {
        "model": model, "cluster": cluster, "options": dict(options), "seed": seed,
        "budget_s": budget_s,
    }  # fmt: skip
    environment = dict(os.environ)
    if hashes is not None:
        environment["PYTHONHASHSEED"] = hashes
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(given)],
        capture_output=True, text=True, timeout=1200, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout)
    found["process_s"] = time.perf_counter() - started
    return found


def speed(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"{'model':28s} {'model to plan':>13s} {'process':>8s} {'resident':>9s}  plan")
    found = {}
    for title, (model, cluster, options, most_s, most_bytes) in LARGE.items():
        if given.only not in title:
            continue
        item = child(model, cluster, options)
        if "failed" in item:
            say(f"{title:28s} {item['failed']}")
            found[title] = item
            continue
        plan = item.pop("plan")
        kept = {name: plan[name] for name in ("strategy", "stopped", "evaluated", "gap")}
        times = {name: plan[name] for name in ("capture_s", "search_s", "lower_s")}
        within = item["seconds"] <= most_s and item["resident_bytes"] <= most_bytes
        found[title] = {
            **item, **times, **kept, "step_s": plan["predicted"]["step_time_s"],
            "most_s": most_s, "most_bytes": most_bytes, "within": within,
        }  # fmt: skip
        say(
            f"{title:28s} {item['seconds']:11.1f} s {item['process_s']:6.1f} s "
            f"{item['resident_bytes'] / 1e9:6.2f} GB  {plan['strategy']} ({plan['stopped']})"
            + ("" if within else f"  over {most_s:g} s or {most_bytes / 1e9:g} GB")
        )
    return found


def same(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Plans of the same input and seed, without what tells times: one digest each."""
    found = {}
    for model, cluster, options in REPEATED:
        digests = []
        for hashes in (None, None, "1"):
            item = child(model, cluster, options, budget_s=given.budget_seconds, hashes=hashes)
            plan = item.get("plan", item)
            for name in ("capture_s", "search_s", "lower_s"):
                plan.pop(name, None)
            text = json.dumps(plan, sort_keys=True)
            digests.append(hashlib.sha256(text.encode()).hexdigest()[:12])
        found[f"{model} on {cluster}"] = {"plans": digests, "same": len(set(digests)) == 1}
        say(f"{model} on {cluster}: {'the same plan' if len(set(digests)) == 1 else digests}")
    return found


PARTS: Mapping[str, Callable[[argparse.Namespace, Callable[[str], None]], dict[str, Any]]] = {
    "worse": never_worse, "speed": speed, "same": same,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B")
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--devices", default=",".join(map(str, DEVICES)), metavar="N,M")
    parser.add_argument("--budget-seconds", type=float, default=5, help="of each search")
    parser.add_argument("--minutes", type=float, default=20, help="of the table")
    given = parser.parse_args()
    given.devices = tuple(int(count) for count in given.devices.split(","))
    wanted = given.parts.split(",")
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]}; there are {', '.join(PARTS)}")

    def say(line: str) -> None:
        print(line, file=sys.stderr if given.json else sys.stdout, flush=True)

    found = {name: PARTS[name](given, say) for name in wanted}
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
