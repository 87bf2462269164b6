"""What planning takes: seconds by part and memory, each repeat in a process of its own.

    python benchmarks/planning.py [--case llama-8b] [--repeats 5] [--strategy auto]
    python benchmarks/planning.py --model zoo:gpt -o layers=32 --cluster 2x8:h100-sxm

A case is a model with a cluster; `--model` gives another. No weights are made, and no
accelerator is needed. The budget counts from the start, as that of `meshwright plan` does.

Printed as JSON, for each case medians over the repeats: `import_s` until the model can be
asked for, `model_s` to load and build it without weights, `capture_s`, `search_s` and
`lower_s` as the plan itself reports them, `process_s` from start to end of the process, and
the most memory that was resident. Seconds of the processor stand beside those of the clock,
for a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).parent.parent / "src" / "meshwright" / "zoo" / "configs"
LLAMA = f"hf:{Path(__file__).parent / 'llama-8b.json'}"

# model, cluster, options
CASES: dict[str, tuple[str, str, dict[str, str]]] = {
    "llama-8b": (LLAMA, "8x8:h100-sxm", {"seq_len": "4096", "global_batch": "128"}),
    "llama-3-405b": (
        f"hf:{CONFIGS / 'llama-3-405b.json'}", "2048x8:h100-sxm",
        {"seq_len": "4096", "global_batch": "2048"},
    ),
    "gpt-1t": (
        f"hf:{CONFIGS / 'gpt-1t.json'}", "384x8:a100-80g",
        {"seq_len": "2048", "global_batch": "3072"},
    ),
}  # fmt: skip

_CHILD = """
import json, resource, sys, time
started, used = time.perf_counter(), time.process_time()
from meshwright.collecting import leave_uncollected, rare_collections
with rare_collections():
    from meshwright.api import Model, plan
    from meshwright.zoo.reference import load_task
    imported = time.perf_counter()
    task = load_task(sys.argv[1], json.loads(sys.argv[4]))
    model = Model(task)
    built = time.perf_counter()
    made = plan(
        task, sys.argv[3], sys.argv[2], model=model, budget_s=float(sys.argv[5]), begun=started
    )
print(json.dumps({
    "import_s": imported - started, "model_s": built - imported, "capture_s": made.capture_s,
    "search_s": made.search_s, "lower_s": made.lower_s, "processor_s": time.process_time() - used,
    "evaluated": made.evaluated, "step_time_s": made.predicted.step_time_s,
    "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "strategy": made.strategy, "stopped": made.stopped,
}))
leave_uncollected()
"""


def once(
    model: str, strategy: str, cluster: str, options: dict[str, str], budget_s: float
) -> dict[str, float | str]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, model, strategy, cluster, json.dumps(options),
         str(budget_s)],
        capture_output=True, text=True, check=True, timeout=1200,
    )  # fmt: skip
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    found["process_s"] = time.perf_counter() - started
    return found


def measured(
    model: str, strategy: str, cluster: str, options: dict[str, str], budget_s: float, repeats: int
) -> dict[str, object]:
    runs = [once(model, strategy, cluster, options, budget_s) for _ in range(repeats)]
    numbers = {
        key: statistics.median(float(run[key]) for run in runs)
        for key, value in runs[0].items()
        if not isinstance(value, str)
    }
    plans = sorted({str(run["strategy"]) for run in runs})
    return {
        "model": model, "cluster": cluster, "options": options, "asked": strategy,
        "repeats": repeats, **numbers, "strategies": plans,
        "stopped": sorted({str(run["stopped"]) for run in runs}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=[*CASES, "all"], default="llama-8b")
    parser.add_argument("--model", help="another model, with --cluster and -o")
    parser.add_argument("-o", "--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--cluster", default="2x8:h100-sxm", help="for --model")
    parser.add_argument("--budget-seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    options = dict(option.split("=", 1) for option in given.option)
    if given.model:
        cases = {given.model: (given.model, given.cluster, options)}
    else:
        names = list(CASES) if given.case == "all" else [given.case]
        cases = {name: CASES[name] for name in names}
    found = {
        name: measured(
            model, given.strategy, cluster, {**usual, **options}, given.budget_seconds,
            given.repeats,
        )
        for name, (model, cluster, usual) in cases.items()
    }  # fmt: skip
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
