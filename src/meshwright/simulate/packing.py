"""Merges collectives of once a step along a row of blocks, of which some stand for several.

The same rule as `meshwright.layout.merge` follows in a lowered program, for a model whose
blocks are not all in the program.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from meshwright.cost.scratch import merged_scratch
from meshwright.layout.buckets import Bucket, Packing
from meshwright.simulate.block import Allocation, Task

_MERGED = {"gather": ("all_gather",), "reduce": ("all_reduce", "reduce_scatter")}

Merge = Callable[[Sequence[Task]], Task]
"""Several collectives as one."""


def packed(
    blocks: Sequence[Sequence[Task]], limit: int, extent: Callable[[str], int], merge: Merge
) -> list[tuple[Task, ...]]:
    """Blocks' collectives in the order in which they run, with those of a bucket as one.

    A gather comes with the first block of its bucket, a reduction with the last.
    limit: of a bucket, in bytes. extent: devices of an axis.
    """
    packing = Packing[tuple[int, Task]](limit)
    found: list[list[Task]] = [[] for _ in blocks]
    for number, tasks in enumerate(blocks):
        for task in tasks:
            key = _key(task, extent)
            if key is None:
                found[number].append(task)
            else:
                packing.add(key, (number, task), task.nbytes)
    for bucket in packing.buckets:
        numbers = [number for number, _ in bucket.members]
        tasks = [task for _, task in bucket.members]
        at = min(numbers) if tasks[0].role == "gather" else max(numbers)
        found[at].append(merge(tasks) if len(tasks) > 1 else tasks[0])
    return [tuple(tasks) for tasks in found]


def asked(blocks: Sequence[Sequence[Task]]) -> list[Task]:
    """Blocks' gathers of once a step, all asked for at once, each with a key of its own."""
    return [
        task._replace(key=_once(number, index)) if task.kind else task
        for number, tasks in enumerate(blocks)
        for index, task in enumerate(tasks)
    ]


def arrivals(number: int, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The waits for those of one block."""
    return tuple(
        Task("arrive", 0.0, key=_once(number, index))
        for index, task in enumerate(tasks)
        if task.kind
    )


def _once(number: int, index: int) -> str:
    return f"once {number} {index}"


def reduce_peak(
    made: Sequence[Allocation], limit: int, extent: Callable[[str], int], cpu: bool
) -> int:
    """Most bytes, above the gradients, while they are reduced in buckets one after another."""
    packing = Packing[Allocation](limit)
    last: dict[int, Bucket[Allocation]] = {}
    for index, item in enumerate(made):
        key = _key(item.task, extent) if item.task else None
        if key is None or item.task is None:
            last[index] = Bucket(None, [item])
            continue
        bucket = packing.add(key, item, item.task.nbytes)
        for other in [at for at, seen in last.items() if seen is bucket]:
            del last[other]
        last[index] = bucket
    live = peak = 0
    for index in sorted(last):
        members = last[index].members
        live += sum(item.made for item in members)
        scratch, task = members[0].scratch, members[0].task
        if len(members) > 1 and task is not None:
            nbytes = sum(item.task.nbytes for item in members if item.task)
            scratch = merged_scratch(task.kind, nbytes, extent(task.axis), cpu)
        peak = max(peak, live + scratch)
        live -= sum(item.freed for item in members)
    return peak


def _key(task: Task, extent: Callable[[str], int]) -> Hashable | None:
    if task.kind not in _MERGED.get(task.role, ()) or extent(task.axis) == 1:
        return None
    return task.kind, task.axis, task.itemsize
