"""Time of one collective along one axis of the mesh.

Where a profile holds measured curves they are read; elsewhere the ring
formulas of Patarasuk and Yuan (2009) are used, with the tree that NCCL takes
for small all-reduces. Payload `nbytes` is counted as in
`meshwright.plan.types.Collective`: the whole tensor for all_reduce and
broadcast, the gathered one for all_gather, the one before it for
reduce_scatter, the local one for all_to_all, and for halo and ring_shift what is sent.
"""

from __future__ import annotations

from math import ceil, log2

from meshwright.cluster.types import Cluster, CollectiveCurve, HostGroup
from meshwright.cost.curve import interpolate
from meshwright.cost.families import COLLECTIVES
from meshwright.errors import RuleError


def collective_seconds(
    kind: str, axis_extent: int, stride: int, nbytes: float, cluster: Cluster
) -> float:
    """Seconds of one `kind` over `axis_extent` devices that are `stride` ranks apart.

    All groups along the axis run at once, as they do in a step; in a cluster
    of several kinds of host the slowest decides.
    """
    if kind not in COLLECTIVES:
        raise RuleError(
            f"the cost model does not know the collective {kind}",
            f"Known are {', '.join(sorted(COLLECTIVES))}.",
        )
    if axis_extent <= 1:
        return 0.0
    mixed = len(cluster.groups) > 1
    return max(
        _in_group(kind, axis_extent, stride, nbytes, group, mixed) for group in cluster.groups
    )


def _in_group(
    kind: str, extent: int, stride: int, nbytes: float, group: HostGroup, mixed: bool
) -> float:
    inside = stride * extent <= group.devices
    if inside or (group.hosts == 1 and not mixed):
        curves = [curve for curve in group.profile.collectives if curve.kind == kind]
        if curves:
            return _measured(kind, extent, nbytes, curves)
    # Members of one group that share a host, and so the host's network cards.
    members = min(extent, max(1, group.devices // stride))
    launch = group.profile.op_overhead_s
    if inside:
        return launch + _formula(
            kind, extent, extent, nbytes,
            group.intra_bytes_per_s, group.intra_bytes_per_s, group.intra_latency_s,
        )  # fmt: skip
    return launch + _formula(
        kind, extent, members, nbytes,
        group.intra_bytes_per_s, group.inter_bytes_per_s, group.inter_latency_s,
    )  # fmt: skip


def _formula(
    kind: str, n: int, members: int, nbytes: float, intra: float, inter: float, latency_s: float
) -> float:
    """Ring, tree or pairwise time of `n` devices of which `members` share each host."""
    crossing = members < n
    # A ring crosses each host border once, over the cards of all its members there.
    ring = min(intra, inter * members) if crossing and members > 1 else inter
    share = (n - 1) / n
    hops = ceil(log2(n))
    if kind == "all_reduce":
        by_ring = 2 * (n - 1) * latency_s + 2 * share * nbytes / ring
        by_tree = 2 * hops * latency_s + 2 * nbytes / ring
        return min(by_ring, by_tree)
    if kind in ("all_gather", "reduce_scatter"):
        return (n - 1) * latency_s + share * nbytes / ring
    if kind == "all_to_all":
        outside = (n - members) / n * nbytes / inter if crossing else 0.0
        within = (members - 1) / n * nbytes / intra
        return (n - 1) * latency_s + max(outside, within)
    if kind == "broadcast":
        return hops * latency_s + nbytes / ring
    return latency_s + nbytes / inter  # halo, ring_shift: to neighbours at once, full duplex


def _measured(kind: str, extent: int, nbytes: float, curves: list[CollectiveCurve]) -> float:
    """Read the curve measured at `extent` participants, or scale that of the nearest count.

    Scaled, the fixed part grows with the ring's steps and the rest with the
    share of the payload that each device sends.
    """
    curve = min(curves, key=lambda item: (abs(item.participants - extent), -item.participants))
    seconds = interpolate(curve.points, max(nbytes, 1.0))
    if curve.participants == extent:
        return seconds
    fixed = curve.points[0].seconds
    n, measured = extent, curve.participants
    steps = (n - 1) / (measured - 1)
    volume = ((n - 1) / n) / ((measured - 1) / measured)
    if kind in ("broadcast", "halo", "ring_shift"):
        steps, volume = log2(n) / log2(measured), 1.0
    return fixed * steps + max(seconds - fixed, 0.0) * volume
