"""One step timed op by op, as the generated code runs it.

For a traced step the sections are emitted a second time with every function
timed; other steps run the plain ones and pay nothing. On a CPU an op's time is
the wall clock's around its call. On an accelerator, where a call only queues
work, it is the time between two events that the stream passes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from meshwright.cost.breakdown import BETWEEN, OPTIMIZER, Spent, row_of

Function = Callable[..., Any]


class StepTrace:
    """Adds up the time of ops by row (family, or collective and axis) and by target."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.rows: dict[str, list[float]] = {}  # count, seconds
        self.targets: dict[str, list[float]] = {}
        self.emitted: dict[object, Callable[[list[torch.Tensor]], list[torch.Tensor]]] = {}
        self._queued: list[tuple[str, str, Any, Any]] = []

    def reset(self) -> None:
        """Forget what was added up, but not what was emitted."""
        self.rows.clear()
        self.targets.clear()
        self._queued.clear()

    def wrap(self, target: str, function: Function) -> Function:
        """`function`, timed as an op of `target`; a collective's axis comes with each call."""
        if self.device != "cpu":
            return self._queued_call(target, function)
        add, clock = self.add, time.perf_counter

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            result = function(*args, **kwargs)
            add(row_of(target, kwargs.get("axis")), target, clock() - started)
            return result

        return timed

    def _queued_call(self, target: str, function: Function) -> Function:
        def timed(*args: Any, **kwargs: Any) -> Any:
            before, after = (torch.Event(self.device, enable_timing=True) for _ in range(2))
            before.record()
            result = function(*args, **kwargs)
            after.record()
            self._queued.append((row_of(target, kwargs.get("axis")), target, before, after))
            return result

        return timed

    def add(self, row: str, target: str, seconds: float) -> None:
        for totals, key in ((self.rows, row), (self.targets, target)):
            found = totals.setdefault(key, [0, 0.0])
            found[0] += 1
            found[1] += seconds

    @contextlib.contextmanager
    def optimizer(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Time the optimizer's steps while the block runs."""
        started = [0.0]

        def now() -> float:
            if self.device != "cpu":
                torch.accelerator.synchronize()
            return time.perf_counter()

        def before(*_: object) -> None:
            started[0] = now()

        def after(*_: object) -> None:
            self.add(OPTIMIZER, OPTIMIZER, now() - started[0])

        hooks = (
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self, step_s: float) -> dict[str, Spent]:
        """Count and seconds by row; what is left of the step is `BETWEEN`."""
        if self._queued:
            torch.cuda.synchronize()
        for row, target, before, after in self._queued:
            self.add(row, target, before.elapsed_time(after) / 1e3)
        self._queued.clear()
        found = {row: Spent(int(count), spent) for row, (count, spent) in self.rows.items()}
        rest = step_s - sum(item.seconds for item in found.values())
        return found | {BETWEEN: Spent(1, max(rest, 0.0))}
