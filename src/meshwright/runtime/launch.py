"""Local worker processes, started with torchrun's own machinery and watched to their end.

Processes meet through files in a private folder and talk over loopback, so
that any number of launches can run side by side. A worker that fails ends the
others; workers end themselves when this process disappears.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from meshwright.errors import RunError, UsageError
from meshwright.runtime.failure import failure
from meshwright.runtime.worker import available_cores

_TERM_GRACE_S = 5
_RENDEZVOUS = "meshwright-local"


def launch(
    worker: str,
    payload: Mapping[str, Any],
    processes: int,
    run_dir: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[Any]:
    """Run `worker(payload)` in `processes` local processes; what each returned, by rank.

    worker: `package.module:function`, importable here and so there.
    payload, results: of JSON's types.
    run_dir: gets one log for each process, `logs/rank-N.log`.
    progress: called, from a thread, with what rank 0 passes to `worker.report`.

    Raises the MeshwrightError that a worker raised, or RunError that says which
    rank ended how, with the end of its log.
    """
    if processes < 1:
        raise UsageError(f"{processes} processes were asked for.", "Ask for at least 1.")
    logs = run_dir.resolve() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    exchange = Path(tempfile.mkdtemp(prefix="meshwright-"))
    try:
        (exchange / "payload.json").write_text(json.dumps(dict(payload)))
        variables = _environment(exchange, processes, timeout_s) | dict(env or {})
        settings = [f"{name}={value}" for name, value in variables.items()]
        # -P: a file of the user that is named like a library must not hide it.
        python = [sys.executable, "-P", "-m", "meshwright.runtime.worker", worker]
        start = elastic_launch(_config(processes, logs, exchange), "env")
        with _quiet(), _signals_restored(), _tail(exchange / "progress.jsonl", progress):
            try:
                start(*settings, *python)
            except ChildFailedError as error:
                raise failure(error.failures, exchange, logs, timeout_s) from None
        results = (exchange / f"result-{rank}.json" for rank in range(processes))
        return [json.loads(result.read_text()) for result in results]
    finally:
        shutil.rmtree(exchange, ignore_errors=True)


def _environment(exchange: Path, processes: int, timeout_s: float | None) -> dict[str, str]:
    threads = max(1, available_cores() // processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUNBUFFERED": "1",
        "MESHWRIGHT_EXCHANGE": str(exchange),
        "MESHWRIGHT_PARENT": str(os.getpid()),
        "MESHWRIGHT_TIMEOUT_S": "" if timeout_s is None else str(timeout_s),
    }


def _config(processes: int, logs: Path, exchange: Path) -> LaunchConfig:
    _register_rendezvous()
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend=_RENDEZVOUS,
        rdzv_endpoint=str(exchange / "agent-store"),
        max_restarts=0,
        monitor_interval=0.05,
        logs_specs=_RankLogs(logs),
        local_addr="127.0.0.1",
        shutdown_timeout=_TERM_GRACE_S,
    )


@functools.cache
def _register_rendezvous() -> None:
    rendezvous_handler_registry.register(_RENDEZVOUS, _LocalRendezvous)


class _LocalRendezvous(RendezvousHandler):
    """The only node there is: no waiting for others and no socket to listen on."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._parameters = parameters

    def get_backend(self) -> str:
        return _RENDEZVOUS

    def next_rendezvous(self) -> RendezvousInfo:
        # public, but missing from the type stubs' exports
        store = dist.FileStore(self._parameters.endpoint, 1)  # type: ignore[attr-defined]
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo("127.0.0.1", 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._parameters.run_id

    def shutdown(self) -> bool:
        return True


class _RankLogs(LogsSpecs):
    """One file a rank. The worker sends standard output the way of standard error."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        return LogsDest(
            stdouts=dict.fromkeys(envs, os.devnull),
            stderrs={rank: f"{self._root_log_dir}/rank-{rank}.log" for rank in envs},
            error_files=dict.fromkeys(envs, ""),
        )

    @property
    def root_log_dir(self) -> str:
        return str(self._root_log_dir)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the launcher's own log lines off standard error: errors say it better."""
    logger, silence = logging.getLogger("torch.distributed.elastic"), logging.NullHandler()
    before = logger.propagate
    logger.addHandler(silence)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(silence)


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    """Give the signal handlers back afterwards, and pass on a signal that ended the run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    received = None
    try:
        yield
    except SignalException as error:
        received = error.sigval
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received is not None:
        signal.raise_signal(received)
        raise RunError(f"The run was ended by {received.name}.", "Start it again.")


@contextlib.contextmanager
def _tail(path: Path, progress: Callable[[dict[str, Any]], None] | None) -> Iterator[None]:
    """Call `progress` with each JSON line that comes into `path`, until the block ends."""
    if progress is None:
        yield
        return
    path.touch()
    done = threading.Event()
    errors: list[Exception] = []

    def follow(callback: Callable[[dict[str, Any]], None]) -> None:
        with path.open() as file:
            rest = ""
            while not errors:
                last = done.wait(0.05)
                *lines, rest = (rest + file.read()).split("\n")
                try:
                    for line in lines:
                        callback(json.loads(line))
                except Exception as error:
                    errors.append(error)
                if last:
                    return

    thread = threading.Thread(target=follow, args=(progress,), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if errors:
        raise errors[0]
