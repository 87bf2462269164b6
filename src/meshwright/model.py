"""A task with what capture learned of it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
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
from meshwright.program.between import Apart, between, difference
from meshwright.program.rolled import Irregular, Rolled
from meshwright.program.types import Program
from meshwright.program.unroll import Unrolled
from meshwright.runtime.microbatch import batch_size, microbatch_of
from meshwright.task import Task

_LEAST_EXAMPLES = 2  # of a microbatch; one alone often makes another step
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
    _deriving: bool = field(init=False, default=True)
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
        if self.shorten and not self._has(count):
            try:
                return self.outline(count).whole
            except Irregular as error:
                self.look_again(str(error))
                return self.whole(count)
        return self.microbatch(count)[1]

    def planned(self, count: int) -> tuple[Outline, Analysis]:
        """The outline of `count` microbatches, and that of all blocks which it stands for.

        Raises Irregular where it turns out not to.
        """
        outline = self.outline(count)
        if outline.derived and not outline.shortened:
            captured = self.microbatch(count)[1]
            self._compare(outline.few.program, captured.program)
            return outline, captured
        return outline, outline.whole

    def look_again(self, why: str) -> None:
        """What planning looked at turned out not to be the model: it looks closer from here on.

        Programs of other counts are captured, not worked out. If they were already, blocks that
        were supposed to be alike are looked for in the model's forward; and in the end all
        blocks are looked at.
        """
        with self._planning:
            derived = any(outline.derived for outline in self._outlines.values())
            self._outlines.clear()
            self._shortening = None
            if derived:
                self._deriving = False
            elif self._supposing:
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
        derived = None if self._has(count) else self._derived(count)
        return derived or Outline(self.microbatch(count)[1])

    def _has(self, count: int) -> bool:
        return self._shapes(self._batch(count)) in self._captured

    def _few(self, count: int, shortening: Shortening) -> Outline:
        derived = self._derived(count)
        if derived is not None:
            return derived
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

    def _derived(self, count: int) -> Outline | None:
        """The outline of `count` microbatches, from those of two others that were captured."""
        wanted = self.global_batch // count
        if not self._deriving or wanted < _LEAST_EXAMPLES:
            return None
        known = {self.global_batch // k: item for k, item in self._outlines.items()}
        sizes = [
            size
            for size, item in known.items()
            if size >= _LEAST_EXAMPLES and not item.derived and size != wanted
        ]
        if len(sizes) < 2:
            return None
        one, other = (known[size] for size in sizes[:2])
        try:
            program = between(one.few.program, other.few.program, (sizes[0], sizes[1]), wanted)
        except Apart:
            return None
        unrolled = one.unrolled and replace(one.unrolled, program=program)
        return Outline(
            Analysis(program, self.prober),
            one.stands_for,
            unrolled,
            lambda: self._captured_after_all(count, program),
            self.prober,
            derived=True,
        )

    def _captured_after_all(self, count: int, derived: Program) -> Unrolled:
        """All blocks of `count` microbatches, which were planned with a derived Program.

        Raises Irregular where the captured one is another.
        """
        assert self._shortening is not None
        started = time.perf_counter()
        rolled = rolled_up(self.task, self._batch(count), self.blueprint, self._shortening)[0]
        self.capture_s += time.perf_counter() - started
        self._compare(derived, few_of(rolled).program)
        return self._proven(count, rolled)

    def _compare(self, derived: Program, captured: Program) -> None:
        differs = difference(derived, captured)
        if differs:
            raise Irregular(f"another number of examples makes another step: {differs}")

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
