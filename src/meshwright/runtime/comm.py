"""The collectives that generated code calls, over named axes of the mesh.

A Communicator turns a collective on one dim of a tensor into blocks of one
size (`primitives`), hands them to a transport (`collectives`, `lockstep`),
puts the result together and writes down what it did. Inputs are never
modified; results never share memory with an input, except that an axis of
extent 1 gives the input back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.errors import UsageError
from meshwright.layout.halo import Range, overlap, rows_sent
from meshwright.layout.types import Reduce
from meshwright.plan.types import Collective
from meshwright.runtime import flat, halo, primitives
from meshwright.runtime.beside import Beside, Ordered, Pending
from meshwright.runtime.collectives import (
    GlooTransport,
    NativeTransport,
    SingleTransport,
    Transport,
    device_mesh,
)
from meshwright.runtime.primitives import Cut
from meshwright.runtime.steptrace import StepTrace

__all__ = ["CollectiveLog", "Communicator", "Cut", "connect"]

# PyTorch adds no bools: "sum" of conditions is "any", "prod" is "all".
_BOOL_REDUCE: dict[Reduce, Reduce] = {"sum": "max", "max": "max", "prod": "min", "min": "min"}


class CollectiveLog:
    """Collectives that ran, added up by kind and axis; payloads as in `plan.types.Collective`.

    `seconds` is the time that the caller spent inside collectives; on an
    accelerator, where they run asynchronously, that is launch time alone.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seconds = 0.0
        self._totals: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, kind: str, axis: str, nbytes: int, seconds: float) -> None:
        count, total = self._totals.get((kind, axis), (0, 0))
        self._totals[kind, axis] = (count + 1, total + nbytes)
        self.seconds += seconds

    def summary(self) -> tuple[Collective, ...]:
        """One entry for each kind and axis, sorted."""
        return tuple(
            Collective(kind=kind, axis=axis, count=count, bytes=total)
            for (kind, axis), (count, total) in sorted(self._totals.items())
        )


class Communicator:
    """Collectives of one device of the mesh.

    All devices along `axis` must call the same methods in the same order.
    """

    def __init__(self, mesh: Mesh, rank: int, transport: Transport) -> None:
        self.mesh = mesh
        self.rank = rank
        self.log = CollectiveLog()
        # Set while memory is measured. A backend's own thread can be the last to let go of
        # a tensor, and the profiler does not see what other threads free: it is given time.
        self.pause_s = 0.0
        self.trace: StepTrace | None = None  # set while a step is timed op by op
        self._raw = self._transport = transport
        self._beside: Beside | None = None
        self._pending: dict[int, Pending] = {}  # what is not there yet, by memory
        self._extent = dict(mesh.axes)
        self._coordinate = dict(mesh.coordinate(rank))

    def index(self, axis: str) -> int:
        """This device's coordinate on `axis`."""
        return self._coordinate[axis]

    def all_reduce(self, x: Tensor, axis: str, reduce: Reduce = "sum") -> Tensor:
        """[*] -> [*]: the terms of all devices on `axis` combined."""
        if self._extent[axis] == 1:
            return x
        started = time.perf_counter()
        terms, how, dtype = _reducible(x, reduce)
        result = self._transport.all_reduce(terms, axis, how) if x.numel() else terms.clone()
        self._record("all_reduce", axis, x, started)
        return result.to(dtype)

    def all_gather(
        self, x: Tensor, axis: str, dim: int, outer: int, extent: int, minor: int, shift: int = 0
    ) -> Tensor:
        """[.., outer * part * minor, ..] -> [.., outer * extent * minor, ..]."""
        n = self._extent[axis]
        if n == 1:
            return x
        started = time.perf_counter()
        cut = Cut(dim, outer, extent, minor, shift)
        block = primitives.pad_part(x, cut, cut.number(self._coordinate[axis], n), n).contiguous()
        if block.numel():
            blocks = self._transport.all_gather(block, axis)
        else:
            blocks = block.new_empty(n, *block.shape)
        result = primitives.gather_blocks(_by_part(blocks, cut), cut)
        self._record("all_gather", axis, result, started)
        return result

    def reduce_scatter(
        self,
        x: Tensor,
        axis: str,
        dim: int,
        outer: int,
        extent: int,
        minor: int,
        shift: int = 0,
        reduce: Reduce = "sum",
    ) -> Tensor:
        """[.., outer * extent * minor, ..] -> [.., outer * part * minor, ..], combined."""
        n = self._extent[axis]
        if n == 1:
            return x
        started = time.perf_counter()
        cut = Cut(dim, outer, extent, minor, shift)
        terms, how, dtype = _reducible(x, reduce)
        blocks = _by_device(primitives.scatter_blocks(terms, cut, n), cut)
        if blocks.numel():
            block = self._transport.reduce_scatter(blocks, axis, how)
        else:
            block = blocks[0].clone()
        part = cut.number(self._coordinate[axis], n)
        result = primitives.trim_part(block, cut, part, n).to(dtype)
        self._record("reduce_scatter", axis, x, started)
        return result

    def all_reduce_many(
        self, tensors: Sequence[Tensor], axis: str, reduce: Reduce = "sum", later: bool = False
    ) -> list[Tensor]:
        """Tensors of one dtype, in one collective; the results are views of one flat tensor.

        later: the results are there once `settle` comes back, where this device overlaps.
        """
        if self._extent[axis] == 1:
            return list(tensors)
        started = time.perf_counter()
        shapes = [x.shape for x in tensors]
        row = tensors[0].new_empty(sum(x.numel() for x in tensors))

        def call(transport: Transport) -> None:
            transport.all_reduce_in_place(row, axis, reduce)

        if row.numel():
            self._send(axis, tensors, lambda: flat.flatten(tensors, row), call, [row], later)
        self._record("all_reduce", axis, row, started)
        return flat.opened(row, shapes)

    def all_gather_many(
        self,
        tensors: Sequence[Tensor],
        axis: str,
        cuts: Sequence[Sequence[int]],
        later: bool = False,
    ) -> list[Tensor]:
        """Parts of several tensors of one dtype, gathered in one collective.

        cuts: (dim, outer, extent, minor, shift) for each. later: the results are there once
        `arrive` gives them back, where this device overlaps.
        """
        n = self._extent[axis]
        if n == 1:
            return list(tensors)
        started = time.perf_counter()
        each = [Cut(*cut) for cut in cuts]
        wholes = [
            (*x.shape[: cut.dim], cut.size(cut.extent), *x.shape[cut.dim + 1 :])
            for x, cut in zip(tensors, each, strict=True)
        ]
        if later and self._beside is not None:
            results = self._gather_later(self._beside, tensors, axis, wholes, each)
            self._record_bytes("all_gather", axis, sum(x.nbytes for x in results), started)
            return results
        row = flat.row_of(tensors, flat.row_length(wholes, each, n))
        rows = self._transport.all_gather(row, axis) if row.numel() else row.new_empty(n, 0)
        del row
        results = flat.joined(rows, wholes, each, n)
        self._record_bytes("all_gather", axis, sum(x.nbytes for x in results), started)
        return results

    def reduce_scatter_many(
        self,
        tensors: Sequence[Tensor],
        axis: str,
        cuts: Sequence[Sequence[int]],
        reduce: Reduce = "sum",
        later: bool = False,
    ) -> list[Tensor]:
        """This device's parts of several tensors of one dtype, combined in one collective.

        The results are views of one flat tensor. cuts: as in `all_gather_many`. later: as in
        `all_reduce_many`.
        """
        n, me = self._extent[axis], self._coordinate[axis]
        if n == 1:
            return list(tensors)
        started = time.perf_counter()
        each = [Cut(*cut) for cut in cuts]
        wholes = [x.shape for x in tensors]
        rows = tensors[0].new_empty(n, flat.row_length(wholes, each, n))
        row = torch.empty_like(rows[0])

        def call(transport: Transport) -> None:
            transport.reduce_scatter_into(row, rows, axis, reduce)

        if rows.numel():
            fill = partial(flat.fill_rows, tensors, each, rows)
            self._send(axis, tensors, fill, call, [rows, row], later)
        shapes = flat.part_shapes(wholes, each, me, n)
        self._record_bytes("reduce_scatter", axis, sum(x.nbytes for x in tensors), started)
        return flat.opened(row, shapes)

    def all_to_all(
        self,
        x: Tensor,
        axis: str,
        gather: tuple[int, ...],
        scatter: tuple[int, ...],
    ) -> Tensor:
        """Join the parts of the cut `gather` and keep one part of the cut `scatter`.

        Both are (dim, outer, extent, minor, shift), stated for the tensor in which
        neither is cut.
        """
        n, me = self._extent[axis], self._coordinate[axis]
        if n == 1:
            return x
        started = time.perf_counter()
        joined, divided = Cut(*gather), Cut(*scatter)
        if joined.dim == divided.dim:
            result = self._regroup(x, axis, joined, divided)
        else:
            padded = primitives.pad_part(x, joined, joined.number(me, n), n)
            blocks = _by_device(primitives.scatter_blocks(padded, divided, n), divided)
            if blocks.numel():
                blocks = self._transport.all_to_all(blocks, axis)
            result = primitives.gather_blocks(_by_part(blocks, joined), joined)
            result = primitives.trim_part(result, divided, divided.number(me, n), n)
        self._record("all_to_all", axis, x, started)
        return result

    def halo(
        self,
        x: Tensor,
        axis: str,
        dim: int,
        source: Sequence[Range],
        target: Sequence[Range],
        fill: float = 0,
    ) -> Tensor:
        """Rows `target[me]` of a dim of which device i on `axis` holds `source[i]`.

        Ranges are (first, past) in rows of the whole dim. Rows that several
        devices hold are added up, in their order; those that none holds are `fill`.
        With disjoint sources that fetches rows from neighbours; with source and
        target changed over it is the adjoint, which brings gradients back.
        """
        started = time.perf_counter()
        me = self._coordinate[axis]
        sends = halo.pieces_to_send(x, dim, me, source, target)
        places = halo.places_to_receive(x, dim, me, source, target)
        sent = rows_sent(source, target)
        if sent and self._extent[axis] > 1:
            self._transport.exchange(sends, places, axis)
        pieces = [
            halo.own_rows(x, dim, source[me], target[me])
            if index == me
            else (overlap(source[index], target[me]), place)
            for index, place in enumerate(places)
        ]
        result = halo.put_together(x, dim, target[me], pieces, fill)
        if self.pause_s:
            time.sleep(self.pause_s)
        rest = math.prod(size for position, size in enumerate(x.shape) if position != dim)
        nbytes = sent * rest * x.element_size()
        self.log.add("halo", axis, nbytes, time.perf_counter() - started)
        return result

    def ring_shift(self, x: Tensor, axis: str) -> Tensor:
        """[*] -> [*]: what the device before this one on `axis` holds; the first follows the last.

        All devices hold tensors of one shape.
        """
        n, me = self._extent[axis], self._coordinate[axis]
        if n == 1:
            return x
        started = time.perf_counter()
        x = x.contiguous()
        result, nothing = torch.empty_like(x), x.new_empty(0)
        sends, places = [nothing] * n, [nothing] * n
        sends[(me + 1) % n], places[(me - 1) % n] = x, result
        self._transport.exchange(sends, places, axis)
        self._record("ring_shift", axis, x, started)
        return result

    def shard(
        self, x: Tensor, axis: str, dim: int, outer: int, extent: int, minor: int, shift: int = 0
    ) -> Tensor:
        """This device's part of `x`, without communication."""
        n = self._extent[axis]
        if n == 1:
            return x
        cut = Cut(dim, outer, extent, minor, shift)
        return primitives.shard(x, cut, cut.number(self._coordinate[axis], n), n)

    def overlap(self) -> None:
        """From here on run beside compute what is called for `later`."""
        if self._beside is None:
            self._beside = self._transport.beside()
            self._transport = Ordered(self._raw, self._beside)

    @property
    def overlaps(self) -> bool:
        return self._beside is not None

    def _send(
        self,
        axis: str,
        sources: Sequence[Tensor],
        fill: Callable[[], None],
        call: Callable[[Transport], None],
        used: Sequence[Tensor],
        later: bool,
    ) -> None:
        """Fill what is sent and call the collective, whose result comes to be in `used[-1]`."""
        if self._beside is None or not later:
            fill()
            call(self._transport)
            return
        raw = self._raw
        needs = [self._pending[key] for x in sources if (key := _memory(x)) in self._pending]
        if needs:  # it takes what another collective is still about to give

            def work() -> None:
                fill()
                call(raw)

            started = self._beside.start(axis, work, needs, [*sources, *used])
        else:
            fill()
            started = self._beside.start(axis, partial(call, raw), (), used)
        self._pending[_memory(used[-1])] = started

    def _gather_later(
        self,
        beside: Beside,
        tensors: Sequence[Tensor],
        axis: str,
        wholes: Sequence[Sequence[int]],
        cuts: Sequence[Cut],
    ) -> list[Tensor]:
        """Start a gather into tensors that are given back at once."""
        n, raw = self._extent[axis], self._raw
        results = [x.new_empty(whole) for x, whole in zip(tensors, wholes, strict=True)]
        first, whole = tensors[0], results[0]

        def work() -> None:
            if len(results) == 1 and flat.in_runs(whole.shape, cuts[0], n):
                if whole.numel():  # the devices' parts lie side by side as they come
                    raw.all_gather_into(whole.view(n, *first.shape), first.contiguous(), axis)
                return
            row = flat.row_of(tensors, flat.row_length(wholes, cuts, n))
            if row.numel():
                rows = raw.all_gather(row, axis)
                del row
                flat.join_into(results, rows, cuts, n)

        needs = [self._pending[key] for x in tensors if (key := _memory(x)) in self._pending]
        started = beside.start(axis, work, needs, ())
        # What it reads and writes is held until it is over: nobody else gets their memory.
        started.held = [*tensors, *results]
        for need in needs:
            started.held.extend(need.held)
            need.held = []
        self._pending.update((_memory(x), started) for x in results)
        return results

    def arrive(self, x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """What a gather gave that was called for `later`, once it is there."""
        started = time.perf_counter()
        for one in x if isinstance(x, list) else [x]:
            pending = self._pending.pop(_memory(one), None)
            if pending is not None:
                pending.wait()
        self.log.seconds += time.perf_counter() - started
        return x

    def settle(self) -> None:
        """Wait for what was started for later."""
        if self._beside is not None:
            started = time.perf_counter()
            self._pending.clear()
            self._beside.settle()
            self.log.seconds += time.perf_counter() - started

    def _regroup(self, x: Tensor, axis: str, old: Cut, new: Cut) -> Tensor:
        """all_to_all between two cuts of one dim: what goes where is found by position."""
        n, me, dim = self._extent[axis], self._coordinate[axis], old.dim
        assert old.size(old.extent) == new.size(new.extent), (old, new)
        held = [primitives.positions(old, old.number(index, n), n) for index in range(n)]
        wanted = [primitives.positions(new, new.number(index, n), n) for index in range(n)]
        moves = [[torch.isin(held[i], wanted[j]) for j in range(n)] for i in range(n)]
        longest = max(int(mask.sum()) for row in moves for mask in row)
        front = x.movedim(dim, 0).contiguous()
        blocks = front.new_zeros(n, longest, *front.shape[1:])
        for j in range(n):
            chosen = moves[me][j].nonzero()[:, 0].to(x.device)
            blocks[j, : chosen.numel()] = front[chosen]
        if blocks.numel():
            blocks = self._transport.all_to_all(blocks, axis)
        result = front.new_empty(wanted[me].numel(), *front.shape[1:])
        for i in range(n):
            places = torch.searchsorted(wanted[me].contiguous(), held[i][moves[i][me]]).to(x.device)
            result[places] = blocks[i, : places.numel()]
        return result.movedim(0, dim).contiguous()

    def _record(self, kind: str, axis: str, payload: Tensor, started: float) -> None:
        self._record_bytes(kind, axis, payload.nbytes, started)

    def _record_bytes(self, kind: str, axis: str, nbytes: int, started: float) -> None:
        if self.pause_s:
            time.sleep(self.pause_s)
        self.log.add(kind, axis, nbytes, time.perf_counter() - started)


def connect(mesh: Mesh, device: str = "cpu") -> Communicator:
    """This process's Communicator over the default process group.

    Every process must call it. A mesh of one device needs no process group.
    Raises UsageError when the process group doesn't have one process a device.
    """
    if mesh.size == 1:
        return Communicator(mesh, 0, SingleTransport())
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world != mesh.size:
        raise UsageError(
            f"The mesh has {mesh.size} devices, but {world} processes are running.",
            f"Start {mesh.size} processes, or choose a mesh of {world} devices.",
        )
    torch_mesh = device_mesh(mesh, device)
    transport = GlooTransport(torch_mesh) if device == "cpu" else NativeTransport(torch_mesh)
    return Communicator(mesh, dist.get_rank(), transport)


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _by_device(blocks: Tensor, cut: Cut) -> Tensor:
    """[parts, ...] in the order of the parts -> in the order of the devices that have them."""
    return blocks.roll(cut.shift, 0) if cut.shift else blocks


def _by_part(blocks: Tensor, cut: Cut) -> Tensor:
    return blocks.roll(-cut.shift, 0) if cut.shift else blocks


def _reducible(x: Tensor, reduce: Reduce) -> tuple[Tensor, Reduce, torch.dtype]:
    """`x` contiguous and in a dtype that can be reduced, the reduction, the dtype to go back to."""
    if x.dtype is torch.bool:
        return x.contiguous().view(torch.uint8), _BOOL_REDUCE[reduce], torch.bool
    if x.dtype is torch.int16:  # no backend adds these
        return x.to(torch.int32).contiguous(), reduce, torch.int16
    return x.contiguous(), reduce, x.dtype
