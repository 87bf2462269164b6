"""Between a whole tensor and the part of it that one device holds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.layout.cuts import local_cut, ordered
from meshwright.layout.transitions import transition
from meshwright.layout.types import REPLICATED, Layout
from meshwright.runtime import primitives
from meshwright.runtime.comm import CollectiveLog, Communicator


def local_part(x: Tensor, layout: Layout, mesh: Mesh, coordinate: Mapping[str, int]) -> Tensor:
    """The part of `x` that the device at `coordinate` holds; never shares memory with `x`
    unless that is all of it."""
    whole = tuple(x.shape)
    done = REPLICATED
    for axis, split in layout.shards:
        cut = local_cut(whole, done, axis, split, mesh, coordinate)
        x = primitives.shard(
            x, primitives.Cut(cut.dim, cut.outer, cut.extent, cut.minor),
            split.number(coordinate[axis], mesh.extent(axis)), mesh.extent(axis),
        )  # fmt: skip
        done = done.with_shard(axis, split)
    return x


def relay(
    x: Tensor, shape: tuple[int, ...], source: Layout, target: Layout, comm: Communicator
) -> Tensor:
    """Bring a tensor of whole `shape` from one layout to another, outside any plan's count."""
    coordinate = comm.mesh.coordinate(comm.rank)
    log, comm.log = comm.log, CollectiveLog()
    try:
        now = source
        for step in transition(source, ordered(target, comm.mesh)):
            split = step.gather or step.cut
            numbers = None
            if split is not None:
                cut = local_cut(shape, now, step.axis, split, comm.mesh, coordinate)
                numbers = (cut.dim, cut.outer, cut.extent, cut.minor, cut.shift)
            if step.kind == "all_reduce":
                x = comm.all_reduce(x, step.axis, step.reduce)
            elif step.kind == "all_to_all":
                assert step.cut is not None and numbers is not None
                other = local_cut(shape, now, step.axis, step.cut, comm.mesh, coordinate)
                wanted = (other.dim, other.outer, other.extent, other.minor, other.shift)
                x = comm.all_to_all(x, step.axis, numbers, wanted)
            elif step.kind == "all_gather":
                assert numbers is not None
                x = comm.all_gather(x, step.axis, *numbers)
            elif step.kind == "reduce_scatter":
                assert numbers is not None
                x = comm.reduce_scatter(x, step.axis, *numbers, reduce=step.reduce)
            else:
                assert numbers is not None
                x = comm.shard(x, step.axis, *numbers)
            now = step.after
    finally:
        comm.log = log
    return x
