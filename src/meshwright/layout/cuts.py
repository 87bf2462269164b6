"""Arithmetic of cuts on one device: where a split falls on what earlier cuts left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshwright.cluster.mesh import Mesh
from meshwright.layout.types import Layout, Split, shares


@dataclass(frozen=True, slots=True)
class LocalCut:
    """A split as it falls on a local tensor whose dim is [outer, extent, minor]."""

    dim: int
    outer: int
    extent: int
    minor: int
    shift: int = 0


def local_cut(
    shape: Sequence[int],
    layout: Layout,
    axis: str,
    split: Split,
    mesh: Mesh,
    coordinate: Mapping[str, int],
) -> LocalCut:
    """Where `split` over `axis` falls on the local part of a tensor laid out as `layout`.

    `shape` is of the whole tensor. Cuts of `layout` that come before it on the
    same dim shrink its outer, extent or minor part; `axis` itself is left out.
    """
    outer, extent = split.outer, split.extent
    size = shape[split.dim]
    minor = size // (outer * extent) if outer * extent else 1
    for other, remaining, count in shares(layout.without(axis), mesh, coordinate):
        if other.dim != split.dim:
            continue
        if (other.outer, other.extent) == (split.outer, split.extent):
            extent = count
        elif other.outer * other.extent <= split.outer:
            outer = outer // remaining * count if remaining else 0
        elif other.outer >= split.outer * split.extent:
            minor = minor // remaining * count if remaining else 0
        else:
            raise AssertionError(f"cuts {other} and {split} of one dim overlap")
    return LocalCut(split.dim, outer, extent, minor, split.shift)


def compatible(one: Split, other: Split) -> bool:
    """Whether two splits of one tensor can hold at once: other dims, nested or disjoint parts."""
    if one.dim != other.dim or (one.outer, one.extent) == (other.outer, other.extent):
        return True
    first, last = sorted((one, other), key=lambda split: (split.outer, split.outer * split.extent))
    return last.outer % (first.outer * first.extent) == 0


def ordered(layout: Layout, mesh: Mesh) -> Layout:
    """The same layout with its cuts in the order of the mesh's axes, the canonical one."""
    if len(layout.shards) < 2 and len(layout.partial) < 2:
        return layout
    position = {name: k for k, name in enumerate(mesh.names)}
    return Layout(
        tuple(sorted(layout.shards, key=lambda item: position[item[0]])),
        tuple(sorted(layout.partial, key=lambda item: position[item[0]])),
    )
