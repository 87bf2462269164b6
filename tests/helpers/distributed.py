"""Starting a few gloo processes from a test.

A test passes the name of a module-level function of its own file; the function
gets the payload and runs with its process group created.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshwright.runtime.launch import launch
from meshwright.runtime.worker import close_process


def run_processes(
    worker: Callable[[dict[str, Any]], Any],
    processes: int,
    run_dir: Path,
    payload: dict[str, Any] | None = None,
    timeout_s: float = 120,
) -> list[Any]:
    """`worker(payload)` in that many processes, importable from the test's own folder."""
    folder = str(Path(sys.modules[worker.__module__].__file__ or "").parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"{worker.__module__.rpartition('.')[2]}:{worker.__qualname__}"
    return launch(name, payload or {}, processes, run_dir, timeout_s=timeout_s)


def fork_processes(
    worker: Callable[[dict[str, Any]], Any],
    processes: int,
    run_dir: Path,
    payload: dict[str, Any] | None = None,
    timeout_s: float = 120,
) -> list[Any]:
    """As `run_processes`, in copies of this process, which have what it has imported and made.

    They start in no time. Whether a process can begin from nothing is `run_processes`'s to say.
    """
    exchange = run_dir / "exchange"
    exchange.mkdir()
    children = {
        _fork(worker, payload or {}, rank, processes, exchange, timeout_s): rank
        for rank in range(processes)
    }
    failed: list[tuple[int, int]] = []
    try:
        while children and not failed:
            time.sleep(0.01)
            for child in list(children):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    rank = children.pop(child)
                    failed += [(rank, status)] * (status != 0)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    for rank, status in failed:
        log = (exchange / f"rank-{rank}.log").read_text()
        raise AssertionError(f"rank {rank} ended with wait status {status}:\n{log[-8000:]}")
    return [json.loads((exchange / f"result-{rank}.json").read_text()) for rank in range(processes)]


def _fork(
    worker: Callable[[dict[str, Any]], Any], payload: dict[str, Any], rank: int, world: int,
    exchange: Path, timeout_s: float,
) -> int:  # fmt: skip
    """The id of a child that runs `worker`; the child itself never returns."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(timeout_s))  # ends the child, also one whose parent is gone
        log = os.open(exchange / f"rank-{rank}.log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(world), MESHWRIGHT_EXCHANGE=str(exchange),
            GLOO_SOCKET_IFNAME="lo0" if sys.platform == "darwin" else "lo",
        )  # fmt: skip
        result = worker(payload)
        (exchange / f"result-{rank}.json").write_text(json.dumps(result))
        close_process()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Without pytest's teardown, which is the parent's.
        sys.stdout.flush()
        os._exit(code)
