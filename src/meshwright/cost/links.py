"""The levels of links that one group of devices along an axis crosses, and how fast they are."""

from __future__ import annotations

from math import ceil, log2
from typing import NamedTuple

from meshwright.cluster.types import HostGroup, LinkLevel
from meshwright.cost.constants import Constants


class Crossing(NamedTuple):
    """One level that a group's traffic crosses.

    below: members of the group inside one unit of the level below. inside:
    members inside one unit of this level. hops: how many hops of a ring through
    the group cross this level and none further out. bytes_per_s: a device's part,
    in each direction, while all devices use the level. line_bytes_per_s: of a
    link that one device has to itself, where `shared_by` have it in turn. latency_s of one hop.
    """

    below: int
    inside: int
    hops: int
    bytes_per_s: float
    line_bytes_per_s: float
    shared_by: int
    latency_s: float
    in_network: bool

    @property
    def rounds(self) -> int:
        """Steps of a tree that joins what lies below the level."""
        return ceil(log2(ceil(self.inside / self.below)))


def crossings(
    extent: int, stride: int, group: HostGroup, leaves: bool, constants: Constants | None
) -> tuple[Crossing, ...]:
    """Levels that `extent` devices, `stride` ranks apart, cross in `group`, innermost first.

    leaves: whether the axis may go on in another group of hosts. constants:
    None where the links hold measured rates, which are taken as they are.
    """
    found = []
    below = 1
    for number, level in enumerate(group.levels):
        last = number == len(group.levels) - 1
        inside = _members(extent, stride, level.devices, last, leaves)
        if inside > below:
            hops = ceil(extent / below) - ceil(extent / inside)
            found.append(_crossing(below, inside, hops, level, constants))
            below = inside
    return tuple(found)


def level_of(source: int, target: int, group: HostGroup) -> LinkLevel:
    """The innermost level that joins two ranks, counted from the group's first."""
    for level in group.levels:
        if source // level.devices == target // level.devices:
            return level
    return group.levels[-1]


def rates(level: LinkLevel, constants: Constants | None) -> tuple[float, float, float]:
    """A device's part of the level, one device's own link (bytes/s), and a hop's seconds."""
    if constants is None:
        return level.device_bytes_per_s, level.bytes_per_s, level.latency_s
    across = level.name == "across"
    share = constants.link_efficiency_across if across else constants.link_efficiency_in_host
    latency_s = constants.hop_latency_across_s if across else constants.hop_latency_in_host_s
    return level.device_bytes_per_s * share, level.bytes_per_s * share, latency_s


def _members(extent: int, stride: int, devices: int, last: bool, leaves: bool) -> int:
    span = extent * stride
    if last and (leaves or span >= devices):
        return extent
    if span <= devices:
        # Where groups don't divide the unit evenly, one of them straddles its border.
        return extent if last or devices % span == 0 else 1
    return max(1, min(extent, devices // stride))


def _crossing(
    below: int, inside: int, hops: int, level: LinkLevel, constants: Constants | None
) -> Crossing:
    part, line, latency_s = rates(level, constants)
    return Crossing(below, inside, hops, part, line, level.shared_by, latency_s, level.in_network)
