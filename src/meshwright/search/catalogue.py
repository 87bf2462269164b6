"""The strategies that have names: what people write by hand, as texts for `parse_strategy`.

A search begins with them, so that what it finds is never worse than the best of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis
from meshwright.search.moves import divisors
from meshwright.search.space import Point, Space
from meshwright.search.strategy import Strategy, mesh_for, parse_strategy

__all__ = ["named", "point_of", "texts"]

_SPECIAL = ("context", "spatial", "edge", "expert")


def named(
    analysis: Analysis, devices: int, global_batch: int, *, host: int = 8, microbatches: int = 1
) -> tuple[str, ...]:
    """Named strategies that can be laid out on so many devices, the plain ones first.

    analysis: of the Program of one of `microbatches`. host: devices of one host, inside
    which HSDP shards.
    """
    strategy = parse_strategy(f"microbatches={microbatches},auto" if microbatches > 1 else "auto")
    space = Space(strategy, devices, global_batch, lambda _: analysis)
    return tuple(texts(space, host))


def texts(space: Space, host: int) -> Iterator[str]:
    """As `named`, of a search's own space."""
    count = space.strategy.microbatches or 1
    for text in dict.fromkeys(_all(space, host)):
        point = point_of(parse_strategy(text), space, count)
        batch = point.sizes.get("data", 1) * point.sizes.get("replica", 1) * count
        if space.global_batch % batch == 0:
            yield text


def point_of(strategy: Strategy, space: Space, microbatches: int = 1) -> Point:
    """The point that a named strategy is. Raises StrategyError where its sizes do not multiply
    to the number of devices."""
    mesh = mesh_for(strategy, space.devices)
    return Point(
        tuple((axis, size) for axis, size in mesh.axes if size > 1),
        microbatches=strategy.microbatches or microbatches,
        sequence=strategy.sequence,
        attention=strategy.attention,
        zero=strategy.zero or 0,
        beside=space.usual_tables(dict(mesh.axes)) if strategy.tables else (),
    )


def compatible(text: str, asked: Strategy, devices: int) -> bool:
    """Whether a named strategy keeps what was fixed beside `auto`."""
    strategy = parse_strategy(text)
    try:
        sizes = dict(mesh_for(strategy, devices).axes)
    except StrategyError:
        return False
    for axis, size in asked.axes.items():
        have = sizes.get(axis, 1)
        if have != size if size else have == 1:
            return False
    return (
        asked.zero in (None, strategy.zero or 0)
        and (strategy.sequence or not asked.sequence)
        and asked.attention in (None, strategy.attention)
    )


def _all(space: Space, host: int) -> Iterator[str]:
    devices = space.devices
    yield "data"
    if devices == 1:
        return
    yield from (f"zero={stage}" for stage in (1, 2, 3))
    if _of_tables(space, {"data": devices}):
        yield "data,tables"
        yield "zero=1,tables"
    if not space.problem("tensor", devices):
        yield "tensor"
        if space.sequences(devices):
            yield "tensor,sequence"
    for axis in _SPECIAL:
        if not space.problem(axis, devices):
            yield axis
            if axis == "context":
                yield "context,attention=ring"
    for size in divisors(devices)[1:-1]:
        rest = devices // size
        zeros = ("", ",zero=1", ",zero=2", ",zero=3")
        if not space.problem("tensor", size):
            for zero in zeros:
                yield f"data={rest},tensor={size}{zero}"
                if space.sequences(size):
                    yield f"data={rest},tensor={size},sequence{zero}"
        for axis in _SPECIAL:
            if space.problem(axis, size):
                continue
            for zero in zeros:
                yield f"data={rest},{axis}={size}{zero}"
                if axis == "context":
                    yield f"data={rest},{axis}={size},attention=ring{zero}"
            if not space.problem("tensor", rest):
                yield f"{axis}={size},tensor={rest}"
        if size % host == 0:
            for zero in zeros[1:]:
                yield f"replica={rest},data={size}{zero}"
            if _of_tables(space, {"replica": rest, "data": size}):
                yield f"replica={rest},data={size},tables"


def _of_tables(space: Space, sizes: Mapping[str, int]) -> bool:
    """Whether most of the model is tables that are worth a cut over these axes."""
    cut = {key[0] for _, key in space.usual_tables(sizes)}
    total = sum(item.all_bytes for item in space.parameters)
    return 2 * sum(space.table_classes[path].all_bytes for path in cut) > total
