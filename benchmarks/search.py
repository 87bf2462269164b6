"""What the search finds: beside named strategies, beside the oracle, how fast, and whether twice
the same.

    python benchmarks/search.py [--json] [--parts worse,speed,oracle,same] [--minutes 30]

`worse`: every model of the equivalence suite on 8, 64 and 512 devices, with a fast network
and a slow one: the best named strategy that fits beside `auto`, in simulated time. `speed`:
planning time and resident memory of very large models, each in a process of its own.
`oracle`: how far plans of small programs are from the best that per-op layouts can give
(`benchmarks/oracle.py`). `same`: the same input and seed in several processes, also with
other hashes.

`--minutes` is for the table of `worse`, in which a model on one count of devices takes half
a minute of one processor: cells that it leaves out are counted as such. `--table FILE` keeps
cells in a file, and takes from it those that are there, so that the table can be made in
pieces. The models are those of `tests/equivalence`, so this runs in a checkout alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEVICES = (8, 64, 512)
NETWORKS = {"fast": 1.0, "slow": 10.0}  # the slow one has a tenth of the bandwidth
KIND = "h100-sxm"
SAME = 1e-9  # relative: times that differ by less are equal
FAR = 1.02  # a named strategy that is so much slower without what ZeRO changes has none with it
STORING = ("gathers", "gradient reduction", "contention")  # what a step waits for by storage

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


@cache
def neighbour(path: Path) -> Any:
    """A module of this checkout that lies in no package."""
    spec = importlib.util.spec_from_file_location(f"meshwright_{path.stem}", path)
    if spec is None or spec.loader is None or not path.exists():
        sys.exit(f"{path} is not there: run this from a checkout of the project.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def models() -> Any:
    return neighbour(HERE.parent / "tests" / "equivalence" / "matrix.py")


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


@dataclass(frozen=True)
class Named:
    """Named strategies of one model on one cluster: the best that fits, and how many do."""

    strategy: str | None
    step_s: float
    fitting: int


def best_named(model: Any, clusters: Mapping[str, Any], every: bool) -> dict[str, Named]:
    """By cluster. These have the same devices, so that each strategy is lowered once.

    every: none is left out. Otherwise those with ZeRO are of which the step is far longer than
    the best already without all that moves or waits for what ZeRO stores, and with the least
    that an optimizer can take.
    """
    from meshwright.cost.table import table_for
    from meshwright.errors import MeshwrightError
    from meshwright.layout.assignment import assign
    from meshwright.lower.lower import lower
    from meshwright.plan.types import BUCKET_BYTES
    from meshwright.search.bound import lower_bound
    from meshwright.search.catalogue import named
    from meshwright.search.closest import candidate_of
    from meshwright.search.constraints import NONE
    from meshwright.simulate.step import simulate

    best = {name: Named(None, float("inf"), 0) for name in clusters}
    least: dict[tuple[str, str], float] = {}  # seconds, by cluster and strategy without ZeRO
    devices = next(iter(clusters.values())).size
    analysis = model.whole(1)
    stepping = {
        name: lower_bound(analysis, table_for(where), devices=devices, microbatches=1).optimizer_s
        for name, where in clusters.items()
    }
    texts = named(analysis, devices, model.global_batch)
    for text in sorted(texts, key=lambda item: ("zero=" in item, item)):
        plain = ",".join(part for part in text.split(",") if not part.startswith("zero=")) or "data"
        wanted = [
            name for name in clusters
            if every or least.get((name, plain), 0.0) <= FAR * best[name].step_s
        ]  # fmt: skip
        if not wanted:
            continue
        try:
            made = candidate_of(text, analysis, devices, 1, NONE)
            assignment = assign(analysis, made.mesh, made.decisions, made.parameters)
            lowered = lower(analysis, assignment, made.mesh.coordinate(0), BUCKET_BYTES)
        except MeshwrightError:
            continue
        for name in wanted:
            cluster = clusters[name]
            said = simulate(lowered, cluster, microbatches=1, optimizer="adamw", memory_curve=False)
            if plain == text:
                stored_s = sum(said.stalls.get(cause, 0.0) for cause in STORING)
                apart_s = said.optimizer_s + stored_s - stepping[name]
                least[name, plain] = said.step_time_s - apart_s
            if said.peak_memory_bytes > cluster.memory_bytes:
                continue
            known = best[name]
            if said.step_time_s < known.step_s:
                known = Named(made.name, said.step_time_s, known.fitting)
            best[name] = Named(known.strategy, known.step_s, known.fitting + 1)
    return best


def cells_of(
    title: str, devices: int, budget_s: float, until: float, slower: float, every: bool
) -> list[dict[str, Any]]:
    """A model on so many devices, with an example for each at least; until: by `time.time`."""
    from meshwright.errors import MeshwrightError
    from meshwright.model import Model
    from meshwright.planner import plan

    cells: list[dict[str, Any]] = [
        {"model": title, "devices": devices, "network": name} for name in NETWORKS
    ]
    if time.time() > until:
        return [{**cell, "left_out": True} for cell in cells]
    make = models().BY_NAME[title].make
    load, (reference, options) = make.func, make.args
    batch = max(devices, int(options.get("global_batch", 1)))
    model = Model(load(reference, {**options, "global_batch": str(batch)}))
    clusters = {name: cluster_of(devices, times) for name, times in NETWORKS.items()}
    names = best_named(model, clusters, every)
    found = []
    for cell in cells:
        network = cell["network"]
        started = time.process_time()
        try:
            made = plan(
                model.task, clusters[network], "auto", model=model, budget_s=slower * budget_s,
                effort_s=budget_s,
            )  # fmt: skip
        except MeshwrightError as error:
            found.append({**cell, "failed": error.message})
            continue
        auto_s, named = made.predicted.step_time_s, names[network]
        found.append({
            **cell, "named": named.strategy, "named_s": named.step_s if named.strategy else None,
            "fitting": named.fitting, "auto": made.strategy, "auto_s": auto_s,
            "ratio": auto_s / named.step_s if named.strategy else None,
            "stopped": made.stopped, "evaluated": made.evaluated, "gap": made.gap,
            "search_cpu_s": time.process_time() - started,
        })  # fmt: skip
    return found


def cells(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The table's cells, few devices first, as far as the minutes reach."""
    known: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in kept(given.table):
        known.setdefault((cell["model"], cell["devices"]), []).append(cell)
    titles = [row.name for row in models().ROWS if given.only in row.name]
    wanted = [(title, count) for count in given.devices for title in titles]
    until = time.time() + 60 * given.minutes
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        asked = {
            where: pool.submit(
                cells_of, *where, given.budget_seconds, until, given.slower, given.every_name
            )
            for where in wanted
            if where not in known
        }
        for where in wanted:
            yield from known[where] if where in known else asked[where].result()


def kept(table: Path | None) -> list[dict[str, Any]]:
    if table is None or not table.exists():
        return []
    found: list[dict[str, Any]] = json.loads(table.read_text(encoding="utf-8"))["table"]
    return found


def keep(table: Path, new: list[dict[str, Any]]) -> None:
    """The file with these cells among those of other models and devices."""
    places = {row.name: k for k, row in enumerate(models().ROWS)}
    there = {(item["model"], item["devices"], item["network"]): item for item in kept(table)}
    for item in new:
        if not item.get("left_out"):
            there[item["model"], item["devices"], item["network"]] = item
    ordered = sorted(
        there.values(), key=lambda item: (places[item["model"]], item["devices"], item["network"])
    )
    text = json.dumps({**summary_of(ordered), "table": ordered}, indent=1)
    table.write_text(text + "\n", encoding="utf-8")


def summary_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    costed = [item for item in cells if "ratio" in item]
    ratios = [item["ratio"] for item in costed if item["ratio"] is not None]
    summary: dict[str, Any] = {
        "cells": len(cells),
        "left_out": sum("left_out" in item for item in cells),
        "failed": sum("failed" in item for item in cells),
        "only_auto_fits": len(costed) - len(ratios),
        "worse": sum(ratio > 1 + SAME for ratio in ratios),
        "equal": sum(abs(ratio - 1) <= SAME for ratio in ratios),
        "better": sum(ratio < 1 - SAME for ratio in ratios),
    }
    if ratios:
        summary["better_share"] = summary["better"] / len(ratios)
    return summary


def never_worse(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"{'model':26s} {'devices':>7s} {'network':7s} {'named ms':>9s} {'auto ms':>9s} "
        f"{'ratio':>6s}  best named | auto")  # fmt: skip
    found = []
    for item in cells(given):
        found.append(item)
        start = f"{item['model'][:26]:26s} {item['devices']:7d} {item['network']:7s}"
        if "ratio" not in item:
            say(f"{start} {item.get('failed', 'left out')}")
        elif item["ratio"] is None:
            say(f"{start} {'none fits':>9s} {item['auto_s'] * 1e3:9.3f} {'':6s}  {item['auto']}")
        else:
            say(
                f"{start} {item['named_s'] * 1e3:9.3f} {item['auto_s'] * 1e3:9.3f} "
                f"{item['ratio']:6.3f}  {item['named']} | {item['auto']}"
            )
        if given.table is not None:
            keep(given.table, found)
    summary = summary_of(found)
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


def oracle(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = neighbour(HERE / "oracle.py").run(
        only=given.only, budget_s=given.budget_seconds, draws=given.draws, say=say
    )
    return found


PARTS: Mapping[str, Callable[[argparse.Namespace, Callable[[str], None]], dict[str, Any]]] = {
    "worse": never_worse, "speed": speed, "oracle": oracle, "same": same,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B")
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--devices", default=",".join(map(str, DEVICES)), metavar="N,M")
    parser.add_argument("--budget-seconds", type=float, default=20, help="of each search")
    parser.add_argument(
        "--slower", type=float, default=1, metavar="TIMES",
        help="the table's searches have so many times the seconds, for no more work: for a "
        "machine that does other things beside",
    )  # fmt: skip
    parser.add_argument("--every-name", action="store_true", help="none is taken to be too slow")
    parser.add_argument("--minutes", type=float, default=30, help="of the table")
    parser.add_argument("--jobs", type=int, default=1, help="processes of the table")
    parser.add_argument("--table", type=Path, metavar="FILE", help="cells to take and to keep")
    parser.add_argument("--draws", type=int, default=12, help="random networks of the oracle")
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
