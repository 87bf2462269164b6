"""One lowering for all devices that it is the same for.

A lowering asks for its device's coordinate only where the device decides: a cut that leaves
parts of unequal size, whose term of a sum a bias is, which positions it holds. What it asked
is noted; another device of which those answers are the same gets the same local program.
For ranks that are threads of one process, as in a check of a plan in lockstep.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from meshwright.layout.lowered import LoweredProgram

KEPT = 2  # of the plans asked for last


class Noted(Mapping[str, int]):
    """A device's coordinate that notes what is asked of it."""

    def __init__(self, coordinate: Mapping[str, int]) -> None:
        self._coordinate = coordinate
        self._numbers: set[str] = set()
        self._first: set[str] = set()

    def __getitem__(self, axis: str) -> int:
        self._numbers.add(axis)
        return self._coordinate[axis]

    def __iter__(self) -> Iterator[str]:
        self._numbers.update(self._coordinate)
        return iter(self._coordinate)

    def __len__(self) -> int:
        return len(self._coordinate)

    def first(self, axis: str) -> bool:
        self._first.add(axis)
        return self._coordinate[axis] == 0

    def holds_for(self, other: Mapping[str, int]) -> bool:
        """Whether the device at `other` would have got the same answers."""
        mine = self._coordinate
        return all(other[axis] == mine[axis] for axis in self._numbers) and all(
            (other[axis] == 0) == (mine[axis] == 0) for axis in self._first
        )


def first(coordinate: Mapping[str, int], axis: str) -> bool:
    """Whether the device is the first on `axis`; asks for no more than that."""
    return coordinate.first(axis) if isinstance(coordinate, Noted) else coordinate[axis] == 0


class Lowerings:
    """Local programs of the plans asked for last, each with the answers that it holds for."""

    def __init__(self) -> None:
        # By the identity of what is lowered, which is held here so that it stays unique.
        self._kept: dict[Hashable, tuple[Any, list[tuple[Noted, LoweredProgram]]]] = {}
        self._lock = threading.Lock()

    def get(
        self,
        of: tuple[Any, ...],
        how: Hashable,
        coordinate: Mapping[str, int],
        make: Callable[[Mapping[str, int]], LoweredProgram],
    ) -> LoweredProgram:
        """The local program of the device at `coordinate`, made by `make` of a coordinate.

        of, how: all that `make` lowers: objects, told apart by their identity, and settings.
        """
        key = (*map(id, of), how)
        with self._lock:
            found = self._kept.pop(key, None) or (of, [])
            self._kept[key] = found
            while len(self._kept) > KEPT:
                self._kept.pop(next(iter(self._kept)))
            for noted, lowered in found[1]:
                if noted.holds_for(coordinate):
                    return lowered
            noted = Noted(coordinate)
            lowered = make(noted)
            found[1].append((noted, lowered))
            return lowered
