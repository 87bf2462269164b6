"""Transitions: the shortest known run of collectives from one layout to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meshwright.layout.types import Layout, Reduce, Split

StepKind = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "shard"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step over one axis; `after` is the layout that it leaves.

    `gather` is the split that all_gather and all_to_all undo, `cut` the one
    that reduce_scatter, all_to_all and shard make.
    """

    kind: StepKind
    axis: str
    after: Layout
    reduce: Reduce = "sum"
    gather: Split | None = None
    cut: Split | None = None


def transition(source: Layout, target: Layout) -> tuple[Step, ...]:
    """Steps that turn `source` into `target`, both with cuts in mesh order.

    Local cuts come first since they shrink what later steps move; then pending
    reductions, each straight into the cut that the target wants; then moves of
    a cut from one dim to another; gathers, innermost cut first, come last.
    """
    steps: list[Step] = []
    now = source
    for axis, _ in target.partial:
        if source.reduction(axis) is None:
            raise AssertionError(f"{source} can't be made partial over {axis}")

    def nested_inside(layout: Layout, axis: str, split: Split) -> list[str]:
        """Axes whose cuts were applied after `axis` to the same part of the same dim."""
        names = [name for name, _ in layout.shards]
        after = names.index(axis) + 1
        return [
            name
            for name, other in layout.shards[after:]
            if (other.dim, other.outer, other.extent) == (split.dim, split.outer, split.extent)
        ]

    # Gathers that stand in the way of an outer cut's change come first, innermost first.
    blocked: set[str] = set()
    for axis, split in now.shards:
        if target.split(axis) != split:
            blocked.update(nested_inside(now, axis, split))
    for axis, split in target.shards:
        if now.split(axis) is None:
            held = [
                name
                for name, other in now.shards
                if (other.dim, other.outer, other.extent) == (split.dim, split.outer, split.extent)
                and name
                in [n for n, _ in target.shards][[n for n, _ in target.shards].index(axis) + 1 :]
            ]
            blocked.update(held)
    for axis, split in reversed(now.shards):
        if axis in blocked:
            now = now.without(axis)
            steps.append(Step("all_gather", axis, now, gather=split))

    for axis, split in target.shards:
        if now.split(axis) is None and now.reduction(axis) is None:
            now = now.with_shard(axis, split)
            steps.append(Step("shard", axis, now, cut=split))
    for axis, reduce in now.partial:
        if target.reduction(axis) is not None:
            continue
        wanted = target.split(axis)
        if wanted is None:
            now = now.without(axis)
            steps.append(Step("all_reduce", axis, now, reduce))
        else:
            now = now.with_shard(axis, wanted)
            steps.append(Step("reduce_scatter", axis, now, reduce, cut=wanted))
    for axis, split in reversed(now.shards):
        wanted = target.split(axis)
        if wanted == split:
            continue
        if wanted is None:
            now = now.without(axis)
            steps.append(Step("all_gather", axis, now, gather=split))
        else:
            now = now.with_shard(axis, wanted)
            steps.append(Step("all_to_all", axis, now, gather=split, cut=wanted))
    return tuple(steps)
