"""Time of one collective along one axis of the mesh, of a message, of a copy between tiers.

Where a profile holds measured curves they are read. Elsewhere the least of what
the known algorithms take, over the levels of links that the axis crosses: the
ring (Patarasuk and Yuan 2009), the tree that NCCL has for all_reduce, and
addition inside a switch (NVLink SHARP). On accelerators each runs in the best
of NCCL's three protocols, and the fitted constants say how much of a link is
reached.

Payload `nbytes` is counted as in `meshwright.plan.types.Collective`: the whole
tensor for all_reduce and broadcast, the gathered one for all_gather, the one
before it for reduce_scatter, the local one for all_to_all, and for halo and
ring_shift what is sent. All groups along the axis run at once, as they do in a
step, so a link that is shared is shared by all of them.
"""

from __future__ import annotations

from math import ceil, log2
from typing import Literal, NamedTuple

from meshwright.cluster.reach import Reach, level_between, reach
from meshwright.cluster.types import Cluster, CollectiveCurve, HostGroup, Tier
from meshwright.cost.constants import Constants, default_constants
from meshwright.cost.curve import interpolate
from meshwright.cost.families import COLLECTIVES
from meshwright.cost.hardware import hardware_of
from meshwright.cost.links import Crossing, crossings, rates
from meshwright.errors import RuleError, UsageError


class Protocol(NamedTuple):
    """What is left of bandwidth and latency, beside plain copies of large messages."""

    bandwidth: float
    latency: float


# NCCL's simple, 128-byte and 8-byte protocols; ratios of the latencies and rates in its tuning
# table (nccl/src/graph/tuning.cc).
_PLAIN = Protocol(1.0, 1.0)
_PROTOCOLS = (_PLAIN, Protocol(0.92, 0.5), Protocol(0.3, 0.19))

# Hops that one addition inside the switch takes (the same table: 25 us beside 3.4 us).
_IN_NETWORK_HOPS = 7

# Peers that NCCL sends to at once.
_PEERS_AT_ONCE = 8


def collective_seconds(
    kind: str,
    axis_extent: int,
    stride: int,
    nbytes: float,
    cluster: Cluster,
    constants: Constants | None = None,
) -> float:
    """Seconds of one `kind` over `axis_extent` devices that are `stride` ranks apart.

    In a cluster of several kinds of host the slowest set of devices decides; 0
    for one device alone. Raises RuleError for an unknown kind, and UsageError
    for an axis that is larger than the cluster.
    """
    if kind not in COLLECTIVES:
        raise RuleError(
            f"the cost model does not know the collective {kind}",
            f"Known are {', '.join(sorted(COLLECTIVES))}.",
        )
    if axis_extent <= 1:
        return 0.0
    ways = reach(cluster, axis_extent, stride)
    if not ways:
        raise UsageError(
            f"an axis of {axis_extent} devices that are {stride} ranks apart does not fit in a "
            f"cluster of {cluster.size}",
            "Choose degrees whose product is the cluster's size.",
        )
    return max(_on_way(kind, axis_extent, stride, nbytes, way, constants) for way in ways)


def point_to_point_seconds(
    nbytes: float,
    source: int,
    target: int,
    cluster: Cluster,
    senders: int | None = None,
    constants: Constants | None = None,
) -> float:
    """Seconds of one message from rank `source` to rank `target`.

    senders: devices of a host that send out of it at the same time; all those
    between the two ranks where it is not given, as between stages of a pipeline.
    """
    level = level_between(cluster, source, target)
    if level is None:
        return 0.0
    distance = abs(target - source)
    slowest = 0.0
    for group in {_group_of(source, cluster), _group_of(target, cluster)}:
        found = cluster.groups[group]
        usable = _usable(found, constants)
        _, line, latency_s = rates(level, usable)
        sending = min(distance, found.devices) if senders is None else senders
        rate = line / _on_one_link(sending, level.shared_by, found.devices)
        message_s = _message(nbytes, rate, latency_s, usable is not None)
        slowest = max(slowest, _launch(found, usable) + message_s)
    return slowest


def tier_seconds(
    nbytes: float,
    tier: Tier,
    direction: Literal["read", "write"],
    constants: Constants | None = None,
) -> float:
    """Seconds to fetch `nbytes` from `tier` (`read`) or store them there, all devices at once."""
    rate = tier.read_bytes_per_s if direction == "read" else tier.write_bytes_per_s
    efficiency = (constants or default_constants()).transfer_efficiency
    return tier.latency_s + nbytes * tier.shared_by / (rate * efficiency)


def _on_way(
    kind: str, extent: int, stride: int, nbytes: float, way: Reach, constants: Constants | None
) -> float:
    group = way.group
    if all(span.level.devices <= group.devices for span in way.spans):
        curves = [curve for curve in group.profile.collectives if curve.kind == kind]
        if curves:
            return _measured(kind, extent, nbytes, curves)
    usable = _usable(group, constants)
    crossed = crossings(way, extent, usable)
    launch = _launch(group, usable)
    if kind == "all_reduce":
        return launch + _all_reduce(extent, nbytes, crossed, usable)
    if kind in ("all_gather", "reduce_scatter"):
        return launch + _ring(1, extent, nbytes, crossed, usable is not None)
    if kind == "all_to_all":
        return launch + _all_to_all(extent, nbytes, crossed, usable is not None)
    if kind == "broadcast":
        # NCCL has no tree for it (nccl/src/graph/tuning.cc); all of it passes every link.
        if usable is not None:
            return launch + _ring(1, extent, nbytes * extent / (extent - 1), crossed, True)
        return launch + _tree(1, nbytes, crossed, False)
    # halo, ring_shift: to neighbours at once, full duplex; the slowest pair decides.
    slowest = 0.0
    senders = min(stride, group.devices)
    for item in crossed:
        rate = item.line_bytes_per_s / _on_one_link(senders, item.shared_by, group.devices)
        slowest = max(slowest, _message(nbytes, rate, item.latency_s, usable is not None))
    return launch + slowest


def _usable(group: HostGroup, constants: Constants | None) -> Constants | None:
    """None where the profile's figures are measured ones, that hold as they are."""
    if hardware_of(group.profile) is None:
        return None
    return constants or default_constants()


def _launch(group: HostGroup, constants: Constants | None) -> float:
    return group.profile.op_overhead_s if constants is None else constants.collective_launch_s


def _protocols(nccl: bool) -> tuple[Protocol, ...]:
    return _PROTOCOLS if nccl else (_PLAIN,)


def _ring_rate(crossed: tuple[Crossing, ...]) -> float:
    """A ring crosses a unit's border once, over the links of all its members there."""
    return min(item.below * item.bytes_per_s for item in crossed)


def _ring(times: int, n: int, nbytes: float, crossed: tuple[Crossing, ...], nccl: bool) -> float:
    moved_s = times * (n - 1) / n * nbytes / _ring_rate(crossed)
    waited_s = times * sum(item.hops * item.latency_s for item in crossed)
    return min(moved_s / p.bandwidth + waited_s * p.latency for p in _protocols(nccl))


def _tree(times: int, nbytes: float, crossed: tuple[Crossing, ...], nccl: bool) -> float:
    moved_s = times * nbytes / _ring_rate(crossed)
    waited_s = times * sum(item.rounds * item.latency_s for item in crossed)
    return min(moved_s / p.bandwidth + waited_s * p.latency for p in _protocols(nccl))


def _all_reduce(
    n: int, nbytes: float, crossed: tuple[Crossing, ...], constants: Constants | None
) -> float:
    nccl = constants is not None
    best = min(_ring(2, n, nbytes, crossed, nccl), _tree(2, nbytes, crossed, nccl))
    first = crossed[0]
    if constants is None or not first.in_network or first.inside < 3:
        return best
    # Each device sends its own and one part of the sum, and receives as much.
    line = first.bytes_per_s / constants.link_efficiency_in_host
    rate = line * constants.in_network_efficiency
    seconds = nbytes * (1 + 1 / first.inside) / rate
    waited_s = _IN_NETWORK_HOPS * first.latency_s
    # Across hosts a tree joins the parts while others are still added up.
    for item in crossed[1:]:
        seconds = max(seconds, 2 * nbytes / (item.below * item.bytes_per_s))
        waited_s += 2 * item.rounds * item.latency_s
    return min(best, seconds + waited_s)


def _all_to_all(n: int, nbytes: float, crossed: tuple[Crossing, ...], nccl: bool) -> float:
    """Each level carries the share that goes to members beyond the level below."""
    moved_s = max((item.leaving - item.below) / n * nbytes / item.bytes_per_s for item in crossed)
    if not nccl:
        return (n - 1) * max(item.latency_s for item in crossed) + moved_s
    waited_s = ceil((n - 1) / _PEERS_AT_ONCE) * max(item.latency_s for item in crossed)
    return min(moved_s / p.bandwidth + waited_s * p.latency for p in _PROTOCOLS)


def _message(nbytes: float, rate: float, latency_s: float, nccl: bool) -> float:
    return min(nbytes / (rate * p.bandwidth) + latency_s * p.latency for p in _protocols(nccl))


def _on_one_link(senders: int, shared_by: int, devices: int) -> int:
    """How many of a host's `senders` share one link, spread over all links that it has."""
    links = max(1, devices // shared_by)
    return max(1, ceil(senders / links))


def _group_of(rank: int, cluster: Cluster) -> int:
    for number, group in enumerate(cluster.groups):
        if rank < group.size:
            return number
        rank -= group.size
    return len(cluster.groups) - 1


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
