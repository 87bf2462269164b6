"""The metrics log: one JSON object a line, flushed as it is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import IO

from meshwright.runtime.job import Metrics


class MetricsLog:
    """Writes `metrics.jsonl` on one rank; what is written stays when the run ends badly."""

    def __init__(self, path: Path, enabled: bool, append: bool = False) -> None:
        self._path = path
        self._enabled = enabled
        self._append = append
        self._file: IO[str] | None = None

    def __enter__(self) -> MetricsLog:
        if self._enabled:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a" if self._append else "w", encoding="utf-8")
        return self

    def write(self, metrics: Metrics) -> None:
        if self._file is not None:
            self._file.write(json.dumps(dataclasses.asdict(metrics)) + "\n")
            self._file.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
