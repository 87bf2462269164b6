"""Pieces of the model that stages hold: their phases, what they keep, what they hand on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from meshwright.errors import UsageError
from meshwright.plan.types import Pipeline, Recompute
from meshwright.program.types import ITEM_BYTES
from meshwright.simulate.block import Allocation, Block, Bytes, Task, Work
from meshwright.simulate.copies import Row
from meshwright.simulate.executor import Executor
from meshwright.simulate.section import ACTIVATIONS, GATHERED

Recost = Callable[[Task, int], Task]
"""The task with another payload, in bytes."""


@dataclass(slots=True)
class Phase:
    """Tasks of one piece for one microbatch, a tuple for each block, in order."""

    blocks: list[tuple[Task, ...]] = field(default_factory=list)
    compute_s: float = 0.0
    host_s: float = 0.0
    flops: float = 0.0


@dataclass(slots=True)
class Held:
    """Memory of a phase. peak: above what is held when it starts, received values included."""

    peak: Bytes = (0, 0, 0)
    at: str = ""
    source: str = ""


@dataclass(slots=True)
class Piece:
    """Instances `start` to `stop` of the row.

    forward, inputs, weights: one microbatch; `inputs` also has what is computed again.
    saved: kept from a microbatch's forward to its backward; gathered parameters in it
    are shared by all microbatches. sends_forward, sends_backward: bytes to the next
    piece and to the one before. accumulated: bytes of gradients that are added up, and
    gradients: the same as the microbatch makes them, storage by storage.
    """

    start: int
    stop: int
    forward: Phase = field(default_factory=Phase)
    inputs: Phase = field(default_factory=Phase)
    weights: Phase = field(default_factory=Phase)
    gather: list[tuple[Task, ...]] = field(default_factory=list)
    reduce: list[tuple[Task, ...]] = field(default_factory=list)
    forward_memory: Held = field(default_factory=Held)
    backward_memory: Held = field(default_factory=Held)
    saved: Bytes = (0, 0, 0)
    sends_forward: int = 0
    sends_backward: int = 0
    accumulated: int = 0
    gradients: list[int] = field(default_factory=list)
    once_gathered: int = 0
    largest_gather: int = 0
    beside_bytes: int = 0
    reducing: list[Allocation] = field(default_factory=list)
    reduce_peak: int = 0


def block_seconds(block: Block, recompute: Recompute) -> float:
    """Time of a microbatch in a block, nothing overlapped: what cuts are balanced by."""
    works = [block.forward, block.inputs, block.weights]
    if recompute == "full" and block.repeated:
        works.append(block.forward)
    elif recompute == "selective":
        works.append(block.core)
    return sum(max(work.compute_s, work.host_s) + work.communication_s for work in works)


def boundaries(row: Row, pipeline: Pipeline | None, recompute: Recompute) -> list[int]:
    """Where pieces start, in instances, and the end. Raises UsageError for bad cuts."""
    count = len(row.instances)
    pieces = pipeline.pieces if pipeline else 1
    if pieces > count:
        raise UsageError(
            f"The model has {count} modules that a stage can begin with, too few for {pieces} "
            "pieces.",
            "Use fewer stages, or fewer virtual stages.",
        )
    if pipeline is not None and pipeline.cuts:
        bounds = [0, *(row.position(cut) for cut in pipeline.cuts), count]
        if any(later <= earlier for earlier, later in pairwise(bounds)):
            raise UsageError(
                f"The pipeline is cut at {', '.join(pipeline.cuts)}, which leaves a piece empty "
                "or is not the model's order.",
                "Name the cuts in the order in which the modules run, each once.",
            )
        return bounds
    times = [block_seconds(row.block(position), recompute) for position in range(count)]
    kept = [sum(row.block(position).saved) for position in range(count)]
    return balanced(times, kept, pieces)


def balanced(times: Sequence[float], weights: Sequence[int], pieces: int) -> list[int]:
    """Bounds of contiguous pieces, none empty, whose longest takes least; of such, the evenest
    weights: the heaviest piece is as light as can be. Dynamic programming over ends of pieces.
    """
    count = len(times)
    sums = [0.0, *accumulate(times)]
    heavy = [0, *accumulate(weights)]

    def longest(limit: float) -> bool:
        """Whether pieces of at most `limit` suffice."""
        at = 0
        for left in range(pieces, 0, -1):
            if left == 1:
                return sums[count] - sums[at] <= limit
            reach = bisect_right(sums, sums[at] + limit, at + 1) - 1
            if reach <= at:
                return False
            at = min(reach, count - left + 1)
        return False

    low, high = max(times, default=0.0), sums[count]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if longest(middle) else (middle, high)
    limit = high * (1 + 1e-12)
    # best[end]: the heaviest of the pieces so far, as light as can be, and where the last starts.
    best: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for number in range(1, pieces + 1):
        found: dict[int, tuple[int, int]] = {}
        for start, (heaviest, _) in best[-1].items():
            for end in range(start + 1, count - (pieces - number) + 1):
                if sums[end] - sums[start] > limit:
                    break
                weight = max(heaviest, heavy[end] - heavy[start])
                if end not in found or weight < found[end][0]:
                    found[end] = (weight, start)
        best.append(found)
    bounds = [count]
    for number in range(pieces, 0, -1):
        bounds.append(best[number][bounds[-1]][1])
    return bounds[::-1]


def cuts_of(row: Row, bounds: Sequence[int]) -> tuple[str, ...]:
    """The names of the cuts, as a plan has them."""
    names = []
    for position in bounds[1:-1]:
        block, copy = row.instances[position]
        name = row.costed.blocks[block].name
        names.append(f"{name}#{copy}" if copy else name)
    return tuple(names)


def pieces(
    row: Row,
    bounds: Sequence[int],
    recompute: Recompute,
    executor: Executor,
    recost: Recost,
    parts: int = 1,
) -> list[Piece]:
    """parts: into how many a value is cut that goes to the next piece."""
    found = [
        _Assembly(row, start, stop, recompute, executor, recost).run()
        for start, stop in pairwise(bounds)
    ]
    for index in range(1, len(found)):
        at = bounds[index]
        found[index - 1].sends_forward = sum(
            item.sent for item in row.passed if item.made < at <= item.end
        )
        found[index].sends_backward = sum(
            item.sent for item in row.returned if item.end < at <= item.made
        )
        if executor.keeps_sent:
            kept = sum(item.nbytes for item in row.passed if item.made < at <= item.end)
            activations, gathered, gradients = found[index - 1].saved
            found[index - 1].saved = (activations + kept // parts, gathered, gradients)
    return found


_OF_OWNERS = {"all_gather": "broadcast", "reduce_scatter": "all_reduce"}


class _Assembly:
    def __init__(
        self,
        row: Row,
        start: int,
        stop: int,
        recompute: Recompute,
        executor: Executor,
        recost: Recost,
    ) -> None:
        self.row, self.start, self.stop = row, start, stop
        self.recompute, self.executor, self.recost = recompute, executor, recost
        self.blocks = [row.block(position) for position in range(start, stop)]
        self.piece = Piece(start, stop)

    def again(self, block: Block) -> Work | None:
        """What the backward computes again of a block."""
        if self.recompute == "full" and block.repeated:
            return block.forward
        if self.recompute == "selective" and block.core.tasks:
            return block.core
        return None

    def run(self) -> Piece:
        piece = self.piece
        for block in self.blocks:
            self._add(piece.forward, [block.forward])
            piece.gather.append(self._merged([self._owned(task) for task in block.gather.tasks]))
            piece.once_gathered += block.gather_bytes
            piece.largest_gather = max(piece.largest_gather, block.gathered_bytes)
            piece.beside_bytes = max(piece.beside_bytes, block.beside_bytes)
        for block in reversed(self.blocks):
            again = self.again(block)
            works = [self._beside_weights(block)]
            if again is not None:
                gathers_anew = any(
                    task.role == "gather" for task in (*block.inputs.tasks, *block.weights.tasks)
                )
                works.insert(0, _without_gathers(again) if gathers_anew else _in_line(again))
            self._add(piece.inputs, works)
            self._add(piece.weights, [block.weights])
            reduce = (self._owned(self._scaled(task)) for task in block.reduce.tasks)
            piece.reduce.append(tuple(reduce))
            for nbytes, itemsize in block.accumulated.values():
                piece.gradients.append(nbytes)
                piece.accumulated += nbytes * self._gradient_itemsize(itemsize) // itemsize
        self._shared_gradients()
        self._memory()
        self._reduce_peak()
        return piece

    def _beside_weights(self, block: Block) -> Work:
        """The backward's collectives as far as they do not run beside `weights`."""
        whole = sum(task.seconds for task in block.inputs.tasks if task.role == "sync")
        if not self.executor.overlap_tensor or not block.hidden_s or not whole:
            return block.inputs
        left = max(0.0, 1 - block.hidden_s / whole)
        rest = Work(
            [
                task._replace(seconds=task.seconds * left) if task.role == "sync" else task
                for task in block.inputs.tasks
            ]
        )
        inputs = block.inputs
        rest.compute_s, rest.host_s, rest.flops = inputs.compute_s, inputs.host_s, inputs.flops
        return rest

    def _gradient_itemsize(self, itemsize: int) -> int:
        given = self.executor.gradient_dtype
        return ITEM_BYTES[given] if given else itemsize

    def _scaled(self, task: Task) -> Task:
        """A gradient's collective in the dtype in which gradients are added up."""
        if task.role != "reduce" or not task.kind or not self.executor.gradient_dtype:
            return task
        return self.recost(
            task, task.nbytes // task.itemsize * self._gradient_itemsize(task.itemsize)
        )

    def _owned(self, task: Task) -> Task:
        """A collective of once a step as it is where one device owns a whole parameter."""
        kind = _OF_OWNERS.get(task.kind) if self.executor.whole_owners else None
        return self.recost(task._replace(kind=kind), task.nbytes) if kind else task

    def _add(self, phase: Phase, works: Iterable[Work]) -> None:
        tasks: list[Task] = []
        for work in works:
            tasks += work.tasks
            phase.compute_s += work.compute_s
            phase.host_s += work.host_s
            phase.flops += work.flops
        phase.blocks.append(self._merged([self._scaled(task) for task in tasks]))

    def _merged(self, tasks: Sequence[Task]) -> tuple[Task, ...]:
        """Gathers of a block as one at its start, reductions as one at its end."""
        if not self.executor.bucket_bytes:
            return tuple(tasks)
        gathers: dict[tuple[str, str, int], Task] = {}
        reductions: dict[tuple[str, str, int], Task] = {}
        rest: list[Task] = []
        for task in tasks:
            into = {"gather": gathers, "reduce": reductions}.get(task.role)
            if into is None or not task.kind or task.kind == "broadcast":
                rest.append(task)
                continue
            key = (task.kind, task.axis, task.itemsize)
            seen = into.get(key)
            into[key] = task if seen is None else seen._replace(
                nbytes=seen.nbytes + task.nbytes, tensors=seen.tensors + task.tensors
            )  # fmt: skip

        def made(found: dict[tuple[str, str, int], Task]) -> list[Task]:
            return [self.recost(task, task.nbytes) for task in found.values()]

        return (*made(gathers), *rest, *made(reductions))

    def _shared_gradients(self) -> None:
        """This piece's terms of gradients that other pieces finish are added up here."""
        for item in self.row.returned:
            if item.shared and self.start <= item.made < self.stop and item.end < self.start:
                self.piece.gradients.append(item.nbytes)
                self.piece.accumulated += item.nbytes

    def _memory(self) -> None:
        piece, start, stop = self.piece, self.start, self.stop
        again = [self.again(block) is not None for block in self.blocks]
        full = self.recompute == "full"
        saved = [0, 0, 0]
        for block, drop in zip(self.blocks, again, strict=True):
            if drop and full:
                continue
            for kind in range(3):
                saved[kind] += block.saved[kind]
            saved[ACTIVATIONS] -= self._dropped(block)
        received = [0, 0, 0]
        outputs = [0] * len(self.blocks)  # that a block made again makes for its own backward
        for item in self.row.passed:
            if item.made >= stop or item.end < start:
                continue
            kind = GATHERED if item.derived else ACTIVATIONS
            users = [p for p in (*item.forward, *item.backward) if start <= p < stop]
            if item.made < start and users:
                received[kind] += item.nbytes
            kept = any(
                start <= p < stop and not (full and again[p - start] and p == item.made)
                for p in item.backward
            ) or any(start <= p < stop and full and again[p - start] for p in item.forward)
            if kept:
                saved[kind] += item.nbytes
            elif start <= item.made < stop and item.made in item.backward:
                outputs[item.made - start] += item.nbytes
        piece.saved = (saved[0], saved[1], saved[2])
        self._forward_memory(received)
        self._backward_memory(again, full, outputs)

    def _forward_memory(self, received: list[int]) -> None:
        """Blocks keep, as they run, what they give to their own backward unless it is dropped."""
        live = list(received)
        best = Held(peak=(live[0], live[1], live[2]), at="start")
        for block in self.blocks:
            memory = block.forward_memory
            best = _higher(best, live, memory.peak, memory.peak_op)
            dropped = self._dropped(block)
            for kind in range(3):
                live[kind] += memory.net[kind]
            live[ACTIVATIONS] -= dropped
        self.piece.forward_memory = best

    def _dropped(self, block: Block) -> int:
        again = self.again(block) is not None
        if again and self.recompute == "full":
            return block.saved[ACTIVATIONS]
        dropped = block.core_saved if again else 0
        return dropped + (block.regathered if self.executor.regathers else 0)

    def _backward_memory(self, again: list[bool], full: bool, outputs: list[int]) -> None:
        returned = [
            item.nbytes
            for item in self.row.returned
            if item.made >= self.stop > item.end >= self.start and not item.shared
        ]
        live = [sum(returned), 0, 0]
        best = Held(peak=(live[0], 0, 0), at="start")
        for index in range(len(self.blocks) - 1, -1, -1):
            block, memory = self.blocks[index], self.blocks[index].backward_memory
            if again[index]:
                if full:
                    forward = block.forward_memory
                    best = _higher(best, live, forward.peak, forward.peak_op)
                live[ACTIVATIONS] += outputs[index]
            live[ACTIVATIONS] += self._dropped(block)
            best = _higher(best, live, memory.peak, memory.peak_op)
            for kind in range(3):
                live[kind] += memory.net[kind]
        self.piece.backward_memory = best

    def _reduce_peak(self) -> None:
        live = peak = 0
        self.piece.reducing = [a for block in reversed(self.blocks) for a in block.reduce_allocates]
        for made, freed, scratch, _ in self.piece.reducing:
            live += made
            peak = max(peak, live + scratch)
            live -= freed
        self.piece.reduce_peak = peak


def _higher(best: Held, live: Sequence[int], peak: Bytes, op: object) -> Held:
    total = sum(live) + sum(peak)
    if op is None or total <= sum(best.peak):
        return best
    name, source = getattr(op, "name", ""), getattr(op, "source", "")
    both = (live[0] + peak[0], live[1] + peak[1], live[2] + peak[2])
    return Held(both, name, str(source))


def _without_gathers(work: Work) -> Work:
    rest = Work([task for task in work.tasks if task.role not in ("gather", "arrive")])
    rest.compute_s, rest.host_s, rest.flops = work.compute_s, work.host_s, work.flops
    return rest


def _in_line(work: Work) -> Work:
    """With gathers that the forward asked for ahead where they stand."""
    if not any(task.key for task in work.tasks):
        return work
    tasks = [task._replace(key="", after="", role="sync") if task.key else task
             for task in work.tasks if task.role != "arrive"]  # fmt: skip
    rest = Work(tasks)
    rest.compute_s, rest.host_s, rest.flops = work.compute_s, work.host_s, work.flops
    return rest
