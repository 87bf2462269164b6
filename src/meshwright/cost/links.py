"""The levels of links that one group of devices along an axis crosses, and how fast they are."""

from __future__ import annotations

from math import ceil, log2
from typing import NamedTuple

from meshwright.cluster.reach import Reach
from meshwright.cluster.types import LinkLevel
from meshwright.cost.constants import Constants


class Crossing(NamedTuple):
    """One level that a group's traffic crosses.

    below: members of the group inside one unit of the level below. inside:
    members inside one unit of this level. leaving: members that a message from the level
    below passes these links to; all of them where they lead out of hosts, since what
    goes to another group of hosts passes the same cards. hops: how many hops of a ring through
    the group cross this level and none further out. bytes_per_s: a device's part,
    in each direction, while all devices use the level. line_bytes_per_s: of a
    link that one device has to itself, where `shared_by` have it in turn. latency_s of one hop.
    """

    below: int
    inside: int
    leaving: int
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


def crossings(way: Reach, members: int, constants: Constants | None) -> tuple[Crossing, ...]:
    """Levels that the sets of `way`, of `members` devices each, cross, innermost first.

    constants: None where the links hold measured rates, which are taken as they are.
    """
    found = []
    below = 1
    for index, span in enumerate(way.spans):
        # Units may hold unequal parts of a set; all that there are, they hold together.
        outermost = index == len(way.spans) - 1
        inside = members if outermost else min(below * span.extent, members - 1)
        part, line, latency_s = rates(span.level, constants)
        found.append(
            Crossing(
                below=below,
                inside=inside,
                leaving=members if span.level.name == "across" else inside,
                hops=ceil(members / below) - ceil(members / inside),
                bytes_per_s=part,
                line_bytes_per_s=line,
                shared_by=span.level.shared_by,
                latency_s=latency_s,
                in_network=span.level.in_network,
            )
        )
        below = inside
    return tuple(found)


def rates(level: LinkLevel, constants: Constants | None) -> tuple[float, float, float]:
    """A device's part of the level, one device's own link (bytes/s), and a hop's seconds.

    No hop is quicker than the link's own latency.
    """
    if constants is None:
        return level.device_bytes_per_s, level.bytes_per_s, level.latency_s
    across = level.name == "across"
    share = constants.link_efficiency_across if across else constants.link_efficiency_in_host
    hop_s = constants.hop_latency_across_s if across else constants.hop_latency_in_host_s
    latency_s = max(hop_s, level.latency_s)
    return level.device_bytes_per_s * share, level.bytes_per_s * share, latency_s
