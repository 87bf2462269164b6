"""Moves: what can be decided next, and what one decision can be changed to.

The order of decisions is mesh, microbatches, groups of the tensor axis, conflicts
(sequence or hidden, how attention gets its keys), residency. Moves that analysis shows
to be illegal are never made: axes that the model has nothing to cut for, extents that
do not divide the batch, ZeRO where nothing divides the storage, orders of axes that
reach over the same links.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import prod

from meshwright.cluster.reach import reach
from meshwright.cluster.types import Cluster
from meshwright.search import tables as lookups
from meshwright.search.named import IDLE
from meshwright.search.space import STORABLE, ClassKey, Point, Space
from meshwright.search.strategy import AXES

__all__ = [
    "attention_options", "changed", "counts", "group_options", "meshes", "residency_options",
    "sequence_options",
]  # fmt: skip

_SPECIAL = ("context", "spatial", "edge", "expert")
_MOST_MICROBATCHES = 64
_SMALL = 64  # a class with this part of the largest class's bytes is small


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


# Meshes


def meshes(
    space: Space, cluster: Cluster | None, forbidden: Sequence[str] = ()
) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Meshes of all devices, in the usual order of axes, each once.

    Of the axes that cut more than the batch and the groups of weights at most one has
    more than one device, unless the strategy fixes several. What they leave is divided
    into `data`, `replica` for whole copies of the sharded model (one for each unit of a
    level of the cluster), and `idle` where the batch has no more to divide.
    """
    fixed = dict(space.strategy.axes)
    named = [axis for axis in _SPECIAL if axis in fixed]
    free = [
        axis for axis in _SPECIAL
        if axis not in fixed and axis not in forbidden and not space.problem(axis, 2)
    ]  # fmt: skip
    if space.devices == 1:
        return ((),)
    found: dict[tuple[tuple[str, int], ...], None] = {}
    stages = max(fixed.get("stage", 1), 1)
    rest = space.devices // stages if space.devices % stages == 0 else 0
    alone: list[tuple[str, ...]] = [(), *((axis,) for axis in free)]
    for extra in alone:
        axes = (*named, *extra)
        options = [_extents(space, axis, rest, fixed.get(axis, 0), 2) for axis in axes]
        for sizes in product(*options):
            taken = prod(sizes)
            if rest % taken:
                continue
            left = rest // taken
            for tensor in _extents(space, "tensor", left, fixed.get("tensor", 0), 1):
                if tensor > 1 and "tensor" in forbidden:
                    continue
                inner = prod(sizes) * tensor
                for batch in _batch(space, left // tensor, inner, cluster, forbidden):
                    extents = {
                        "stage": stages, **dict(zip(axes, sizes, strict=True)),
                        "tensor": tensor, **batch,
                    }  # fmt: skip
                    mesh = tuple((axis, extents[axis]) for axis in AXES if extents.get(axis, 1) > 1)
                    found.setdefault(mesh)
    return tuple(found)


def _extents(space: Space, axis: str, rest: int, fixed: int, least: int) -> list[int]:
    if axis in space.strategy.axes and fixed == 0:
        least = max(least, 2)
    sizes = [fixed] if fixed else [size for size in divisors(rest) if size >= least]
    return [
        size for size in sizes
        if rest % size == 0 and (size == 1 or fixed or not space.problem(axis, size))
    ]  # fmt: skip


def _batch(
    space: Space, left: int, inner: int, cluster: Cluster | None, forbidden: Sequence[str]
) -> Iterator[dict[str, int]]:
    """How `left` devices are divided into data, replica and idle."""
    fixed = space.strategy.axes
    sizes = [size for size in divisors(left) if not space.problem("data", size)]
    if "data" in forbidden:
        sizes = [1]
    idles = [left // size for size in reversed(sizes)]
    if fixed.get(IDLE) or (sizes and IDLE in forbidden):
        idles = [fixed.get(IDLE, 0) or 1]
    for idle in idles:
        if left % idle:
            continue
        batch = left // idle
        replicas = [1]
        if "replica" in fixed:
            replicas = [fixed["replica"]] if fixed["replica"] else divisors(batch)[1:]
        elif cluster is not None and "replica" not in forbidden:
            units = {level.devices for group in cluster.groups for level in group.levels}
            replicas += sorted(
                batch * inner // unit
                for unit in units
                if unit % inner == 0 and 1 < unit // inner < batch and batch * inner % unit == 0
            )
        for replica in replicas:
            if batch % replica:
                continue
            data = batch // replica
            if fixed.get("data", 0) not in (0, data) or (data == 1 and space.strategy.zero):
                continue
            if space.problem("data", batch):
                continue
            yield {"idle": idle, "replica": replica, "data": data}


def reaches(mesh: Sequence[tuple[str, int]], cluster: Cluster | None) -> tuple[object, ...]:
    """Over which links each axis of a mesh reaches: equal for orders that cost the same."""
    if cluster is None:
        return ()
    found = []
    stride = 1
    for axis, size in reversed(mesh):
        spans = tuple(
            tuple((span.level.name, span.extent) for span in way.spans)
            for way in reach(cluster, size, stride)
        )
        found.append((axis, size, spans))
        stride *= size
    return tuple(sorted(found))


# Microbatches


def counts(space: Space, mesh: Sequence[tuple[str, int]]) -> tuple[int, ...]:
    """Counts of microbatches that leave each device of the batch's axes an equal part.

    Without those that a constraint forbids, as long as others are left.
    """
    if space.strategy.microbatches is not None:
        return (space.strategy.microbatches,)
    sizes = dict(mesh)
    batch = sizes.get("data", 1) * sizes.get("replica", 1)
    most = space.global_batch // batch
    found, count = [], 1
    while count <= min(most, _MOST_MICROBATCHES):
        if space.global_batch % (count * batch) == 0 and not space.forbids_count(count):
            found.append(count)
        count *= 2
    return tuple(found) or (1,)


# Groups and conflicts


def group_options(space: Space, point: Point) -> Iterator[Point]:
    """One class of groups cut over `tensor` or not, otherwise than it is."""
    parts = point.sizes.get("tensor", 1)
    if parts == 1:
        return
    cut = space.cut(point)
    usual = space.usual(parts)
    known = space.classes(parts, point.microbatches)
    for key in cut:
        if len(cut) > 1:
            yield _with_cut(point, tuple(k for k in cut if k != key), usual)
    for key, item in known.items():
        if key in cut:
            continue
        # Its products can be cut once: classes that cut one of them make room.
        rest = tuple(k for k in cut if k in known and not known[k].products & item.products)
        if item.flops or item.parameter_bytes:
            yield _with_cut(point, tuple(sorted((*rest, key))), usual)


def _with_cut(point: Point, cut: tuple[ClassKey, ...], usual: tuple[ClassKey, ...]) -> Point:
    return replace(point, tensor=None if cut == usual else cut)


def sequence_options(space: Space, point: Point) -> tuple[Point, ...]:
    """Values that tensor parallelism leaves whole: whole, or cut along the sequence."""
    parts = point.sizes.get("tensor", 1)
    if parts == 1 or not space.sequences(parts):
        return (replace(point, sequence=False),)
    if space.strategy.sequence:
        return (replace(point, sequence=True),)
    return (replace(point, sequence=False), replace(point, sequence=True))


def attention_options(space: Space, point: Point) -> tuple[Point, ...]:
    if point.sizes.get("context", 1) == 1:
        return (replace(point, attention=None),)
    if space.strategy.attention is not None:
        return (replace(point, attention=space.strategy.attention),)
    return (replace(point, attention=None), replace(point, attention="ring"))


# Residency


def residency_options(space: Space, point: Point) -> tuple[Point, ...]:
    """Uniform residencies over the axes that can store, simplest first."""
    stages = (0, 1, 2, 3) if space.strategy.zero is None else (space.strategy.zero,)
    found = [replace(point, zero=0, kept=(), stored=("data",))] if 0 in stages else []
    held = tuple(axis for axis, size in point.mesh if axis in STORABLE and size > 1)
    if not held:
        return (replace(point, zero=0, kept=(), stored=("data",)),)
    options: list[tuple[str, ...]] = [("data",)] if "data" in held else []
    if held != ("data",) and space.strategy.zero is None:
        options.append(held)
    for stage in stages:
        if not stage:
            continue
        found += [replace(point, zero=stage, kept=(), stored=stored) for stored in options]
    return tuple(found)


def small_whole(space: Space, point: Point) -> Point:
    """Classes of small parameters kept whole on every device, the others as they are."""
    if not point.zero or space.strategy.zero is not None:
        return point
    largest = max((item.nbytes for item in space.parameters), default=0)
    for item in space.parameters:
        if item.nbytes * _SMALL <= largest:
            point = point.keeping(item.number, 0)
    return point


def tables(space: Space, point: Point) -> Iterator[tuple[str, ClassKey]]:
    """Ways to cut classes of tables, by an axis that has the batch; columns before rows."""
    total = sum(item.all_bytes for item in space.parameters)
    known = lookups.tables(space.first)
    for axis, size in point.mesh:
        if axis not in lookups.AXES or size == 1:
            continue
        for path, item in space.table_classes.items():
            if item.all_bytes * 100 >= total:
                for dim in lookups.cuts(known[path], size):
                    yield axis, space.table_key(path, dim)


def table_options(space: Space, point: Point) -> Iterator[Point]:
    """One class of tables cut or whole or cut otherwise; those that are worth it, all at once."""
    together = space.usual_tables(point.sizes)
    if together and point.beside != together:
        yield replace(point, beside=together)
    if len(point.beside) > 1:
        yield replace(point, beside=())
    for axis, key in tables(space, point):
        rest = tuple(item for item in point.beside if (item[0], item[1][0]) != (axis, key[0]))
        if (axis, key) not in point.beside:
            rest = tuple(sorted((*rest, (axis, key))))
        yield replace(point, beside=rest)


# One change at a time


def changed(space: Space, point: Point, cluster: Cluster | None) -> Iterator[tuple[str, Point]]:
    """Every point that one decision makes of this one, with the subject that it changes."""
    yield from _residencies(space, point)
    for option in sequence_options(space, point):
        if option != point:
            yield "sequence", option
    for option in attention_options(space, point):
        if option != point:
            yield "attention", option
    for option in group_options(space, point):
        yield "groups", option
    for option in table_options(space, point):
        yield "tables", option
    for count in counts(space, point.mesh):
        if count in (point.microbatches * 2, point.microbatches // 2):
            yield "microbatches", replace(point, microbatches=count)
    yield from (("order", option) for option in orders(point, cluster))


def _residencies(space: Space, point: Point) -> Iterator[tuple[str, Point]]:
    held = [axis for axis, size in point.mesh if axis in point.stored and size > 1]
    if not held:
        storable = tuple(axis for axis, size in point.mesh if axis in STORABLE and size > 1)
        if storable and space.strategy.zero is None:
            yield "residency", replace(point, stored=storable, zero=1)
        return
    if space.strategy.zero is not None:
        return
    for option in residency_options(space, point):
        if option.zero != point.zero or option.stored != point.stored:
            yield "residency", option
    if point.zero:
        small = small_whole(space, point)
        if small != point:
            yield "residency", small
    # One at a time, those that are large enough to matter; small ones go together, above.
    by_size = sorted(space.parameters, key=lambda item: (-item.all_bytes, item.number))
    largest = by_size[0].all_bytes if by_size else 0
    for item in by_size:
        if item.all_bytes * _SMALL < largest:
            break
        here = point.residency(item.number)
        for stage in (0, 1, 3) if here < 2 or point.microbatches > 1 else (0, 2, 3):
            if stage != here and (item.trainable or stage in (0, 3)):
                yield f"residency of {item.pattern}", point.keeping(item.number, stage)


def orders(point: Point, cluster: Cluster | None) -> Iterator[Point]:
    """The same axes in another order, where that changes the links that they reach over."""
    here = reaches(point.mesh, cluster)
    movable = [k for k, (axis, _) in enumerate(point.mesh) if axis not in ("stage", IDLE)]
    for first in movable:
        for second in movable:
            if first >= second:
                continue
            axes = list(point.mesh)
            axes[first], axes[second] = axes[second], axes[first]
            if reaches(axes, cluster) != here:
                yield replace(point, mesh=tuple(axes))
