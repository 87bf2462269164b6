"""Which tensors share a collective: the one rule, for what runs and for what is predicted.

Tensors come in the order in which a step makes them. One of `limit` bytes or more is a
bucket of its own, since nothing is gained by copying it next to others; smaller ones fill
the open bucket of their key until it holds `limit` bytes. PyTorch's DistributedDataParallel
fills buckets of 25 MiB likewise (Li et al. 2020, "PyTorch Distributed").
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Bucket(Generic[T]):
    key: Hashable
    members: list[T] = field(default_factory=list)
    nbytes: int = 0


class Packing(Generic[T]):
    """Buckets in the order in which they were begun; 0 for `limit` leaves every tensor alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.buckets: list[Bucket[T]] = []
        self._open: dict[Hashable, Bucket[T]] = {}

    def add(self, key: Hashable, member: T, nbytes: int) -> Bucket[T]:
        """The bucket that the tensor goes to."""
        found = self._open.get(key)
        if found is None or nbytes >= self.limit:
            bucket = Bucket[T](key)
            self.buckets.append(bucket)
            if nbytes < self.limit:
                self._open[key] = bucket
            found = bucket
        found.members.append(member)
        found.nbytes += nbytes
        if found.nbytes >= self.limit and self._open.get(key) is found:
            del self._open[key]
        return found

    def open(self, key: Hashable, nbytes: int) -> Bucket[T] | None:
        """The bucket, if there is one already, that a tensor of so many bytes would go to."""
        return self._open.get(key) if nbytes < self.limit else None

    def close(self, key: Hashable | None = None) -> None:
        """Begin new buckets from here on, for one key or for all."""
        if key is None:
            self._open.clear()
        else:
            self._open.pop(key, None)


def blocks_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The repeated block that each parameter lies in, by path; `` outside of any.

    Blocks are the members of the outermost lists of modules (paths with numbers) of which
    at least two hold parameters of the same names and shapes.
    """
    found = dict.fromkeys(shapes, "")
    _divide(sorted(shapes), 0, shapes, found)
    return found


def _divide(
    paths: list[str], depth: int, shapes: Mapping[str, tuple[int, ...]], found: dict[str, str]
) -> None:
    """Look below the first `depth` names that all the paths share."""
    children: dict[str, list[str]] = {}
    for path in paths:
        names = path.split(".")
        if len(names) > depth + 1:
            children.setdefault(names[depth], []).append(path)
    kinds = [
        tuple((path.split(".", depth + 1)[-1], shapes[path]) for path in inside)
        for name, inside in children.items()
        if name.isdecimal()
    ]
    alike = len(set(kinds)) < len(kinds)
    for name, inside in children.items():
        if alike and name.isdecimal():
            for path in inside:
                found[path] = ".".join(path.split(".")[: depth + 1])
        else:
            _divide(inside, depth + 1, shapes, found)
