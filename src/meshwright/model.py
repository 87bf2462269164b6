"""A task with what capture learned of it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from meshwright.capture.batch import BatchSpec, batch_spec, describe_leaves
from meshwright.capture.blueprint import Blueprint, blueprint
from meshwright.capture.trace import Captured, capture
from meshwright.layout.groups import Analysis
from meshwright.lower.probing import Probing, probing
from meshwright.runtime.microbatch import batch_size, microbatch_of
from meshwright.task import Task

SHAPES_KEPT = 8  # programs of so many microbatch shapes are kept


@dataclass
class Model:
    """A task with what capture learned of it: the Program of each microbatch shape, once.

    Ranks that are threads of one process share a Model, hence the lock.
    """

    task: Task
    capture_s: float = 0.0
    blueprint: Blueprint = field(init=False)
    prober: Probing = field(init=False)
    captures: int = field(init=False, default=0)
    _captured: dict[Hashable, tuple[Captured, Analysis]] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        started = time.perf_counter()
        self.blueprint = blueprint(self.task.model)
        self.prober = probing()
        self.capture_s += time.perf_counter() - started

    @property
    def global_batch(self) -> int:
        return batch_size(self.spec.flatten(self.task.batch))

    @property
    def spec(self) -> BatchSpec:
        return batch_spec(self.task.batch)

    def captured(self, batch: Any) -> tuple[Captured, Analysis]:
        """The Program for batches shaped like `batch`; the eight shapes used last are kept.

        Warns from the ninth capture on: a shape that was dropped is captured again.
        """
        leaves = self.spec.flatten(batch)
        key = tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves.values())
        with self._lock:
            found = self._captured.pop(key, None)
            if found is None:
                made = capture(self.task, batch=batch, blueprint=self.blueprint)
                self.capture_s += made.seconds
                self.captures += 1
                found = (made, Analysis(made.program, self.prober))
                if self.captures > SHAPES_KEPT:
                    warnings.warn(
                        f"This is capture {self.captures}, for {describe_leaves(batch)}; it took "
                        f"{made.seconds:.1f} s, and the programs of {SHAPES_KEPT} shapes are kept. "
                        "Pad batches to a few shapes, or bucket them by length.",
                        stacklevel=2,
                    )
            self._captured[key] = found
            while len(self._captured) > SHAPES_KEPT:
                self._captured.pop(next(iter(self._captured)))
            return found

    def materialize(self, seed: int, keep: Callable[[str, Tensor], Tensor]) -> Mapping[str, Tensor]:
        """Initial parameters and buffers, each handed whole to `keep`, which cuts its part."""
        with self._lock:
            return self.blueprint.materialize(seed, keep)

    def microbatch(self, count: int) -> tuple[Captured, Analysis]:
        """The Program of one of `count` microbatches of the example batch."""
        return self.captured(microbatch_of(self.task.batch, self.global_batch // count))
