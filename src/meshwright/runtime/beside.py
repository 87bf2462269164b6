"""Collectives that run beside compute: in what, in which order, and how they are waited for.

    InLine      at once, after all: lockstep, one device
    Threads     one thread for each axis of the mesh: CPU processes
    SideStream  one stream of the accelerator for each axis

All devices of an axis must run its collectives in one order. `Ordered` sees to that where
threads run them: while some are outstanding on an axis, the caller's own queue up there too.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from meshwright.layout.types import Reduce

T = TypeVar("T")
Work = Callable[[], None]


class Pending:
    """One collective under way. `held` keeps tensors that it reads until it is let go of."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: BaseException | None = None
        self.held: list[Tensor] = []

    def finish(self, error: BaseException | None = None) -> None:
        self._error = error
        self._done.set()

    def wait(self) -> None:
        """Raises what the collective raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error


class Beside(Protocol):
    def start(
        self, axis: str, work: Work, needs: Sequence[Pending], tensors: Sequence[Tensor]
    ) -> Pending:
        """Run `work`, which uses `tensors`, on the queue of `axis` once `needs` are over."""

    def busy(self, axis: str) -> bool:
        """Whether a call on `axis` by the caller itself could overtake what was started."""

    def settle(self) -> None:
        """Come back when all that was started is over. Raises what the first to fail raised."""


class InLine:
    def start(
        self, axis: str, work: Work, needs: Sequence[Pending], tensors: Sequence[Tensor]
    ) -> Pending:
        work()
        pending = Pending()
        pending.finish()
        return pending

    def busy(self, axis: str) -> bool:
        return False

    def settle(self) -> None:
        return None


class Threads:
    """The threads end with the process, also while a collective waits for a peer that failed."""

    def __init__(self) -> None:
        self._queues: dict[str, queue.SimpleQueue[tuple[Work, Sequence[Pending], Pending]]] = {}
        self._last: dict[str, Pending] = {}
        self._started: list[Pending] = []

    def start(
        self, axis: str, work: Work, needs: Sequence[Pending], tensors: Sequence[Tensor]
    ) -> Pending:
        pending = Pending()
        if axis not in self._queues:
            self._queues[axis] = queue.SimpleQueue()
            threading.Thread(
                target=_serve,
                args=(self._queues[axis], torch.get_num_threads()),
                name=f"collectives over {axis}",
                daemon=True,
            ).start()
        self._queues[axis].put((work, needs, pending))
        self._last[axis] = pending
        self._started.append(pending)
        return pending

    def busy(self, axis: str) -> bool:
        return axis in self._last

    def settle(self) -> None:
        started, self._started = self._started, []
        self._last.clear()
        for pending in started:
            pending.wait()


def _serve(tasks: queue.SimpleQueue[tuple[Work, Sequence[Pending], Pending]], threads: int) -> None:
    torch.set_num_threads(threads)
    failed: BaseException | None = None
    while True:
        work, needs, pending = tasks.get()
        try:
            # What comes after a failure could only wait for peers in vain.
            if failed is not None:
                raise failed
            for need in needs:
                need.wait()
            work()
            pending.finish()
        except BaseException as error:
            failed = error
            pending.finish(error)
        del work, needs, pending  # nothing is held while the queue is empty


class OnStream(Pending):
    """What was issued on a stream before; waiting holds up the current stream, not the host."""

    def __init__(self, done: torch.cuda.Event) -> None:
        super().__init__()
        self.done = done

    def wait(self) -> None:
        torch.cuda.current_stream().wait_event(self.done)


class SideStream:
    """The backend orders its own collectives as they are issued."""

    def __init__(self) -> None:
        self._streams: dict[str, torch.cuda.Stream] = {}

    def start(
        self, axis: str, work: Work, needs: Sequence[Pending], tensors: Sequence[Tensor]
    ) -> Pending:
        if axis not in self._streams:
            self._streams[axis] = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream = self._streams[axis]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for need in needs:
                need.wait()
            work()
        for x in tensors:
            x.record_stream(stream)
        return OnStream(stream.record_event())

    def busy(self, axis: str) -> bool:
        return False

    def settle(self) -> None:
        for stream in self._streams.values():
            torch.cuda.current_stream().wait_stream(stream)


class Blocking(Protocol):
    """What `Ordered` puts in order; see `meshwright.runtime.collectives.Transport`."""

    def all_reduce(self, x: Tensor, axis: str, reduce: Reduce) -> Tensor: ...
    def all_reduce_in_place(self, x: Tensor, axis: str, reduce: Reduce) -> None: ...
    def all_gather(self, x: Tensor, axis: str) -> Tensor: ...
    def all_gather_into(self, result: Tensor, x: Tensor, axis: str) -> None: ...
    def reduce_scatter(self, blocks: Tensor, axis: str, reduce: Reduce) -> Tensor: ...
    def reduce_scatter_into(
        self, result: Tensor, blocks: Tensor, axis: str, reduce: Reduce
    ) -> None: ...
    def all_to_all(self, blocks: Tensor, axis: str) -> Tensor: ...
    def exchange(self, sends: Sequence[Tensor], places: Sequence[Tensor], axis: str) -> None: ...


class Ordered:
    """The caller's collectives, each after what was started on its axis before."""

    def __init__(self, transport: Blocking, beside: Beside) -> None:
        self._transport, self._beside = transport, beside

    def all_reduce(self, x: Tensor, axis: str, reduce: Reduce) -> Tensor:
        return self._run(axis, lambda: self._transport.all_reduce(x, axis, reduce))

    def all_reduce_in_place(self, x: Tensor, axis: str, reduce: Reduce) -> None:
        self._run(axis, lambda: self._transport.all_reduce_in_place(x, axis, reduce))

    def all_gather(self, x: Tensor, axis: str) -> Tensor:
        return self._run(axis, lambda: self._transport.all_gather(x, axis))

    def all_gather_into(self, result: Tensor, x: Tensor, axis: str) -> None:
        self._run(axis, lambda: self._transport.all_gather_into(result, x, axis))

    def reduce_scatter(self, blocks: Tensor, axis: str, reduce: Reduce) -> Tensor:
        return self._run(axis, lambda: self._transport.reduce_scatter(blocks, axis, reduce))

    def reduce_scatter_into(
        self, result: Tensor, blocks: Tensor, axis: str, reduce: Reduce
    ) -> None:
        self._run(axis, lambda: self._transport.reduce_scatter_into(result, blocks, axis, reduce))

    def all_to_all(self, blocks: Tensor, axis: str) -> Tensor:
        return self._run(axis, lambda: self._transport.all_to_all(blocks, axis))

    def exchange(self, sends: Sequence[Tensor], places: Sequence[Tensor], axis: str) -> None:
        self._run(axis, lambda: self._transport.exchange(sends, places, axis))

    def beside(self) -> Beside:
        return self._beside

    def _run(self, axis: str, call: Callable[[], T]) -> T:
        if not self._beside.busy(axis):
            return call()
        found: list[T] = []
        self._beside.start(axis, lambda: found.append(call()), (), ()).wait()
        return found[0]
