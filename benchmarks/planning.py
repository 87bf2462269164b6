"""Time from a model to a lowered plan, by stage, each repeat in a process of its own.

    python benchmarks/planning.py [--layers 32] [--strategy data=2,tensor=2] [--repeats 5]

Printed as JSON: medians over the repeats of capture, search and lowering as the plan
itself reports them, their sum, the whole process with its imports, and the most
memory that was resident.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

_CHILD = """
import json, resource, sys
import meshwright
from meshwright.zoo.reference import load_task
task = load_task("zoo:gpt", {"layers": sys.argv[1]})
plan = meshwright.plan(task, sys.argv[3], sys.argv[2])
print(json.dumps({
    "capture_s": plan.capture_s, "search_s": plan.search_s, "lower_s": plan.lower_s,
    "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def once(layers: int, strategy: str, cluster: str) -> dict[str, float]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(layers), strategy, cluster],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    found["total_s"] = found["capture_s"] + found["search_s"] + found["lower_s"]
    found["process_s"] = time.perf_counter() - started
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--strategy", default="data=2,tensor=2")
    parser.add_argument("--cluster", default="local:4")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    runs = [
        once(arguments.layers, arguments.strategy, arguments.cluster)
        for _ in range(arguments.repeats)
    ]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(json.dumps({**vars(arguments), **medians}, indent=2))


if __name__ == "__main__":
    main()
