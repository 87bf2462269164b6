"""Time of simulating one plan, once its blocks are costed.

    python benchmarks/simulate.py [--json] [--repeats 9]

Two plans of a GPT in tensor and pipeline parallelism on H100s: 32 layers, 8 stages and 64
microbatches on 64 devices; 126 layers, 16 stages and 128 microbatches on 2,048. All layers
are captured, none stands for others, and no accelerator is needed.

`simulate_s` is the median over the repeats; `first_s` is the first simulation, which costs
the blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from meshwright.api import Model
from meshwright.cluster.parse import parse_cluster
from meshwright.layout.assignment import assign
from meshwright.lower.lower import lower
from meshwright.plan.types import Pipeline
from meshwright.search.named import candidate
from meshwright.search.strategy import mesh_for, parse_strategy
from meshwright.simulate.step import simulate
from meshwright.zoo.gpt import gpt_task

CASES = {
    "32 layers, 64 devices": (32, "8x8:h100-sxm", 8, 1, 64, 50e-3),
    "126 layers, 2,048 devices": (126, "256x8:h100-sxm", 16, 1, 128, 300e-3),
    "126 layers, 2,048 devices, interleaved": (126, "256x8:h100-sxm", 16, 4, 128, 300e-3),
}


def measure(
    layers: int, cluster_text: str, stages: int, virtual: int, microbatches: int, repeats: int
) -> dict[str, float]:
    cluster = parse_cluster(cluster_text)
    data = cluster.size // (stages * 8)
    model = Model(gpt_task(layers=layers, width=512, heads=8, seq_len=64, global_batch=data))
    text = f"stage={stages},data={data},tensor=8"
    analysis = model.microbatch(1)[1]
    mesh = mesh_for(parse_strategy(text), cluster.size)
    chosen = candidate(analysis, mesh, zero=0, microbatches=1)
    assignment = assign(analysis, mesh, chosen.decisions, chosen.parameters, True)
    lowered = lower(analysis, assignment, mesh.coordinate(0))
    schedule = "interleaved" if virtual > 1 else "1f1b"
    pipeline = Pipeline.model_validate({"stages": stages, "virtual": virtual, "schedule": schedule})
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        simulate(
            lowered, cluster, microbatches=microbatches, optimizer="adamw", pipeline=pipeline,
            memory_curve=False,
        )  # fmt: skip
        seconds.append(time.perf_counter() - started)
    return {"first_s": seconds[0], "simulate_s": statistics.median(seconds[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    found = {}
    for name, (layers, cluster, stages, virtual, microbatches, goal_s) in CASES.items():
        times = measure(layers, cluster, stages, virtual, microbatches, given.repeats)
        found[name] = {**times, "goal_s": goal_s}
        if not given.json:
            print(
                f"{name}: {times['simulate_s'] * 1e3:.0f} ms (goal {goal_s * 1e3:.0f}); "
                f"first {times['first_s'] * 1e3:.0f} ms"
            )
    if given.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
