"""One step timed op by op, as the generated code runs it.

For a traced step the sections are emitted a second time with every function
timed; other steps run the plain ones and pay nothing. On a CPU an op's time is
the wall clock's around its call. On an accelerator, where a call only queues
work, it is the time between two events that the stream passes.

Where processes share cores, the wall clock tells little of an op: what a
process gains by running while others wait it loses by waiting for them in the
next collective. There an op counts the processor's time times the seconds of
the clock that go by for each (the profile's `contention`), as predictions do,
and what is left of the step is shared among the collectives.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from meshwright.cost.breakdown import BETWEEN, OPTIMIZER, Spent, row_of
from meshwright.cost.families import family_of

__all__ = ["Spent", "StepTrace"]

Function = Callable[..., Any]

# Above this many seconds of the clock for each of the processor's, cores are shared.
_SHARED_CORES = 1.1
_TIMED_CALLS = 200


class StepTrace:
    """Adds up the time of ops by row: family and direction, or collective and axis."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.rows: dict[str, list[float]] = {}  # count, seconds, processor's seconds
        self.collectives: set[str] = set()
        self.emitted: dict[object, Callable[[list[torch.Tensor]], list[torch.Tensor]]] = {}
        self._queued: list[tuple[str, Any, Any]] = []

    def reset(self) -> None:
        """Forget what was added up, but not what was emitted."""
        self.rows.clear()
        self._queued.clear()

    def wrap(self, target: str, function: Function) -> Function:
        """`function`, timed as an op of `target`; a collective's axis comes with each call."""
        if self.device != "cpu":
            return self._queued_call(target, function)
        add, clock, own = self.add, time.perf_counter, time.thread_time
        collective = family_of(target) == "collective"

        def timed(*args: Any, **kwargs: Any) -> Any:
            started, began = clock(), own()
            result = function(*args, **kwargs)
            row = row_of(target, kwargs.get("axis"))
            if collective:
                self.collectives.add(row)
            add(row, clock() - started, own() - began)
            return result

        return timed

    def _queued_call(self, target: str, function: Function) -> Function:
        def timed(*args: Any, **kwargs: Any) -> Any:
            before, after = (torch.Event(self.device, enable_timing=True) for _ in range(2))
            before.record()
            result = function(*args, **kwargs)
            after.record()
            self._queued.append((row_of(target, kwargs.get("axis")), before, after))
            return result

        return timed

    def add(self, row: str, seconds: float, own_s: float) -> None:
        found = self.rows.setdefault(row, [0, 0.0, 0.0])
        found[0] += 1
        found[1] += seconds
        found[2] += own_s

    def _timing_s(self) -> float:
        """What timing an op takes of the processor, beside the op."""
        probe = StepTrace()
        call = probe.wrap("aten.add.Tensor", lambda: None)
        call()
        probe.reset()
        began = time.thread_time()
        for _ in range(_TIMED_CALLS):
            call()
        spent = time.thread_time() - began
        return max(spent - sum(own for _, _, own in probe.rows.values()), 0.0) / _TIMED_CALLS

    @contextlib.contextmanager
    def optimizer(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Time the optimizer's steps while the block runs."""
        started = [0.0, 0.0]

        def now() -> float:
            if self.device != "cpu":
                torch.accelerator.synchronize()
            return time.perf_counter()

        def before(*_: object) -> None:
            started[:] = now(), time.thread_time()

        def after(*_: object) -> None:
            self.add(OPTIMIZER, now() - started[0], time.thread_time() - started[1])

        hooks = (
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self, step_s: float, own_s: float, contention: float = 1.0) -> dict[str, Spent]:
        """Count and seconds by row; what is left of the step is `BETWEEN`.

        step_s, own_s: what the step took by the clock and of the processor.
        contention: seconds of the clock for each of the processor's.
        """
        if self._queued:
            torch.accelerator.synchronize()
        for row, before, after in self._queued:
            self.add(row, before.elapsed_time(after) / 1e3, 0.0)
        self._queued.clear()
        if contention > _SHARED_CORES and self.device == "cpu":
            return self._by_processor(step_s, own_s, contention)
        found = {row: Spent(int(count), spent) for row, (count, spent, _) in self.rows.items()}
        rest = step_s - sum(item.seconds for item in found.values())
        return found | {BETWEEN: Spent(1, max(rest, 0.0))}

    def _by_processor(self, step_s: float, own_s: float, contention: float) -> dict[str, Spent]:
        calls = sum(count for count, _, _ in self.rows.values())
        rest_s = own_s - sum(own for _, _, own in self.rows.values()) - calls * self._timing_s()
        found = {BETWEEN: Spent(1, max(rest_s, 0.0) * contention)}
        for row, (count, _, own) in self.rows.items():
            if row not in self.collectives:
                found[row] = Spent(int(count), own * contention)
        left_s = max(step_s - sum(item.seconds for item in found.values()), 0.0)
        waited_s = sum(self.rows[row][1] for row in self.collectives if row in self.rows)
        for row in self.collectives & self.rows.keys():
            count, seconds, _ = self.rows[row]
            found[row] = Spent(int(count), left_s * seconds / waited_s)
        return found
