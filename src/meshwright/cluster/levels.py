"""From the links of a usual host to the levels of a group of hosts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from meshwright.cluster.types import Link, LinkLevel


def levels_of(links: Sequence[Link], hosts: int, devices: int) -> tuple[LinkLevel, ...]:
    """Levels that join `hosts` equal hosts of `devices` devices each, innermost first.

    A unit larger than the group is cut down to it, and to whole hosts: 72
    devices of one NVLink domain in hosts of 16 make domains of 64. No link is
    shared by more devices than send through it.
    """
    total = hosts * devices
    levels: list[LinkLevel] = []
    for link in links:
        joined = {"host": devices, "across": total}.get(link.name) or link.devices or total
        joined = min(joined, total)
        if link.name == "device" and devices % joined:
            continue  # such hosts hold no whole units of it
        if link.name == "rack":
            joined = max(joined - joined % devices, devices)
        levels.append(
            LinkLevel(
                name=link.name,
                devices=joined,
                latency_s=link.latency_s,
                bytes_per_s=link.bytes_per_s,
                shared_by=min(link.shared_by, joined if link.name != "across" else devices),
                in_network=link.in_network,
            )
        )
    return tuple(levels)
