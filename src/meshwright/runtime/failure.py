"""Which worker process failed first and how, told as one error."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from meshwright.errors import MeshwrightError, RunError
from meshwright.runtime.worker import TIMED_OUT_EXIT_CODE

LOG_LINES = 15


def failure(
    failures: Mapping[int, ProcessFailure], exchange: Path, logs: Path, timeout_s: float | None
) -> MeshwrightError:
    """The error of the rank that failed first; the others fail in its wake.

    A crash leaves no record and comes before any exception, since peers of a
    crashed process raise exceptions; SIGTERM is how the launcher ends the rest.
    """
    records = {}
    for rank in failures:
        with contextlib.suppress(OSError, ValueError):
            records[rank] = json.loads((exchange / f"error-{rank}.json").read_text())

    def order(rank: int) -> tuple[int, float]:
        if rank in records:
            return 1, float(records[rank]["time"])
        return (2 if failures[rank].exitcode == -signal.SIGTERM else 0), 0.0

    rank = min(failures, key=order)
    host = socket.gethostname()
    log = logs / f"rank-{rank}.log"
    record, code = records.get(rank), failures[rank].exitcode
    if record is not None and record["meshwright"]:
        return _revived(record)
    if record is not None:
        how = f"raised {record['type']}: {record['message']}"
    elif code == TIMED_OUT_EXIT_CODE and timeout_s is not None:
        how = f"had not finished after {timeout_s:g} s"
    elif code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    else:
        how = f"exited with code {code}"
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    tail = "".join(f"\n    {line}" for line in lines)
    return RunError(
        f"Rank {rank} on host {host} {how}." + (f" Its log ends with:{tail}" if tail else ""),
        f"Read the whole log in {log}.",
    )


def _revived(record: Mapping[str, Any]) -> MeshwrightError:
    """The worker's own error, of its own class where that is one of the tree."""

    def known(cls: type[MeshwrightError]) -> Iterator[type[MeshwrightError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from known(child)

    classes = {cls.__name__: cls for cls in known(MeshwrightError)}
    cls = classes.get(record["type"], RunError)
    error = cls.__new__(cls)
    MeshwrightError.__init__(error, record["message"], record["remedy"])
    error.kind = record["kind"]
    return error
