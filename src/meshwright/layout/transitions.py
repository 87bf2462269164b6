"""Transitions: the shortest known run of collectives from one layout to another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from meshwright.layout.cuts import compatible
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


@lru_cache(maxsize=1 << 14)
def transition(source: Layout, target: Layout) -> tuple[Step, ...]:
    """Steps that turn `source` into `target`, both with cuts in mesh order.

    Local cuts come first since they shrink what later steps move; then pending
    reductions, each straight into the cut that the target wants, and whole ones
    of what those leave; then moves of
    a cut from one place to another; gathers come last. Inner axes, whose links are
    the faster ones, are reduced first and gathered last, so that outer ones see
    parts. A step that others stand in the way of waits for them: axes that cut the
    same part of a dim nest, so the innermost is gathered first and the outermost
    cut first.
    """
    for axis, _ in target.partial:
        if source.reduction(axis) is None:
            raise AssertionError(f"{source} can't be made partial over {axis}")
    steps: list[Step] = []
    now = source
    while (step := _next(now, target)) is not None:
        steps.append(step)
        now = step.after
    if (sorted(now.shards), now.partial) != (sorted(target.shards), target.partial):
        raise AssertionError(f"{source} can't be turned into {target}, only into {now}")
    return tuple(steps)


def _next(now: Layout, target: Layout) -> Step | None:
    """The first step to take, None when nothing is left to do."""
    for axis, split in target.shards:
        free = now.split(axis) is None and now.reduction(axis) is None
        if free and _placeable(now, target, axis, split):
            return Step("shard", axis, now.with_shard(axis, split), cut=split)
    # Of one kind, those that leave a part come first, over inner axes before outer ones: the
    # others then reduce that part alone.
    pending = [item for item in now.partial if target.reduction(item[0]) is None]
    if len({reduce for _, reduce in now.partial}) == 1:
        parts = [item for item in reversed(pending) if target.split(item[0]) is not None]
        pending = [*parts, *(item for item in pending if target.split(item[0]) is None)]
    for axis, reduce in pending:
        wanted = target.split(axis)
        if wanted is None:
            return Step("all_reduce", axis, now.without(axis), reduce)
        if _placeable(now, target, axis, wanted):
            after = now.with_shard(axis, wanted)
            return Step("reduce_scatter", axis, after, reduce, cut=wanted)
    gatherable = [
        (axis, split)
        for axis, split in reversed(now.shards)
        if not _stays(now, target, axis) and _axes(now, split)[-1] == axis
    ]
    for axis, split in gatherable:
        wanted = target.split(axis)
        if wanted is not None and wanted != split and _placeable(now, target, axis, wanted):
            after = now.with_shard(axis, wanted)
            return Step("all_to_all", axis, after, gather=split, cut=wanted)
    # Where only moves are left that wait for each other, one of them is taken apart.
    # Else the outermost comes first, while little is left to gather.
    gatherable.reverse()
    for axis, split in sorted(gatherable, key=lambda item: target.split(item[0]) is not None):
        return Step("all_gather", axis, now.without(axis), gather=split)
    return None


def _axes(layout: Layout, split: Split) -> list[str]:
    """Axes that cut the very part that `split` does, outermost cut first."""
    part = (split.dim, split.outer, split.extent)
    return [a for a, other in layout.shards if (other.dim, other.outer, other.extent) == part]


def _stays(now: Layout, target: Layout, axis: str) -> bool:
    """Whether the cut over `axis` and all that it is nested in are those of the target."""
    split = now.split(axis)
    if split is None or target.split(axis) != split:
        return False
    held = _axes(now, split)
    count = held.index(axis) + 1
    return held[:count] == _axes(target, split)[:count]


def _placeable(now: Layout, target: Layout, axis: str, split: Split) -> bool:
    """Whether cutting by `split` over `axis` now gives what the target means by it."""
    rest = now.without(axis)
    wanted = _axes(target, split)
    return _axes(rest, split) == wanted[: wanted.index(axis)] and all(
        compatible(split, other) for _, other in rest.shards
    )
