"""Clusters that differ from a given one in one thing: how many hosts, which kind of device."""

from __future__ import annotations

from meshwright.cluster.cluster_file import default_links
from meshwright.cluster.profile_file import builtin_kinds, builtin_profile
from meshwright.cluster.types import Cluster, HostGroup, LinkLevel


def with_hosts(cluster: Cluster, hosts: int) -> Cluster | None:
    """The cluster with so many hosts; None for this machine, for hosts of several kinds, and where
    nothing is known that joins so many."""
    if len(cluster.groups) > 1 or _is_local(cluster):
        return None
    group = cluster.groups[0]
    own = {level.name: level for level in group.levels}
    usual = default_links(group.profile, hosts, group.devices)
    levels = tuple(
        _changed(own[level.name], level) if level.name in own else level for level in usual
    )
    if not levels or levels[-1].devices != hosts * group.devices:
        return None
    resized = group.model_copy(update={"hosts": hosts, "levels": levels})
    return Cluster(text=_text(cluster, resized), groups=(resized,))


def with_larger_devices(cluster: Cluster) -> tuple[Cluster, ...]:
    """As many devices of each built-in kind that has more memory, that with the least first."""
    if len(cluster.groups) > 1 or _is_local(cluster):
        return ()
    group = cluster.groups[0]
    kinds = [builtin_profile(kind) for kind in builtin_kinds()]
    larger = [
        kind
        for kind in kinds
        if kind.memory_bytes > group.profile.memory_bytes and kind.device == group.profile.device
    ]
    return tuple(
        Cluster(
            text=f"{group.hosts}x{group.devices}:{kind.name}",
            groups=(
                HostGroup(
                    hosts=group.hosts, devices=group.devices, profile=kind,
                    levels=default_links(kind, group.hosts, group.devices),
                ),
            ),
        )
        for kind in sorted(larger, key=lambda item: (item.memory_bytes, item.name))
    )  # fmt: skip


def _changed(own: LinkLevel, usual: LinkLevel) -> LinkLevel:
    """The cluster's own level, joining as many devices as there are then."""
    return own.model_copy(
        update={"devices": usual.devices if own.name == "across" else own.devices}
    )


def _text(cluster: Cluster, group: HostGroup) -> str:
    size = f"{group.hosts}x{group.devices}"
    _, colon, kind = cluster.text.partition(":")
    return f"{size}:{kind}" if colon else f"{size} of {cluster.text}"


def _is_local(cluster: Cluster) -> bool:
    return cluster.text == "local" or cluster.text.startswith("local:")
