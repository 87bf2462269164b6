"""What running a lowered program adds over eager PyTorch: one process, one device, no parallelism.

Both sides take the same steps of the same model with the same optimizer, in turn,
in one process. Printed as JSON: per model the median seconds of each side over the
repeats and the median of the step-by-step ratios, lowered over eager.

    python benchmarks/overhead.py [--repeats 9] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import meshwright
from meshwright.api import sgd
from meshwright.capture.loss import run_loss
from meshwright.task import Task
from meshwright.zoo.reference import load_task

MODELS: dict[str, dict[str, str]] = {
    "zoo:gpt": {"layers": "4", "global_batch": "4"},
    "zoo:convnet": {"width": "64", "image_size": "32", "global_batch": "16"},
    "zoo:mlp": {"hidden": "1024", "global_batch": "256"},
}
_WARM_UP = 2


def eager_step(task: Task) -> Callable[[], Any]:
    """One training step in plain PyTorch, with nothing of this project around it."""
    assert not isinstance(task.model, torch.nn.Module)
    torch.manual_seed(0)
    model = task.model()
    optimizer = sgd(list(model.parameters()))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = run_loss(task, model, task.batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return step


def seconds(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def measure(reference: str, options: dict[str, str], repeats: int) -> dict[str, float]:
    task = load_task(reference, options)
    plan = meshwright.plan(task, "local:1", "data")
    job = meshwright.parallelize(task, optimizer=sgd, plan=plan, device="cpu")
    eager = eager_step(task)
    lowered, plain = [], []
    for number in range(repeats + _WARM_UP):
        pair = (seconds(lambda: job.step(task.batch)), seconds(eager))
        if number >= _WARM_UP:
            lowered.append(pair[0])
            plain.append(pair[1])
    ratios = [mine / theirs for mine, theirs in zip(lowered, plain, strict=True)]
    return {
        "lowered_s": statistics.median(lowered),
        "eager_s": statistics.median(plain),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {name: measure(name, options, arguments.repeats) for name, options in MODELS.items()}
    print(json.dumps({"repeats": arguments.repeats, "models": found}, indent=2))


if __name__ == "__main__":
    main()
