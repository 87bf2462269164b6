"""The levels of links that one group of devices along an axis crosses, and how fast they are."""

from __future__ import annotations

from math import ceil, log2, prod
from typing import NamedTuple

from meshwright.cluster.reach import Reach
from meshwright.cluster.types import LinkLevel
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
        return ceil(log2(self.inside // self.below))


def crossings(way: Reach, constants: Constants | None) -> tuple[Crossing, ...]:
    """Levels that the sets of `way` cross, innermost first.

    constants: None where the links hold measured rates, which are taken as they are.
    """
    members = prod(span.extent for span in way.spans)
    found = []
    below = 1
    for span in way.spans:
        inside = below * span.extent
        part, line, latency_s = rates(span.level, constants)
        found.append(
            Crossing(
                below=below,
                inside=inside,
                hops=members // below - members // inside,
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
    """A device's part of the level, one device's own link (bytes/s), and a hop's seconds."""
    if constants is None:
        return level.device_bytes_per_s, level.bytes_per_s, level.latency_s
    across = level.name == "across"
    share = constants.link_efficiency_across if across else constants.link_efficiency_in_host
    latency_s = constants.hop_latency_across_s if across else constants.hop_latency_in_host_s
    return level.device_bytes_per_s * share, level.bytes_per_s * share, latency_s
