"""Which links join the devices of an axis: pure arithmetic on ranks.

Ranks count the devices of a host first, then hosts, then groups of hosts. An
axis of `extent` devices that are `stride` ranks apart cuts all ranks into
blocks of `extent * stride` neighbours (`cluster.mesh`), and every block holds
`stride` sets of devices that communicate, all at once.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from math import ceil, gcd
from typing import NamedTuple

from meshwright.cluster.types import Cluster, HostGroup, LinkLevel

__all__ = ["Reach", "Span", "level_between", "reach"]


class Span(NamedTuple):
    """One level of links that a set of devices communicates over.

    extent: how many units of the level below it joins, single devices below the first.
    """

    level: LinkLevel
    extent: int


class Reach(NamedTuple):
    """How the sets of an axis lie in one group of hosts.

    spans: levels that join at least two of a set's members, innermost first.
    Their extents multiply to the axis's where all hosts hold equally many
    members. A set that crosses the border of groups has what joins the groups
    as its last span, and in it as many units as it lies in groups.
    """

    group: HostGroup
    spans: tuple[Span, ...]


def reach(cluster: Cluster, extent: int, stride: int) -> tuple[Reach, ...]:
    """Every way in which sets of `extent` devices `stride` ranks apart lie in `cluster`.

    For each group of hosts: sets inside it, and sets that cross one of its
    borders. Where blocks lie unevenly on the units of a level, the worst is
    given, which crosses most borders. Empty for an extent of 1. Raises
    ValueError for an extent or stride below 1.
    """
    if extent < 1 or stride < 1:
        raise ValueError(f"no axis has an extent of {extent} at a stride of {stride}")
    if extent == 1:
        return ()
    block = extent * stride
    borders = [0, *accumulate(group.size for group in cluster.groups)]
    ways = []
    for group, (start, stop) in zip(cluster.groups, pairwise(borders), strict=True):
        first = ceil(start / block) * block
        if first + block <= stop:
            ways.append(Reach(group, _spans(group, extent, stride, start)))
        for block_start in _crossing(start, stop, block, cluster.size):
            overlap = min(stop, block_start + block) - max(start, block_start)
            inside = max(1, overlap // stride)
            touched = _touched(borders, block_start, block)
            spans = _spans(group, inside, stride, start)
            ways.append(Reach(group, (*spans, Span(cluster.outermost, touched))))
    return tuple(ways)


def level_between(cluster: Cluster, a: int, b: int) -> LinkLevel | None:
    """The innermost level that joins ranks `a` and `b`; None where they are one device.

    Raises ValueError for a rank that the cluster does not have.
    """
    if not (0 <= a < cluster.size and 0 <= b < cluster.size):
        raise ValueError(f"no ranks {a} and {b} in a cluster of {cluster.size}")
    if a == b:
        return None
    start = 0
    for group in cluster.groups:
        inside = [start <= rank < start + group.size for rank in (a, b)]
        if all(inside):
            return next(
                level
                for level in group.levels
                if (a - start) // level.devices == (b - start) // level.devices
            )
        start += group.size
    return cluster.outermost


def _spans(group: HostGroup, extent: int, stride: int, start: int) -> tuple[Span, ...]:
    block = extent * stride
    spans = []
    joined = 1  # members of a set that the levels so far have joined
    for level in group.levels:
        if level.devices == group.size:
            members = extent
        else:
            # Blocks and units both repeat at this distance, so every block has a border of
            # a unit at each multiple of it.
            members = max(1, gcd(level.devices, block, start) // stride)
        if members > joined:
            spans.append(Span(level, ceil(members / joined)))
            joined = members
        if joined >= extent:
            break
    return tuple(spans)


def _crossing(start: int, stop: int, block: int, size: int) -> list[int]:
    """First ranks of the blocks that cross a border of the ranks from `start` to `stop`."""
    found = []
    if start % block:
        found.append(start - start % block)
    last = stop - stop % block
    if stop % block and stop < size and last not in found:
        found.append(last)
    return found


def _touched(borders: list[int], first: int, block: int) -> int:
    """How many groups the block from rank `first` on lies in."""
    return sum(1 for start, stop in pairwise(borders) if start < first + block and stop > first)
