"""A simulated step in the Trace Event Format, which Perfetto and chrome://tracing open."""

from __future__ import annotations

from typing import Any

from meshwright.simulate.types import Simulation

_QUEUES = ("compute", "communication")


def to_chrome_trace(simulation: Simulation) -> dict[str, Any]:
    """A JSON-ready dict; needs a Simulation made with `memory_curve=True`.

    One thread for each queue, times in microseconds, and a counter track of
    the memory in use.
    """
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "simulated step"}}
    ]
    threads = {queue: number for number, queue in enumerate(_QUEUES)}
    for event in simulation.events:
        threads.setdefault(event.queue, len(threads))
    for queue, thread in threads.items():
        events.append(
            {"ph": "M", "pid": 0, "tid": thread, "name": "thread_name", "args": {"name": queue}}
        )
    for event in simulation.events:
        events.append(
            {
                "ph": "X",
                "pid": 0,
                "tid": threads[event.queue],
                "name": event.name,
                "cat": event.queue,
                "ts": event.start_s * 1e6,
                "dur": (event.end_s - event.start_s) * 1e6,
            }
        )
    # One memory point is recorded for each event, in the same order.
    for event, point in zip(simulation.events, simulation.curve, strict=True):
        events.append(
            {
                "ph": "C",
                "pid": 0,
                "name": "memory",
                "ts": event.start_s * 1e6,
                "args": {"bytes": point.bytes},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}
