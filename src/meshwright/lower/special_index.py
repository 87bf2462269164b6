"""Indexing along cut dims: of what is indexed, or of the list of positions.

Reading where a dim is cut gives what is held here and zeros for the rest, so
that the sum over devices is pending. Writing keeps to the positions held here.
A cut list of positions makes each device add its own terms; what was there
before is added by one device alone.
"""

from __future__ import annotations

from typing import cast

from meshwright.layout.types import Reduce
from meshwright.lower.empty import neutral
from meshwright.lower.shared import first
from meshwright.lower.special import Site
from meshwright.program.types import Argument, Ref


def _arguments(site: Site) -> list[Argument]:
    """The op's positional arguments with the local operands in them."""
    names = iter(site.operands)

    def local(argument: Argument) -> Argument:
        if isinstance(argument, Ref):
            return Ref(next(names))
        if isinstance(argument, tuple):
            return tuple(local(item) for item in argument)
        return argument

    return [local(argument) for argument in site.op.args]


def _held(site: Site, value: Ref, dim: int) -> tuple[int, int, int] | None:
    """(start, count, whole size) of a dim that a chosen factor cuts; None for a whole one."""
    factors = site.rule.operands[0][dim]
    if not any(cut.factor in factors for cut in site.chosen.values()):
        return None
    start, count = site.b.range(value.name, dim)
    return start, count, site.shape(value)[dim]


def _base(site: Site, reduce: Reduce = "sum") -> Ref:
    """What is written into: on all devices but one, where lists are cut, what adds nothing."""
    x = site.operand(0)
    held = {factor for dim in site.rule.operands[0] for factor in dim}
    axes = [
        axis
        for axis, cut in site.chosen.items()
        if cut.factor not in held and site.rule.reduces(0, cut.factor)
    ]
    if all(first(site.b.coordinate, axis) for axis in axes):
        return x
    number = neutral(reduce, site.b.values[x.name].dtype)
    return site.fill(number, site.shape(x), site.layout(x))


def take(site: Site) -> tuple[str | None, ...]:
    """index: `x[i, :, j]`."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    x, indices = cast(tuple[Ref, tuple[Argument, ...]], tuple(_arguments(site)))
    held = _held_indices(site, x, indices)
    return (site.emit("mesh.take_held", (x, indices, held), shape, layout).name,)


def _held_indices(
    site: Site, x: Ref, indices: tuple[Argument, ...]
) -> tuple[tuple[int, int, int, int], ...]:
    found = []
    for dim, index in enumerate(indices):
        here = _held(site, x, dim) if isinstance(index, Ref) else None
        if here is not None:
            found.append((dim, *here))
    return tuple(found)


def put(site: Site) -> tuple[str | None, ...]:
    """index_put: `x[i, :, j] = values`, or `+=`."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    x, indices, values, *rest = _arguments(site)
    assert isinstance(x, Ref) and isinstance(indices, tuple)
    accumulate = bool(rest and rest[0])
    held = _held_indices(site, x, indices)
    base = _base(site)
    if held:
        made = site.emit("mesh.put_held", (base, indices, values, accumulate, held), shape, layout)
    else:
        made = site.emit(site.op.target, (base, indices, values, accumulate), shape, layout)
    return (made.name,)


def gather(site: Site) -> tuple[str | None, ...]:
    """gather and index_select: (x, dim, index)."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    x, dim, index = _arguments(site)[:3]
    assert isinstance(x, Ref) and isinstance(dim, int)
    dim %= len(site.shape(x))
    held = _held(site, x, dim)
    assert held is not None
    target = "mesh.gather_held" if ".gather." in site.op.target else "mesh.select_held"
    return (site.emit(target, (x, dim, index, held), shape, layout).name,)


def scatter(site: Site) -> tuple[str | None, ...]:
    """scatter and what is like it: (x, dim, index, …)."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    x, dim, *rest = _arguments(site)
    assert isinstance(x, Ref) and isinstance(dim, int)
    dim %= len(site.shape(x))
    held = _held(site, x, dim)
    base = _base(site, layout.partial[0][1] if layout.partial else "sum")
    if held is None:
        made = site.emit(site.op.target, (base, dim, *rest), shape, layout, None, site.op.kwargs)
    else:
        options: tuple[tuple[str, Argument], ...] = (("op", site.op.target), ("held", held))
        made = site.emit(
            "mesh.scatter_held", (base, dim, *rest), shape, layout, None,
            (*site.op.kwargs, *options),
        )  # fmt: skip
    return (made.name,)
