"""What runs inside a worker process: its entry, its process group, its reports.

`init_process` and `report` work under `launch` and under a user's `torchrun`.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from meshwright.errors import MeshwrightError
from meshwright.runtime.allocator import keep_freed_memory

TIMED_OUT_EXIT_CODE = 124


@dataclass(frozen=True, slots=True)
class Process:
    """This process among those of the run; `local` counts within its host."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_device() -> str:
    """`cuda` where there is one for each of this host's processes, else `cpu`."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return "cuda" if torch.cuda.is_available() and torch.cuda.device_count() >= here else "cpu"


def init_process(
    device: str = "cpu", timeout_s: float = 600.0, threads: int | None = None
) -> Process:
    """Join the run: set the number of threads and create the default process group.

    Started by hand, without `launch` or `torchrun`, a process is a run of one.
    timeout_s: longest wait for another process in a collective.
    threads: of PyTorch; None divides the cores among the host's processes.
    """
    variables = os.environ
    process = Process(
        rank=int(variables.get("RANK", "0")),
        world=int(variables.get("WORLD_SIZE", "1")),
        local_rank=int(variables.get("LOCAL_RANK", "0")),
        local_world=int(variables.get("LOCAL_WORLD_SIZE", "1")),
    )
    torch.set_num_threads(threads or max(1, available_cores() // process.local_world))
    if device == "cuda":
        torch.cuda.set_device(process.local_rank)
    else:
        keep_freed_memory()
    exchange = _exchange()
    if exchange is not None:
        method = f"file://{exchange / 'process-store'}"
    elif "MASTER_ADDR" in variables:
        method = "env://"
    else:
        return process
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            init_method=method,
            rank=process.rank,
            world_size=process.world,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
    return process


def close_process() -> None:
    """Leave the run once every process has come this far."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def report(record: dict[str, Any]) -> None:
    """Pass `record` (of JSON's types) to the `progress` callback of `launch`; rank 0 alone does."""
    exchange = _exchange()
    if exchange is None or os.environ.get("RANK") != "0":
        return
    path = exchange / "progress.jsonl"
    if path.exists():  # someone is listening
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _exchange() -> Path | None:
    folder = os.environ.get("MESHWRIGHT_EXCHANGE")
    return Path(folder) if folder else None


def _write(path: Path, content: object) -> None:
    """Write all or nothing: a reader never sees half a file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def _watch(parent: int, timeout_s: float | None) -> None:
    """End this process when its parent is gone, or when it has run too long."""
    started = time.monotonic()
    while True:
        time.sleep(0.5)
        if os.getppid() != parent:
            os._exit(1)
        if timeout_s is not None and time.monotonic() - started > timeout_s:
            os._exit(TIMED_OUT_EXIT_CODE)


def _main(worker: str) -> int:
    os.dup2(2, 1)  # one log, in the order in which things were written
    exchange, rank = _exchange(), os.environ["RANK"]
    assert exchange is not None
    limit = os.environ["MESHWRIGHT_TIMEOUT_S"]
    watch = (int(os.environ["MESHWRIGHT_PARENT"]), float(limit) if limit else None)
    threading.Thread(target=_watch, args=watch, daemon=True).start()
    try:
        module, _, function = worker.partition(":")
        call = getattr(importlib.import_module(module), function)
        result = call(json.loads((exchange / "payload.json").read_text()))
        _write(exchange / f"result-{rank}.json", result)
        close_process()
    except BaseException as error:
        _write(exchange / f"error-{rank}.json", _record(error))
        traceback.print_exc()
        return 1
    return 0


def _record(error: BaseException) -> dict[str, Any]:
    known = isinstance(error, MeshwrightError)
    return {
        "time": time.time(),
        "type": type(error).__name__,
        "meshwright": known,
        "kind": error.kind if isinstance(error, MeshwrightError) else "",
        "message": error.message if isinstance(error, MeshwrightError) else str(error),
        "remedy": error.remedy if isinstance(error, MeshwrightError) else "",
    }


if __name__ == "__main__":
    code = _main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's teardown, in which threads of process groups may abort.
    os._exit(code)
