"""What merging collectives, and reducing gradients beside the backward, give on this machine.

Real gloo processes step three jobs of one plan in turn: a collective for each tensor, buckets,
and buckets that are reduced beside the backward. Printed as JSON: per model, strategy and
number of processes the median seconds of a step (of the slowest process in each), the median
of the step-by-step ratios to buckets, and how many collectives a step has.

    python benchmarks/overlap.py [--repeats 7] [--devices 2 4] [--bucket-mib 25] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import meshwright
from meshwright.api import Model, sgd
from meshwright.plan.types import Plan
from meshwright.runtime.launch import launch
from meshwright.runtime.worker import init_process
from meshwright.zoo.reference import load_task

MODELS: dict[str, dict[str, str]] = {
    "zoo:gpt": {"layers": "6", "global_batch": "8", "seq_len": "64"},
    "zoo:gpt narrow": {"layers": "16", "width": "64", "global_batch": "16", "seq_len": "32"},
}
STRATEGIES = ("data", "zero=1", "zero=3")
_WARM_UP = 2
_VARIANTS = ("alone", "merged", "overlapped")


def steps(payload: dict[str, Any]) -> dict[str, list[float]]:
    """In each process: seconds of each step, by variant."""
    init_process(threads=payload["threads"])
    task = load_task(payload["model"], payload["options"])
    model = Model(task)
    jobs = {
        name: meshwright.parallelize(
            task, optimizer=sgd, plan=Plan.model_validate(text), model=model, device="cpu",
            overlap=name == "overlapped",
        )
        for name, text in zip(_VARIANTS, payload["plans"], strict=True)
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(payload["repeats"] + _WARM_UP):
        for name, job in jobs.items():
            dist.barrier()
            started = time.perf_counter()
            job.step(task.batch)
            if number >= _WARM_UP:
                found[name].append(time.perf_counter() - started)
    return found


def measure(
    name: str, strategy: str, devices: int, repeats: int, bucket_bytes: int, threads: int
) -> dict[str, Any]:
    reference, options = name.split()[0], MODELS[name]
    task = load_task(reference, options)
    model = Model(task)
    sizes = (0, bucket_bytes, bucket_bytes)
    plans = [
        meshwright.plan(task, f"local:{devices}", strategy, model=model, bucket_bytes=size)
        for size in sizes
    ]
    payload = {
        "model": reference, "options": options, "repeats": repeats, "threads": threads,
        "plans": [plan.model_dump(mode="json") for plan in plans],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="meshwright-overlap-") as folder:
        ranks = launch("overlap:steps", payload, devices, Path(folder), timeout_s=600)
    slowest = {
        variant: [max(each) for each in zip(*(rank[variant] for rank in ranks), strict=True)]
        for variant in _VARIANTS
    }
    ratios = {
        variant: statistics.median(
            mine / merged for mine, merged in zip(slowest[variant], slowest["merged"], strict=True)
        )
        for variant in _VARIANTS
    }
    return {
        "median_s": {variant: statistics.median(times) for variant, times in slowest.items()},
        "to_merged": ratios,
        "collectives": [sum(c.count for c in plan.predicted.collectives) for plan in plans[:2]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--bucket-mib", type=float, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(Path(__file__).parent))
    found = {
        f"{name}, {strategy} on {devices}": measure(
            name, strategy, devices, arguments.repeats, int(arguments.bucket_mib * 2**20),
            arguments.threads,
        )
        for name in MODELS
        for strategy in arguments.strategies
        for devices in arguments.devices
    }  # fmt: skip
    print(json.dumps({"repeats": arguments.repeats, "found": found}, indent=2))


if __name__ == "__main__":
    main()
