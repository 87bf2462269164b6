"""Places tasks in time on the queues of one device."""

from __future__ import annotations

from meshwright.simulate.types import Event


class Queues:
    """Each task starts once its queue is free and what it waits for is over.

    Collectives are synchronous so far: every task waits for the one before it,
    whichever queue that ran on. Overlap is a matter of passing `after_s`, the
    end of what a task really needs, in place of `now_s`.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now_s = 0.0  # end of the task that was placed last
        self._free_s: dict[str, float] = {}

    def place(self, name: str, queue: str, seconds: float, after_s: float | None = None) -> float:
        """Append one task; returns when it ends."""
        ready_s = self.now_s if after_s is None else after_s
        start_s = max(ready_s, self._free_s.get(queue, 0.0))
        end_s = start_s + seconds
        self._free_s[queue] = self.now_s = end_s
        self.events.append(Event(name, queue, start_s, end_s))
        return end_s
