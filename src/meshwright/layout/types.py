"""Layouts: how one value lies on the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from meshwright.cluster.mesh import Mesh

Reduce = Literal["sum", "max", "min", "prod"]


@dataclass(frozen=True, slots=True, order=True)
class Split:
    """A way to divide one dim of a tensor: view it as [outer, extent, minor] and cut `extent`.

    A plain split of a dim of size D is `Split(dim, 1, D)`. The heads of a fused
    query-key-value projection of size 3*H*K are `Split(dim, 3, H)`: every
    device gets its heads of all three parts. The cut follows `torch.chunk`:
    parts of ceil(extent / n), the last ones shorter or empty.

    Device `shift` of the axis has the first part, the one after it the second,
    and so on round. A split of extent 1 has one part: `Split(dim, 1, 1, j)`
    leaves the whole tensor on device j and nothing on the others.
    """

    dim: int
    outer: int
    extent: int
    shift: int = 0

    def number(self, index: int, parts: int) -> int:
        """Which part device `index` of `parts` has."""
        return (index - self.shift) % parts

    def part(self, index: int, parts: int) -> tuple[int, int]:
        """First index and count, within `extent`, of part `index` of `parts`."""
        step = -(-self.extent // parts)
        start = min(index * step, self.extent)
        return start, min(step, self.extent - start)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one value lies on the mesh; an axis that is named nowhere holds replicas.

    `shards` lists (axis, split) in the order in which the cuts are applied:
    two axes on one dim cut each other's parts, and the later split's `extent`
    is still stated for the whole tensor. `partial` lists (axis, reduction)
    for axes on which every device holds one term of a pending reduction.
    """

    shards: tuple[tuple[str, Split], ...] = ()
    partial: tuple[tuple[str, Reduce], ...] = ()

    def split(self, axis: str) -> Split | None:
        for name, split in self.shards:
            if name == axis:
                return split
        return None

    def reduction(self, axis: str) -> Reduce | None:
        for name, reduce in self.partial:
            if name == axis:
                return reduce
        return None

    def with_shard(self, axis: str, split: Split) -> Layout:
        bare = self.without(axis)
        return Layout((*bare.shards, (axis, split)), bare.partial)

    def with_partial(self, axis: str, reduce: Reduce) -> Layout:
        bare = self.without(axis)
        return Layout(bare.shards, tuple(sorted((*bare.partial, (axis, reduce)))))

    def without(self, axis: str) -> Layout:
        if not self.shards and not self.partial:
            return self
        return Layout(
            tuple(item for item in self.shards if item[0] != axis),
            tuple(item for item in self.partial if item[0] != axis),
        )


REPLICATED = Layout()


def local_shape(
    shape: tuple[int, ...], layout: Layout, mesh: Mesh, coordinate: Mapping[str, int]
) -> tuple[int, ...]:
    """Shape of the part that the device at `coordinate` holds."""
    sizes = list(shape)
    for split, extent, count in shares(layout, mesh, coordinate):
        sizes[split.dim] = sizes[split.dim] // extent * count if extent else 0
    return tuple(sizes)


def shares(
    layout: Layout, mesh: Mesh, coordinate: Mapping[str, int]
) -> list[tuple[Split, int, int]]:
    """Each cut of `layout` as (split, extent that it divides, how much of it the device holds).

    Asks for the device's coordinate only where parts differ in size.
    """
    result = []
    left: dict[tuple[int, int, int], int] = {}
    for axis, split in layout.shards:
        key = (split.dim, split.outer, split.extent)
        extent = left.get(key, split.extent)
        parts = mesh.extent(axis)
        count = share(split, extent, axis, parts, coordinate)
        result.append((split, extent, count))
        left[key] = count
    return result


def share(split: Split, extent: int, axis: str, parts: int, coordinate: Mapping[str, int]) -> int:
    """How much of `extent` the device at `coordinate` holds."""
    if extent % parts == 0:
        return extent // parts
    index = split.number(coordinate[axis], parts)
    return Split(split.dim, split.outer, extent).part(index, parts)[1]


def cuts(
    shape: tuple[int, ...], layout: Layout, mesh: Mesh, coordinate: Mapping[str, int]
) -> list[tuple[Split, int, int, int]]:
    """Each cut of `layout` as (split, parts, number of the part, extent that this cut divides).

    When several axes cut one dim, the extent that a later cut divides is what
    the earlier ones left to this device.
    """
    held = shares(layout, mesh, coordinate)
    return [
        (split, mesh.extent(axis), split.number(coordinate[axis], mesh.extent(axis)), extent)
        for (axis, split), (_, extent, _) in zip(layout.shards, held, strict=True)
    ]
