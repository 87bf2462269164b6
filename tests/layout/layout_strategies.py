"""Random meshes, shapes and legal layouts for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from meshwright.cluster.mesh import Mesh
from meshwright.layout.cuts import compatible, ordered
from meshwright.layout.types import Layout, Reduce, Split

AXES = ("data", "tensor", "stage")


@st.composite
def meshes(draw: st.DrawFn, largest: int = 8) -> Mesh:
    """One to three axes, at most `largest` devices."""
    axes: list[tuple[str, int]] = []
    size = 1
    for name in draw(st.permutations(AXES))[: draw(st.integers(1, 3))]:
        extent = draw(st.integers(1, min(4, largest // size)))
        axes.append((name, extent))
        size *= extent
    return Mesh(tuple(axes))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 12)), max_size=3)))


def splits(shape: tuple[int, ...]) -> list[Split]:
    """Every way to cut one dim of a tensor of `shape`."""
    return [
        Split(dim, outer, extent)
        for dim, size in enumerate(shape)
        for outer in range(1, size + 1)
        if size % outer == 0
        for extent in range(1, size // outer + 1)
        if size // outer % extent == 0
    ]


@st.composite
def layouts(
    draw: st.DrawFn, mesh: Mesh, shape: tuple[int, ...], partial: tuple[str, ...] = ()
) -> Layout:
    """A legal layout; axes in `partial` may hold terms of a pending reduction.

    All axes pend the same reduction, since a sum of maxima is no maximum of sums.
    """
    options = splits(shape)
    reduce: Reduce = draw(st.sampled_from(("sum", "max")))
    layout = Layout()
    for axis in mesh.names:
        what = draw(st.sampled_from(("none", "shard", "shard", "partial")))
        if what == "partial" and axis in partial:
            layout = layout.with_partial(axis, reduce)
        elif what != "none" and options:
            split = draw(st.sampled_from(options))
            if all(compatible(split, other) for _, other in layout.shards):
                layout = layout.with_shard(axis, split)
    return ordered(layout, mesh)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Mesh, tuple[int, ...], Layout]:
    mesh, shape = draw(meshes()), draw(shapes())
    return mesh, shape, draw(layouts(mesh, shape))


@st.composite
def transitions(draw: st.DrawFn) -> tuple[Mesh, tuple[int, ...], Layout, Layout]:
    """A layout and one to bring it to, which pends no more than it does."""
    mesh, shape = draw(meshes()), draw(shapes())
    source = draw(layouts(mesh, shape, partial=mesh.names))
    target = draw(layouts(mesh, shape))
    for axis, reduce in source.partial:
        if draw(st.booleans()):
            target = target.with_partial(axis, reduce)
    return mesh, shape, source, ordered(target, mesh)
