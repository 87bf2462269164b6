"""The device mesh: named axes over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Mesh:
    """Ranks arranged row-major over named axes: the last axis varies fastest.

    The last axis therefore lies inside a host wherever it fits there.
    """

    axes: tuple[tuple[str, int], ...]

    @cached_property
    def size(self) -> int:
        n = 1
        for _, extent in self.axes:
            n *= extent
        return n

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.axes)

    def extent(self, axis: str) -> int:
        return dict(self.axes)[axis]

    def coordinate(self, rank: int) -> Mapping[str, int]:
        """Position of `rank` on each axis."""
        position: dict[str, int] = {}
        for name, extent in reversed(self.axes):
            rank, position[name] = divmod(rank, extent)
        return position

    def peers(self, rank: int, axis: str) -> tuple[int, ...]:
        """Ranks that differ from `rank` on `axis` alone, in order of their coordinate."""
        stride = 1
        for name, extent in reversed(self.axes):
            if name == axis:
                first = rank - (rank // stride % extent) * stride
                return tuple(first + i * stride for i in range(extent))
            stride *= extent
        raise KeyError(axis)

    def stride(self, axis: str) -> int:
        """Distance in rank between neighbours on `axis`."""
        stride = 1
        for name, extent in reversed(self.axes):
            if name == axis:
                return stride
            stride *= extent
        raise KeyError(axis)
