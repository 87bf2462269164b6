"""What lies on each stage: pieces, parameters, the batch, and the memory that takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshwright.cost.memory import optimizer_cost
from meshwright.cost.table import CostTable
from meshwright.layout.lowered import LoweredProgram, StoredParameter
from meshwright.plan.types import STAGE, Collective
from meshwright.program.types import ITEM_BYTES
from meshwright.simulate.block import Task
from meshwright.simulate.copies import Row
from meshwright.simulate.device_memory import DeviceMemory
from meshwright.simulate.engine import Clock
from meshwright.simulate.executor import Executor
from meshwright.simulate.pieces import Piece


class Contents:
    """Of all stages; piece p lies on stage p mod stages."""

    def __init__(
        self,
        lowered: LoweredProgram,
        costs: CostTable,
        row: Row,
        pieces: list[Piece],
        stages: int,
        microbatches: int,
        optimizer: str,
        executor: Executor,
        detail: bool,
    ) -> None:
        self.lowered, self.costs, self.row = lowered, costs, row
        self.pieces, self.stages, self.microbatches = pieces, stages, microbatches
        self.optimizer, self.executor, self.detail = optimizer, executor, detail
        self._stepped: dict[int, list[StoredParameter]] = {}

    def pieces_of(self, stage: int) -> list[Piece]:
        return self.pieces[stage :: self.stages]

    def stage_of(self, position: int) -> int:
        number = next(n for n, piece in enumerate(self.pieces) if position < piece.stop)
        return number % self.stages

    @property
    def gradient_itemsize(self) -> int | None:
        given = self.executor.gradient_dtype
        return ITEM_BYTES[given] if given else None

    def parameters(self, stage: int) -> list[StoredParameter]:
        """Of all blocks of the stage; one that several of its blocks use counts once."""
        if stage in self._stepped:
            return self._stepped[stage]
        found: dict[tuple[int, int], StoredParameter] = {}
        for piece in self.pieces_of(stage):
            for position in range(piece.start, piece.stop):
                number, copy = self.row.instances[position]
                for index in self.row.costed.blocks[number].parameters:
                    found[index, copy] = self.lowered.parameters[index]
        self._stepped[stage] = list(found.values())
        return self._stepped[stage]

    def gradient_bytes(self, stage: int, own_dtype: bool = False) -> int:
        """Bytes of gradients as the optimizer gets them."""
        total = 0
        for item in self.parameters(stage):
            if item.gradient is not None:
                value = self.lowered.values[item.gradient]
                itemsize = None if own_dtype else self.gradient_itemsize
                total += value.numel * (itemsize or ITEM_BYTES[value.dtype])
        return total

    def batch_bytes(self, stage: int) -> int:
        """The batch, all microbatches of it, where a block of the stage uses it."""
        used: set[str] = set()
        for piece in self.pieces_of(stage):
            for position in range(piece.start, piece.stop):
                used |= self.row.block(position).batch
        return sum(self.lowered.values[name].nbytes for name in used) * self.microbatches

    def memory(self, stage: int, clock: Clock) -> DeviceMemory:
        values, held = self.lowered.values, self.pieces_of(stage)
        stepped = self.parameters(stage)
        cost = optimizer_cost(self.optimizer)
        master = self.executor.master_weights
        state = parameters = 0
        inside: set[str] = set()
        if self.executor.gathers_in_place:
            inside.update(*(op.operands() for op in self.lowered.gather.ops))
        for item in stepped:
            value = values[item.value]
            parameters += 0 if item.value in inside else value.nbytes
            if item.trainable and item.gradient is not None:
                mixed = master and ITEM_BYTES[value.dtype] < 4 and cost.ops
                state += (
                    value.numel * 4 * (1 + cost.states) if mixed else value.nbytes * cost.states
                )
                if mixed and self.executor.master_gradients and not self.executor.gradient_dtype:
                    state += value.numel * 4
        if self.executor.master_gradients and self.executor.gradient_dtype:
            state += sum(nbytes for piece in held for nbytes in piece.gradients)
        positions = [p for piece in held for p in range(piece.start, piece.stop)]
        constants = {values[name].storage for name in self.lowered.constants.values()}
        always = {
            "parameters": parameters,
            "optimizer": state,
            "buffers": sum(self.row.block(p).buffer_bytes for p in positions)
            + sum(values[name].nbytes for name in constants if name in values),
            "batch": self.batch_bytes(stage),
        }
        cached = self.executor.cached_allocator or any(
            profile.device != "cpu" for profile in self.costs.profiles
        )
        unused = self.costs.constants.memory_fragmentation if cached else None
        memory = DeviceMemory(always, self.executor.gradient_buffer, unused)
        gathered = sum(piece.once_gathered for piece in held)
        if self.executor.asks_ahead:  # the program says what is there when
            gathered += max((piece.beside_bytes for piece in held), default=0)
        elif self.executor.overlap_gathers:  # the next block's, while this one's are in use
            gathered += max((piece.largest_gather for piece in held), default=0)
        memory.turns(held, clock.turns, gathered, self.detail)
        added = sum(piece.accumulated for piece in held)
        if not self.executor.gradient_buffer:
            peak = max((piece.reduce_peak for piece in held), default=0)
            memory.see("reduce", "", "", (0, 0, added + peak), clock.now_s, False)
        gradients = self.gradient_bytes(stage)
        # PyTorch steps one tensor after another on CPUs, and all at once on accelerators.
        at_once = any(profile.device != "cpu" for profile in self.costs.profiles)
        sizes = [values[item.value].nbytes for item in stepped if item.trainable]
        largest = sum(sizes) if at_once else max(sizes, default=0)
        scratch = 0 if self.executor.fused_optimizer else largest * cost.scratch
        kept = max(gradients, added) if self.executor.gradient_buffer else gradients
        memory.see("optimizer", "", "", (scratch, 0, kept), clock.now_s, self.detail)
        return memory

    def collectives(
        self, stage: int, buckets: Callable[[Piece], list[tuple[Task, ...]]]
    ) -> tuple[tuple[Collective, ...], tuple[Collective, ...]]:
        """Per device and step, as they run and with one for each tensor; `buckets` are a
        piece's reductions of once a step."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        tensors: dict[tuple[str, str], int] = {}

        def count(tasks: Sequence[Task], times: int) -> None:
            for task in tasks:
                if task.kind:
                    number, nbytes = found.get((task.kind, task.axis), (0, 0))
                    found[task.kind, task.axis] = number + times, nbytes + times * task.nbytes
                    alone = tensors.get((task.kind, task.axis), 0)
                    tensors[task.kind, task.axis] = alone + times * task.tensors

        for piece in self.pieces_of(stage):
            for phase in (piece.forward, piece.inputs, piece.weights):
                for tasks in phase.blocks:
                    count(tasks, self.microbatches)
            for tasks in (*piece.gather, *buckets(piece)):
                count(tasks, 1)
            for nbytes in (piece.sends_forward, piece.sends_backward):
                if nbytes and self.stages > 1:
                    count([Task("sync", 0.0, STAGE, "send", nbytes)], self.microbatches)
        count([task for task, _ in self.row.costed.clip], 1)
        return tuple(
            Collective(kind=kind, axis=axis, count=number, bytes=nbytes)
            for (kind, axis), (number, nbytes) in sorted(found.items())
        ), tuple(
            Collective(kind=kind, axis=axis, count=tensors[kind, axis], bytes=nbytes)
            for (kind, axis), (_, nbytes) in sorted(found.items())
        )
