"""Places the turns of all stages in time: compute, one queue per communicator, transfers.

A turn starts once its stage is free and what it takes has arrived. Inside a turn
tasks follow one another, but for those that the executor runs beside compute:
gathers of parameters, asked for where they stand if they have a key, else when the
one before has arrived; and reductions of gradients, which only the end of the step
waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from meshwright.simulate.block import Task
from meshwright.simulate.schedules import Turn
from meshwright.simulate.types import Event


class Timed(NamedTuple):
    """A turn's tasks for the engine. `beside`: with some that run beside compute.

    seconds: of all in line, `waiting_s` included: what the host takes longer to issue
    them than the device to run them. host_s: all that the host takes.
    """

    tasks: tuple[Task, ...]
    seconds: float
    compute_s: float
    beside: bool
    waiting_s: float
    host_s: float


@dataclass(slots=True)
class Clock:
    """One stage. `now_s`: when it is free. stalls: seconds by what they were spent on."""

    now_s: float = 0.0
    compute_s: float = 0.0
    communication_s: float = 0.0
    queues: dict[str, float] = field(default_factory=dict)
    asked_s: float = 0.0  # since when the next gather may run
    fetched: list[float] = field(default_factory=list)  # ends of gathers asked for ahead
    keyed: dict[str, list[float]] = field(default_factory=dict)  # the same of those with a key
    stalls: dict[str, float] = field(default_factory=dict)
    turns: list[tuple[Turn, float, float]] = field(default_factory=list)
    running_s: float = 0.0  # of collectives beside compute, what compute has not yet run beside
    links: dict[int, float] = field(default_factory=dict)

    def stall(self, cause: str, seconds: float) -> None:
        if seconds > 0:
            self.stalls[cause] = self.stalls.get(cause, 0.0) + seconds


TimedOf = Callable[[int, Turn], Timed]
"""The tasks of a stage's turn."""


@dataclass
class Engine:
    """transfer(piece, forward): seconds from a piece to the next one or the one before.

    pieces lie on stages in turn. blocking: a stage that sends does nothing else. slowdown:
    by how much a second of compute takes longer beside a collective, which takes some of the
    device's units and memory bandwidth.
    """

    orders: Sequence[Sequence[Turn]]
    pieces: int
    timed: TimedOf
    transfer: Callable[[int, bool], float]
    blocking: bool
    detail: bool
    slowdown: float = 0.0
    clocks: list[Clock] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def run(self) -> None:
        """Go on until every stage is through; a turn that waits lets the others go first."""
        stages = len(self.orders)
        if not self.clocks:
            self.clocks = [Clock() for _ in range(stages)]
        done: dict[tuple[str, int, int], tuple[float, float]] = {}
        position = [0] * stages
        waiting = list(range(stages))
        while waiting:
            moved = False
            for stage in waiting:
                order, at = self.orders[stage], position[stage]
                while at < len(order):
                    turn = order[at]
                    needs = self._needs(stage, turn)
                    if needs is not None and needs not in done:
                        break
                    self._take(stage, at, turn, done.get(needs) if needs else None, done)
                    at += 1
                moved |= at > position[stage]
                position[stage] = at
            waiting = [stage for stage in waiting if position[stage] < len(self.orders[stage])]
            assert moved or not waiting, "the schedule waits for itself"

    def _piece(self, stage: int, turn: Turn) -> int:
        return turn.chunk * len(self.orders) + stage

    def _needs(self, stage: int, turn: Turn) -> tuple[str, int, int] | None:
        """The turn of another piece whose result this one takes."""
        piece = self._piece(stage, turn)
        if turn.phase == "F" and piece:
            return "F", piece - 1, turn.microbatch
        if turn.phase == "B" and piece + 1 < self.pieces:
            return "B", piece + 1, turn.microbatch
        return None

    def _take(
        self,
        stage: int,
        at: int,
        turn: Turn,
        arrived: tuple[float, float] | None,
        done: dict[tuple[str, int, int], tuple[float, float]],
    ) -> None:
        clock, piece = self.clocks[stage], self._piece(stage, turn)
        begin = clock.now_s
        if arrived is not None and arrived[1] > begin:
            made_s, there_s = arrived
            clock.stall("transfer", there_s - max(begin, made_s))
            clock.stall("bubble", max(begin, made_s) - begin)
            begin = there_s
        work = self.timed(stage, turn)
        if work.beside:
            end = self._beside(stage, at, begin, work)
        else:
            end = begin + work.seconds
            clock.stall("collectives", work.seconds - work.compute_s - work.waiting_s)
            clock.stall("launches", work.waiting_s)
            clock.communication_s += work.seconds - work.compute_s - work.waiting_s
        clock.compute_s += work.compute_s
        if self.detail:
            self.events.append(Event(_label(turn), "compute", begin, end, stage))
        clock.turns.append((turn, begin, end))
        there = end
        if turn.phase != "W":
            there, end = self._send(stage, piece, turn, end)
        clock.now_s = end
        done[turn.phase, piece, turn.microbatch] = (clock.turns[-1][2], there)

    def _send(self, stage: int, piece: int, turn: Turn, end: float) -> tuple[float, float]:
        """When what the turn made is where it is needed, and when the stage goes on."""
        forward = turn.phase == "F"
        other = piece + 1 if forward else piece - 1
        stages = len(self.orders)
        if stages == 1 or not 0 <= other < self.pieces:
            return end, end
        seconds = self.transfer(piece, forward)
        if not seconds:
            return end, end
        clock, target = self.clocks[stage], other % stages
        begin = end if self.blocking else max(end, clock.links.get(target, 0.0))
        there = clock.links[target] = begin + seconds
        clock.communication_s += seconds
        if self.detail:
            queue = f"to stage {target}"
            self.events.append(Event(f"send {_label(turn)}", queue, begin, there, stage))
        if self.blocking:
            clock.stall("transfer", seconds)
            return there, there
        return there, end

    def _beside(self, stage: int, at: int, begin: float, work: Timed) -> float:
        """Run a turn of which some tasks go beside its compute; returns when it ends."""
        clock, now = self.clocks[stage], begin
        gathers = [task for task in work.tasks if task.role == "gather" and not task.key]
        ahead = 0
        if not clock.fetched and gathers:
            clock.fetched.append(self._queue(stage, gathers[0], max(clock.asked_s, 0.0)))
        for task in work.tasks:
            if task.role == "compute":
                together = min(clock.running_s, task.seconds)
                clock.running_s -= together
                clock.stall("contention", self.slowdown * together)
                now += task.seconds + self.slowdown * together
            elif task.role == "gather" and task.key:
                source = clock.keyed[task.after][-1] if task.after else now
                end = self._queue(stage, task, max(now, source))
                clock.keyed.setdefault(task.key, []).append(end)
            elif task.role == "arrive":
                now = self._arrived(clock, now, clock.keyed[task.key].pop(0))
            elif task.role == "gather":
                now = self._arrived(clock, now, clock.fetched.pop(0))
                ahead += 1
                following = gathers[ahead] if ahead < len(gathers) else self._next(stage, at)
                clock.asked_s = now
                if following is not None:
                    clock.fetched.append(self._queue(stage, following, now))
            elif task.role == "reduce":
                self._queue(stage, task, now)
            else:
                free = clock.queues.get(task.axis, 0.0)
                if free > now:
                    clock.stall("gradient reduction", free - now)
                    clock.running_s = max(0.0, clock.running_s - (free - now))
                    now = free
                end = now + task.seconds
                clock.queues[task.axis] = end
                clock.stall("collectives", task.seconds)
                clock.communication_s += task.seconds
                if self.detail:
                    self.events.append(Event(task.kind, task.axis, now, end, stage))
                now = end
        issued = max(now, begin + work.host_s)
        clock.stall("launches", issued - now)
        return issued

    def _arrived(self, clock: Clock, now: float, ready: float) -> float:
        """When the stage goes on that needs what a gather gives."""
        if ready <= now:
            return now
        clock.stall("gathers", ready - now)
        clock.running_s = max(0.0, clock.running_s - (ready - now))
        return ready

    def _next(self, stage: int, at: int) -> Task | None:
        """The first gather of the stage's next turn, which is asked for ahead."""
        order = self.orders[stage]
        if at + 1 >= len(order):
            return None
        following = self.timed(stage, order[at + 1])
        if not following.beside:
            return None
        return next(
            (task for task in following.tasks if task.role == "gather" and not task.key), None
        )

    def _queue(self, stage: int, task: Task, since: float) -> float:
        """Put a collective on its communicator's queue; returns when it ends."""
        clock = self.clocks[stage]
        begin = max(since, clock.queues.get(task.axis, 0.0))
        end = clock.queues[task.axis] = begin + task.seconds
        clock.communication_s += task.seconds
        clock.running_s += task.seconds
        if self.detail:
            self.events.append(Event(task.kind, task.axis, begin, end, stage))
        return end


def _label(turn: Turn) -> str:
    names = {"F": "forward", "B": "backward", "W": "weights"}
    chunk = f" of piece {turn.chunk + 1}" if turn.chunk else ""
    return f"{names[turn.phase]} {turn.microbatch + 1}{chunk}"
