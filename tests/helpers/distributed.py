"""Starting a few gloo processes from a test.

A test passes the name of a module-level function of its own file; the function
gets the payload and runs with its process group created.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshwright.runtime.launch import launch


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
