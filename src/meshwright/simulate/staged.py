"""Simulates a step from the costs of its blocks: stages, schedules, overlap, recomputation.

Without any of them the time is that of `step.py`, which goes through a step op by op.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from meshwright.cost.table import CostTable
from meshwright.errors import UsageError
from meshwright.layout.ahead import ahead
from meshwright.layout.lowered import LoweredProgram, StoredParameter
from meshwright.plan.types import STAGE, Pipeline, Recompute
from meshwright.simulate.block import Task
from meshwright.simulate.blocks import costed
from meshwright.simulate.contents import Contents
from meshwright.simulate.copies import Row, row, steady
from meshwright.simulate.engine import Clock, Engine, Timed
from meshwright.simulate.executor import Executor
from meshwright.simulate.packing import arrivals, asked, packed, reduce_peak
from meshwright.simulate.pieces import Phase, Piece, boundaries, cuts_of, pieces
from meshwright.simulate.schedules import Turn, schedule
from meshwright.simulate.types import (
    COMMUNICATION_STALLS,
    Event,
    Simulation,
    StageResult,
)


def simulate_staged(
    lowered: LoweredProgram,
    costs: CostTable,
    *,
    microbatches: int,
    optimizer: str,
    pipeline: Pipeline | None,
    recompute: Recompute,
    executor: Executor,
    stands_for: Mapping[str, int],
    detail: bool,
) -> Simulation:
    """See `meshwright.simulate.step.simulate`."""
    starts = {cut.partition("#")[0] for cut in pipeline.cuts} if pipeline else set()
    at = frozenset(starts | set(stands_for))
    if executor.asks_ahead:
        moved = ahead(lowered)
        if steady(costed(moved, costs, at, executor.compiled), stands_for):
            lowered = moved
        else:
            executor = replace(executor, overlap_gathers=False, asks_ahead=False)
    found = costed(lowered, costs, at, executor.compiled)
    made = row(found, stands_for)
    return _Staged(
        lowered, costs, made, microbatches, optimizer, pipeline, recompute, executor, detail
    ).run()


_TENSOR = "tensor"


class _Staged:
    def __init__(
        self,
        lowered: LoweredProgram,
        costs: CostTable,
        made: Row,
        microbatches: int,
        optimizer: str,
        pipeline: Pipeline | None,
        recompute: Recompute,
        executor: Executor,
        detail: bool,
    ) -> None:
        self.lowered, self.costs, self.row = lowered, costs, made
        self.microbatches, self.optimizer = microbatches, optimizer
        self.executor, self.detail = executor, detail
        self.pipeline = pipeline or Pipeline(stages=1)
        self.stages = self.pipeline.stages
        mesh = dict(lowered.mesh.axes)
        if mesh.get(STAGE, 1) != self.stages:
            raise UsageError(
                f"The pipeline has {self.stages} stages, but the mesh has {mesh.get(STAGE, 1)}.",
                "Lower the plan on a mesh with a stage axis of that size, outermost.",
            )
        self.stride = lowered.mesh.stride(STAGE) if STAGE in mesh else lowered.mesh.size
        self.parts = mesh.get(_TENSOR, 1) if executor.sends_parts else 1
        self.bounds = boundaries(made, pipeline, recompute)
        self.pieces = pieces(made, self.bounds, recompute, executor, self._recost, self.parts)
        streaming = cache(costs.streaming)
        if executor.overlap_tensor and self.pipeline.schedule == "zb-h1":
            raise UsageError(
                "The schedule zb-h1 leaves weight gradients for later, so that no collective can "
                "run beside them.",
                "Use another schedule, or an executor without overlap_tensor.",
            )
        self.holds = Contents(
            lowered, costs, made, self.pieces, self.stages, microbatches, optimizer, executor,
            detail,
        )  # fmt: skip
        adds = executor.adds_gradients or not executor.gradient_buffer
        self.accumulate_s = []
        for piece in self.pieces:
            # The gradient is read, the sum is read and written, which may be in a wider dtype.
            whole = sum(piece.gradients)
            wider = piece.accumulated / whole if whole else 1
            seconds = sum(streaming((1 + 2 * wider) * nbytes) for nbytes in piece.gradients)
            self.accumulate_s.append(seconds if adds else 0.0)
        if lowered.bucket_bytes:
            self._pack(lowered.bucket_bytes)
        self._transfers: dict[tuple[int, bool], float] = {}
        self._optimizer_s: dict[tuple[int, ...], float] = {}
        self._whole_gradients = sum(
            lowered.values[item.gradient].nbytes
            for item in lowered.parameters
            if item.gradient is not None
        )
        self.notes: list[str] = []
        self._timed: dict[tuple[str, int, bool, bool], Timed] = {}

    def run(self) -> Simulation:
        orders = schedule(self.pipeline, self.microbatches)
        clocks = [Clock() for _ in range(self.stages)]
        on_cpu = all(profile.device == "cpu" for profile in self.costs.profiles)
        engine = Engine(
            orders,
            len(self.pieces),
            self._turn,
            self._transfer,
            not self.executor.overlap_pipeline,
            self.detail,
            0.0 if on_cpu else self.costs.constants.overlap_slowdown,
            clocks,
        )
        for stage, clock in enumerate(clocks):
            self._begin(stage, clock, engine.events)
        engine.run()
        optimizer_s = self._finish(clocks, engine.events)
        step_s = max(clock.now_s for clock in clocks)
        for clock in clocks:
            clock.stall("bubble", step_s - clock.now_s)
        results = [self._result(stage, clock) for stage, clock in enumerate(clocks)]
        return self._simulation(step_s, optimizer_s, clocks, results, engine.events)

    # Times

    def _recost(self, task: Task, nbytes: int) -> Task:
        mesh = self.lowered.mesh
        seconds = self.costs.collective(
            task.kind, mesh.extent(task.axis), mesh.stride(task.axis), nbytes
        )
        return task._replace(nbytes=nbytes, seconds=seconds)

    def _pack(self, limit: int) -> None:
        """Merge what is gathered and reduced once a step."""
        extent = self.lowered.mesh.extent
        on_cpu = self.costs.profiles[0].device == "cpu"
        for piece in self.pieces:
            piece.gather = packed(piece.gather, limit, extent, self._together)
            together = [task.nbytes for tasks in piece.gather for task in tasks if task.tensors > 1]
            piece.beside_bytes = max(piece.beside_bytes, *together, 0)
            piece.reduce = packed(piece.reduce, limit, extent, self._together)
            piece.reduce_peak = reduce_peak(piece.reducing, limit, extent, on_cpu)

    def _together(self, tasks: Sequence[Task]) -> Task:
        task = self._recost(tasks[0], sum(task.nbytes for task in tasks))
        extent = self.lowered.mesh.extent(task.axis)
        tensors = sum(task.tensors for task in tasks)
        moved_s = self.costs.side_by_side(task.kind, task.nbytes, extent, tensors)
        return task._replace(tensors=tensors, seconds=task.seconds + moved_s)

    def _turn(self, stage: int, turn: Turn) -> Timed:
        """The tasks of a turn; alike for all microbatches but the first and the last."""
        piece = turn.chunk * self.stages + stage
        first = turn.microbatch == 0
        last = turn.microbatch == self.microbatches - 1
        key = (turn.phase, piece, first, last)
        found = self._timed.get(key)
        if found is None:
            found = self._timed[key] = self._compiled(turn.phase, piece, first, last)
        return found

    def _compiled(self, phase: str, number: int, first: bool, last: bool) -> Timed:
        piece = self.pieces[number]
        apart = self.pipeline.schedule == "zb-h1"
        executor = self.executor
        tasks: list[Task] = []
        tasks += self._joined(number, forward=phase == "F") if phase != "W" else []
        if phase == "F":
            works: list[Phase] = [piece.forward]
            once = piece.gather if first and executor.overlap_gathers else [()] * len(piece.gather)
            if executor.asks_ahead:
                tasks += asked(once)
                once = [arrivals(number, gathers) for number, gathers in enumerate(once)]
            for gathers, block in zip(once, piece.forward.blocks, strict=True):
                tasks += gathers
                tasks += block
        else:
            both = {"B": [piece.inputs, piece.weights], "W": [piece.weights]}
            works = both[phase][:1] if apart else both[phase]
            ends = phase == "W" or not apart
            reduce = last and ends and executor.overlap_gradients
            buckets = self._buckets(piece) if reduce else [()] * len(piece.reduce)
            for index, bucket in enumerate(buckets):
                for work in works:
                    tasks += work.blocks[index]
                tasks += bucket
            if ends and not first:
                tasks.append(Task("compute", self.accumulate_s[number]))
        roles = {
            "gather": executor.overlap_gathers, "arrive": executor.overlap_gathers,
            "reduce": executor.overlap_gradients,
        }  # fmt: skip
        tasks = [
            task._replace(role="sync") if not roles.get(task.role, True) else task for task in tasks
        ]
        compute_s = sum(task.seconds for task in tasks if task.role == "compute")
        seconds = sum(task.seconds for task in tasks)
        beside = any(task.role in roles for task in tasks)
        host_s = sum(work.host_s for work in works)
        waiting_s = max(0.0, host_s - seconds)
        return Timed(tuple(tasks), seconds + waiting_s, compute_s, beside, waiting_s, host_s)

    def _buckets(self, piece: Piece) -> list[tuple[Task, ...]]:
        """Collectives of gradients of once a step, after the block that completes each."""
        limit = self.executor.bucket_bytes
        found: list[tuple[Task, ...]] = []
        pending: dict[tuple[str, str, int], Task] = {}
        for number, tasks in enumerate(piece.reduce):
            ready: list[Task] = []
            for task in tasks:
                if not task.kind or not limit:
                    ready.append(task)
                    continue
                key = (task.kind, task.axis, task.itemsize)
                seen = pending.pop(key, None)
                nbytes = task.nbytes + (seen.nbytes if seen else 0)
                tensors = task.tensors + (seen.tensors if seen else 0)
                pending[key] = task._replace(nbytes=nbytes, tensors=tensors)
                if nbytes >= limit:
                    ready.append(self._recost(pending.pop(key), nbytes))
            if number == len(piece.reduce) - 1:
                ready += [self._recost(task, task.nbytes) for task in pending.values()]
            found.append(tuple(ready))
        return found

    def _transfer(self, piece: int, forward: bool) -> float:
        """Seconds from a piece to the next one, or of gradients to the one before."""
        found = self._transfers.get((piece, forward))
        if found is None:
            found = self._transfers[piece, forward] = self._message(piece, forward)
        return found

    def _message(self, piece: int, forward: bool) -> float:
        other = piece + 1 if forward else piece - 1
        nbytes = self.pieces[piece].sends_forward if forward else self.pieces[piece].sends_backward
        if not nbytes:
            return 0.0
        source, target = (number % self.stages * self.stride for number in (piece, other))
        return self.costs.message(nbytes / self.parts, source, target)

    def _joined(self, number: int, *, forward: bool) -> list[Task]:
        """The gather of what arrived in parts."""
        sender = number - 1 if forward else number + 1
        if self.parts == 1 or not 0 <= sender < len(self.pieces):
            return []
        piece = self.pieces[sender]
        nbytes = piece.sends_forward if forward else piece.sends_backward
        return [self._recost(Task("sync", 0.0, _TENSOR, "all_gather"), nbytes)] if nbytes else []

    def _begin(self, stage: int, clock: Clock, events: list[Event]) -> None:
        """The batch is fetched, then parameters that are gathered once a step."""
        nbytes = self.holds.batch_bytes(stage)
        if nbytes and any(profile.device != "cpu" for profile in self.costs.profiles):
            if all(self._has_host(profile.name) for profile in self.costs.profiles):
                clock.now_s += self.costs.tier(nbytes, "host", "read")
                clock.stall("data", clock.now_s)
            else:
                note = "fetching the batch counts as nothing: a profile names no host memory"
                self.notes = [note]
        if self.executor.overlap_gathers:
            return
        for piece in self.holds.pieces_of(stage):
            for tasks in piece.gather:
                for task in tasks:
                    self._in_line(clock, task, "gathers", stage, events)

    def _has_host(self, name: str) -> bool:
        profile = next(item for item in self.costs.profiles if item.name == name)
        return any(tier.name == "host" for tier in profile.lower_tiers)

    def _in_line(
        self, clock: Clock, task: Task, cause: str, stage: int, events: list[Event]
    ) -> None:
        begin = clock.now_s
        clock.now_s += task.seconds
        if task.kind:
            clock.stall(cause, task.seconds)
            clock.communication_s += task.seconds
        else:
            clock.compute_s += task.seconds
        if self.detail:
            queue = task.axis or "compute"
            events.append(Event(task.kind or cause, queue, begin, clock.now_s, stage))

    def _finish(self, clocks: Sequence[Clock], events: list[Event]) -> float:
        """Reductions, gradients shared between stages, clipping, optimizer; its mean seconds."""
        for stage, clock in enumerate(clocks):
            if self.executor.overlap_gradients:
                end = max((clock.now_s, *clock.queues.values()))
                clock.stall("gradient reduction", end - clock.now_s)
                clock.now_s = end
                continue
            for piece in reversed(self.holds.pieces_of(stage)):
                for tasks in self._buckets(piece):
                    for task in tasks:
                        self._in_line(clock, task, "gradient reduction", stage, events)
        self._share(clocks)
        if self.lowered.norm is not None:
            together = max(clock.now_s for clock in clocks)
            for clock in clocks:
                clock.stall("bubble", together - clock.now_s)
                clock.now_s = together
        total = 0.0
        for stage, clock in enumerate(clocks):
            stepped = self.holds.parameters(stage)
            if self.lowered.norm is not None:
                self._clip(stage, clock, events)
            seconds = self._stepping(stepped)
            if self.lowered.norm is not None:
                seconds += self.costs.streaming(2 * self.holds.gradient_bytes(stage))
            if self.detail and seconds:
                end = clock.now_s + seconds
                events.append(Event("optimizer", "compute", clock.now_s, end, stage))
            loop_s = self.costs.step_overhead(self.microbatches)
            clock.now_s += seconds + loop_s + self.executor.step_overhead_s
            clock.compute_s += seconds + loop_s
            clock.stall("overhead", self.executor.step_overhead_s)
            total += seconds
        return total / len(clocks)

    def _stepping(self, stepped: Sequence[StoredParameter]) -> float:
        """Seconds of the optimizer, remembered for stages with tensors of the same sizes."""
        values = self.lowered.values
        key = tuple(values[item.value].nbytes for item in stepped)
        found = self._optimizer_s.get(key)
        if found is None:
            found = self._optimizer_s[key] = self.costs.optimizer(
                stepped,
                values,
                self.optimizer,
                fused=self.executor.fused_optimizer,
                master=self.executor.master_weights,
                gradient_bytes=self.holds.gradient_itemsize,
            )
        return found

    def _share(self, clocks: Sequence[Clock]) -> None:
        """Gradients of parameters that several stages use are added up between them."""
        for item in self.row.returned:
            first, last = self.holds.stage_of(item.end), self.holds.stage_of(item.made)
            if not item.shared or first == last:
                continue
            # Of two, each sends the other half of what it has, and then half of the sum.
            ends = (first * self.stride, last * self.stride)
            seconds = self.costs.message(item.nbytes, *ends)
            together = max(clocks[first].now_s, clocks[last].now_s)
            for stage in (first, last):
                clock = clocks[stage]
                clock.stall("bubble", together - clock.now_s)
                clock.stall("gradient reduction", seconds)
                clock.communication_s += seconds
                clock.now_s = together + seconds

    def _clip(self, stage: int, clock: Clock, events: list[Event]) -> None:
        """The norm: a stage's part of its compute, and the collectives of all axes."""
        whole = self._whole_gradients
        share = self.holds.gradient_bytes(stage, own_dtype=True) / whole if whole else 0.0
        launch_s = self.costs.streaming(1)
        for task, reads in self.row.costed.clip:
            if reads and share != 1:
                fixed_s = min(task.seconds, launch_s)
                task = task._replace(seconds=fixed_s + (task.seconds - fixed_s) * share)
            self._in_line(clock, task, "collectives", stage, events)
        if self.stages > 1:
            seconds = self.costs.collective("all_reduce", self.stages, self.stride, 4)
            task = Task("sync", seconds, STAGE, "all_reduce", 4, 4)
            self._in_line(clock, task, "collectives", stage, events)

    # Results

    def _result(self, stage: int, clock: Clock) -> StageResult:
        memory = self.holds.memory(stage, clock)
        names = []
        for piece in self.holds.pieces_of(stage):
            block, copy = self.row.instances[piece.start]
            name = self.row.costed.blocks[block].name
            names.append(f"{name}#{copy}" if copy else name)
        return StageResult(
            modules=tuple(names),
            compute_s=clock.compute_s,
            communication_s=clock.communication_s,
            stalls=dict(clock.stalls),
            peak_memory_bytes=memory.peak_bytes,
            memory=memory.peak,
            peak_at=memory.peak_at,
            peak_source=memory.peak_source,
            curve=tuple(memory.curve),
        )

    def _simulation(
        self,
        step_s: float,
        optimizer_s: float,
        clocks: Sequence[Clock],
        results: Sequence[StageResult],
        events: list[Event],
    ) -> Simulation:
        count = len(results)
        fullest = max(results, key=lambda item: item.peak_memory_bytes)
        busiest = max(range(count), key=lambda stage: clocks[stage].communication_s)
        causes = dict.fromkeys(cause for item in results for cause in item.stalls)
        stalls = {cause: sum(r.stalls.get(cause, 0.0) for r in results) / count for cause in causes}
        collectives, before_merging = self.holds.collectives(busiest, self._buckets)
        filled = None
        if self.pipeline.stages > 1:
            filled = self.pipeline.model_copy(update={"cuts": cuts_of(self.row, self.bounds)})
        return Simulation(
            step_time_s=step_s,
            compute_s=sum(item.compute_s for item in results) / count - optimizer_s,
            communication_s=sum(item.communication_s for item in results) / count,
            optimizer_s=optimizer_s,
            peak_memory_bytes=fullest.peak_memory_bytes,
            memory=dict(fullest.memory),
            peak_at=fullest.peak_at,
            peak_source=fullest.peak_source,
            collectives=collectives,
            before_merging=before_merging,
            flops=self._flops() / count,
            events=tuple(sorted(events, key=lambda item: (item.start_s, item.end_s))),
            exposed_communication_s=sum(stalls.get(cause, 0.0) for cause in COMMUNICATION_STALLS),
            bubble=stalls.get("bubble", 0.0) / step_s if step_s else 0.0,
            stalls=stalls,
            stages=tuple(results),
            pipeline=filled,
            notes=tuple(self.notes),
        )

    def _flops(self) -> float:
        return self.microbatches * sum(
            phase.flops
            for piece in self.pieces
            for phase in (piece.forward, piece.inputs, piece.weights)
        )
