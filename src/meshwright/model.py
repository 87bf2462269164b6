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
from meshwright.capture.shorten import (
    Shortening,
    few_of,
    find,
    forward_of,
    has_lists,
    rolled_up,
    whole_of,
)
from meshwright.capture.suppose import suppose
from meshwright.capture.trace import Captured, capture
from meshwright.layout.groups import Analysis
from meshwright.lower.probing import Probing, probing
from meshwright.lower.shared import Lowerings
from meshwright.outline import Outline
from meshwright.program.rolled import Irregular, Rolled, Unrolled
from meshwright.runtime.microbatch import batch_size, microbatch_of
from meshwright.task import Task

SHAPES_KEPT = 8  # programs of so many microbatch shapes are kept


@dataclass
class Model:
    """A task with what capture learned of it: the Program of each microbatch shape, once.

    Ranks that are threads of one process share a Model, hence the lock.

    shorten: planning may look at few of many equal blocks; why_whole: why it does not.
    """

    task: Task
    capture_s: float = 0.0
    blueprint: Blueprint = field(init=False)
    prober: Probing = field(init=False)
    lowerings: Lowerings = field(init=False, default_factory=Lowerings)
    captures: int = field(init=False, default=0)
    shorten: bool = field(init=False, default=True)
    why_whole: str = field(init=False, default="")
    _supposing: bool = field(init=False, default=True)
    _shortening: Shortening | None = field(init=False, default=None)
    _outlines: dict[int, Outline] = field(init=False, default_factory=dict)
    _forwards: dict[int, Captured] = field(init=False, default_factory=dict)
    _planning: threading.RLock = field(init=False, default_factory=threading.RLock)
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
        key = self._shapes(batch)
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

    def _shapes(self, batch: Any) -> Hashable:
        leaves = self.spec.flatten(batch)
        return tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves.values())

    def materialize(self, seed: int, keep: Callable[[str, Tensor], Tensor]) -> Mapping[str, Tensor]:
        """Initial parameters and buffers, each handed whole to `keep`, which cuts its part."""
        with self._lock:
            return self.blueprint.materialize(seed, keep)

    def microbatch(self, count: int) -> tuple[Captured, Analysis]:
        """The Program of one of `count` microbatches of the example batch."""
        return self.captured(self._batch(count))

    # For planning

    def outline(self, count: int) -> Outline:
        """What planning looks at when the global batch is cut into `count` microbatches."""
        with self._planning:
            if count not in self._outlines:
                self._outlines[count] = self._outlined(count)
            return self._outlines[count]

    def whole(self, count: int) -> Analysis:
        """The analysed Program of one of `count` microbatches, of all blocks.

        That of a capture, or worked out from one of few blocks and proven equal.
        """
        if self.shorten and self._shapes(self._batch(count)) not in self._captured:
            try:
                return self.outline(count).whole
            except Irregular as error:
                self.look_again(str(error))
                return self.whole(count)
        return self.microbatch(count)[1]

    def look_again(self, why: str) -> None:
        """Few blocks turned out not to stand for all: others may, or all are looked at.

        Blocks that were supposed to be alike are next looked for in the model's forward.
        """
        with self._planning:
            self._outlines.clear()
            self._shortening = None
            if self._supposing:
                self._supposing = False
            else:
                self._plan_whole(why)

    def _plan_whole(self, why: str) -> None:
        """From here on, planning looks at all blocks."""
        self.shorten, self.why_whole = False, why
        self._forwards.clear()

    def _outlined(self, count: int) -> Outline:
        while self.shorten:
            started = time.perf_counter()
            self._shortening = self._shortening or self._look_for_blocks(count)
            try:
                made = self._few(count, self._shortening) if self._shortening else None
            except Irregular as error:
                self.look_again(str(error))
                made = None
            self.capture_s += time.perf_counter() - started
            if made is not None:
                return made
        return Outline(self.microbatch(count)[1])

    def _few(self, count: int, shortening: Shortening) -> Outline:
        batch = self._batch(count)
        rolled = rolled_up(self.task, batch, self.blueprint, shortening)[0]
        few = few_of(rolled)
        return Outline(
            Analysis(few.program, self.prober),
            shortening.stands_for,
            few,
            lambda: self._proven(count, rolled),
            self.prober,
        )

    def _look_for_blocks(self, count: int) -> Shortening | None:
        module = self.blueprint.module
        if not has_lists(module):
            self._plan_whole("it has no list of many modules")
            return None
        found = suppose(module) if self._supposing else None
        if found is None:
            self._supposing = False
            found = find(module, self._forward(count))
        if found is None:
            self._plan_whole("no modules in a row are equal")
        return found

    def _forward(self, count: int) -> Captured:
        if count not in self._forwards:
            self._forwards[count] = forward_of(self.task, self._batch(count), self.blueprint)
        return self._forwards[count]

    def _proven(self, count: int, rolled: Rolled) -> Unrolled:
        started = time.perf_counter()
        with self._planning:
            made = whole_of(rolled, self._forward(count))
            del self._forwards[count]
        self.capture_s += time.perf_counter() - started
        return made

    def _batch(self, count: int) -> Any:
        return microbatch_of(self.task.batch, self.global_batch // count)
