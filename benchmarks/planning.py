"""Time from a model to a lowered plan, by stage, each repeat in a process of its own.

    python benchmarks/planning.py [--model zoo:gpt] [-o layers=32] [--strategy data=2,tensor=2]

The default is a Llama of 8 billion parameters over two axes of 16 devices; no weights
are made, and no accelerator is needed.

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
from pathlib import Path

_CHILD = """
import json, resource, sys
import meshwright
from meshwright.zoo.reference import load_task
task = load_task(sys.argv[1], json.loads(sys.argv[4]))
plan = meshwright.plan(task, sys.argv[3], sys.argv[2])
print(json.dumps({
    "capture_s": plan.capture_s, "search_s": plan.search_s, "lower_s": plan.lower_s,
    "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def once(model: str, strategy: str, cluster: str, options: dict[str, str]) -> dict[str, float]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, model, strategy, cluster, json.dumps(options)],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    found["total_s"] = found["capture_s"] + found["search_s"] + found["lower_s"]
    found["process_s"] = time.perf_counter() - started
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=f"hf:{Path(__file__).parent / 'llama-8b.json'}")
    parser.add_argument("-o", "--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--strategy", default="data=8,tensor=2")
    parser.add_argument("--cluster", default="2x8:h100-sxm")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    usual = ["seq_len=2048", "global_batch=8"] if given.model.startswith("hf:") else []
    options = dict(option.split("=", 1) for option in (*usual, *given.option))
    runs = [once(given.model, given.strategy, given.cluster, options) for _ in range(given.repeats)]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(json.dumps({**vars(given), **medians}, indent=2))


if __name__ == "__main__":
    main()
