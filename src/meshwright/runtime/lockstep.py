"""All ranks of a mesh in one process: a thread for each, meeting at every collective.

For tests and for checking a plan without starting processes. A rank that
fails, and ranks that wait for each other in a circle, end the run at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.errors import RunError
from meshwright.layout.types import Reduce
from meshwright.runtime.beside import Beside, InLine
from meshwright.runtime.collectives import combined
from meshwright.runtime.comm import Communicator

T = TypeVar("T")
_Call = tuple[str, torch.Size, torch.dtype]  # what every rank of a meeting must agree on


class _Stopped(Exception):
    """Another rank has failed; this one only has to end."""


class _World:
    """Where ranks meet. One lock for all: meetings are short and contention doesn't matter."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.arrived: dict[tuple[int, ...], dict[int, tuple[_Call, Tensor]]] = {}
        self.outcome: dict[int, list[Tensor]] = {}
        self.waiting: dict[int, str] = {}
        self.finished: set[int] = set()
        self.failure: BaseException | None = None

    def meet(self, rank: int, peers: tuple[int, ...], call: _Call, x: Tensor) -> list[Tensor]:
        """The tensors of all peers, in order, once each of them has come.

        Tensors are copied on arrival: a rank may go on and change its own.
        """
        with self.changed:
            meeting = self.arrived.setdefault(peers, {})
            meeting[rank] = (call, x.clone())
            if len(meeting) == len(peers):
                del self.arrived[peers]
                self._agree(peers, meeting)
                tensors = [meeting[peer][1] for peer in peers]
                for peer in peers:
                    self.outcome[peer] = tensors
                    self.waiting.pop(peer, None)
                self.changed.notify_all()
            else:
                self.waiting[rank] = f"{call[0]} with ranks {list(peers)}"
                self._check_progress()
                self.changed.wait_for(lambda: rank in self.outcome or self.failure is not None)
            if self.failure is not None:
                raise _Stopped
            return self.outcome.pop(rank)

    def finish(self, rank: int) -> None:
        with self.changed:
            self.finished.add(rank)
            self._check_progress()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def _agree(self, peers: tuple[int, ...], meeting: dict[int, tuple[_Call, Tensor]]) -> None:
        calls = {peer: meeting[peer][0] for peer in peers}
        if len(set(calls.values())) > 1:
            listed = "; ".join(
                f"rank {peer}: {kind} of {list(shape)} {dtype}"
                for peer, (kind, shape, dtype) in calls.items()
            )
            raise RunError(
                f"Ranks that share an axis called different collectives: {listed}.",
                "Every rank along an axis must run the same collectives in the same order.",
            )

    def _check_progress(self) -> None:
        if self.waiting and len(self.waiting) + len(self.finished) == self.size:
            listed = "; ".join(f"rank {r}: {at}" for r, at in sorted(self.waiting.items()))
            ended = f" Ranks {sorted(self.finished)} have ended." if self.finished else ""
            self.fail(
                RunError(
                    f"The ranks wait for each other and none can go on. {listed}.{ended}",
                    "Every rank along an axis must run the same collectives in the same order.",
                )
            )


class LockstepTransport:
    """The transport of one rank among the threads of a `run_lockstep`."""

    def __init__(self, world: _World, mesh: Mesh, rank: int) -> None:
        self._world = world
        self._rank = rank
        self._peers = {axis: mesh.peers(rank, axis) for axis in mesh.names}
        self._index = dict(mesh.coordinate(rank))

    def all_reduce(self, x: Tensor, axis: str, reduce: Reduce) -> Tensor:
        terms = self._meet(f"all_reduce({reduce}, {axis})", x, axis)
        return combined(terms, reduce, torch.empty_like(x))

    def all_reduce_in_place(self, x: Tensor, axis: str, reduce: Reduce) -> None:
        combined(self._meet(f"all_reduce({reduce}, {axis})", x, axis), reduce, x)

    def all_gather(self, x: Tensor, axis: str) -> Tensor:
        return torch.stack(self._meet(f"all_gather({axis})", x, axis))

    def all_gather_into(self, result: Tensor, x: Tensor, axis: str) -> None:
        torch.stack(self._meet(f"all_gather({axis})", x, axis), out=result)

    def reduce_scatter(self, blocks: Tensor, axis: str, reduce: Reduce) -> Tensor:
        everyone = self._meet(f"reduce_scatter({reduce}, {axis})", blocks, axis)
        terms = [theirs[self._index[axis]] for theirs in everyone]
        return combined(terms, reduce, torch.empty_like(terms[0]))

    def reduce_scatter_into(
        self, result: Tensor, blocks: Tensor, axis: str, reduce: Reduce
    ) -> None:
        result.copy_(self.reduce_scatter(blocks, axis, reduce))

    def all_to_all(self, blocks: Tensor, axis: str) -> Tensor:
        everyone = self._meet(f"all_to_all({axis})", blocks, axis)
        return torch.stack([theirs[self._index[axis]] for theirs in everyone])

    def exchange(self, sends: Sequence[Tensor], places: Sequence[Tensor], axis: str) -> None:
        # Sizes differ, so each rank brings a parcel: what it sends, end to end, and how
        # much of it is for whom.
        dtype = sends[0].dtype
        parcel = torch.cat([x.reshape(-1).view(torch.uint8) for x in sends])
        sizes = self._meet(f"exchange({axis})", torch.tensor([x.nbytes for x in sends]), axis)
        call = (f"exchange({axis})", torch.Size(()), dtype)
        everyone = self._world.meet(self._rank, self._peers[axis], call, parcel)
        me = self._index[axis]
        for index, place in enumerate(places):
            if index != me and place.numel():
                start = int(sizes[index][:me].sum())
                theirs = everyone[index][start : start + place.nbytes]
                place.copy_(theirs.view(dtype).view(place.shape))

    def beside(self) -> Beside:
        return InLine()

    def _meet(self, kind: str, x: Tensor, axis: str) -> list[Tensor]:
        return self._world.meet(self._rank, self._peers[axis], (kind, x.shape, x.dtype), x)


def run_lockstep(mesh: Mesh, fn: Callable[[Communicator], T]) -> list[T]:
    """`fn` run by every rank of the mesh at once; the results in order of rank.

    Raises what the first failing rank raised, with a note that names the rank,
    or RunError when the ranks' collectives don't match.
    """
    world = _World(mesh.size)
    results: dict[int, T] = {}

    def run(rank: int) -> None:
        try:
            results[rank] = fn(Communicator(mesh, rank, LockstepTransport(world, mesh, rank)))
            world.finish(rank)
        except _Stopped:
            pass
        except BaseException as error:
            error.add_note(f"on rank {rank}")
            world.fail(error)

    threads = [threading.Thread(target=run, args=(r,), name=f"rank-{r}") for r in range(mesh.size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if world.failure is not None:
        raise world.failure
    return [results[rank] for rank in range(mesh.size)]
