"""A simulated step in the Trace Event Format, which Perfetto and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshwright.simulate.types import Simulation


def to_chrome_trace(simulation: Simulation) -> dict[str, Any]:
    """A JSON-ready dict; needs a Simulation made with `memory_curve=True`.

    One process for each stage, one thread for each of its queues, times in
    microseconds, and for each stage a counter track of the memory in use.
    """
    count = max(1, len(simulation.stages))
    events: list[dict[str, Any]] = []
    threads: dict[tuple[int, str], int] = {}
    for stage in range(count):
        name = f"stage {stage}" if count > 1 else "simulated step"
        events.append({"ph": "M", "pid": stage, "name": "process_name", "args": {"name": name}})
        threads[stage, "compute"] = 0
    for event in simulation.events:
        used = sum(stage == event.stage for stage, _ in threads)
        threads.setdefault((event.stage, event.queue), used)
    for (stage, queue), thread in threads.items():
        events.append(
            {"ph": "M", "pid": stage, "tid": thread, "name": "thread_name", "args": {"name": queue}}
        )
    for event in simulation.events:
        events.append(
            {
                "ph": "X",
                "pid": event.stage,
                "tid": threads[event.stage, event.queue],
                "name": event.name,
                "cat": event.queue,
                "ts": event.start_s * 1e6,
                "dur": (event.end_s - event.start_s) * 1e6,
            }
        )
    for stage, start_s, nbytes in _memory(simulation):
        events.append(
            {
                "ph": "C",
                "pid": stage,
                "name": "memory",
                "ts": start_s * 1e6,
                "args": {"bytes": nbytes},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _memory(simulation: Simulation) -> Iterator[tuple[int, float, int]]:
    """Stage, time and bytes of each point of the memory curves."""
    # Of one device's step, op by op, one point is recorded for each event, in the same order.
    if simulation.curve:
        for event, point in zip(simulation.events, simulation.curve, strict=True):
            yield 0, event.start_s, point.bytes
    for number, stage in enumerate(simulation.stages):
        for moment in stage.curve:
            yield number, moment.start_s, moment.bytes
