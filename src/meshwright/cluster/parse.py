"""From what the user writes to a Cluster.

local:4                       this machine, four processes
16x8:h100-sxm                 16 hosts of 8 devices each
4x8:h100-sxm+8x8:a100-80g     two groups of hosts
2x8:mine.json                 devices that a profile's JSON file describes
cluster.json                  a whole cluster (docs: reference, cluster files)
"""

from __future__ import annotations

import os
import re

from meshwright.cluster.cluster_file import default_links, load_cluster, profile_named
from meshwright.cluster.profile_file import builtin_profile
from meshwright.cluster.types import Cluster, CollectiveCurve, HostGroup, Point, Profile
from meshwright.errors import ClusterError

_FORMS = "Write it as local:4, 16x8:h100-sxm, 4x8:h100-sxm+8x8:a100-80g, or a path to a JSON file."
_MOST_DEVICES = 1 << 20
_MOST_IN_A_HOST = 4096
_GROUP = re.compile(r"(?P<hosts>[^x:]*)x(?P<devices>[^x:]*):(?P<kind>.+)")


def parse_cluster(text: str, profile: Profile | None = None) -> Cluster:
    """The cluster that `text` describes.

    `profile` is what calibration measured on this machine; `local:N` uses it
    in place of the built-in conservative one, and gives each process an equal
    share of this machine's memory. Raises ClusterError with a remedy for every
    text that makes no sense.
    """
    text = text.strip()
    if not text:
        raise ClusterError("the cluster is empty", _FORMS)
    if text == "local" or text.startswith("local:"):
        return Cluster(text=text, groups=(_local(text, profile),))
    if text.endswith(".json") and ":" not in text:
        return load_cluster(text)
    parts = [part.strip() for part in text.split("+")]
    if len(parts) > 1 and not all(parts):
        raise ClusterError(
            f"the cluster {text!r} has a + with no group of hosts on one side", _FORMS
        )
    groups = tuple(_group(part, text) for part in parts)
    cluster = Cluster(text=text, groups=groups)
    if cluster.size > _MOST_DEVICES:
        raise ClusterError(
            f"the cluster {text!r} has {cluster.size} devices; {_MOST_DEVICES} are the most "
            "that can be planned for",
            "Check the numbers of hosts and of devices per host.",
        )
    return cluster


def _local(text: str, profile: Profile | None) -> HostGroup:
    count = _count(text.partition(":")[2], "processes", text)
    base = builtin_profile("cpu") if profile is None else profile
    if profile is None:
        cores = os.cpu_count() or 1
        base = slowed(base, max(1.0, count / cores))
    elif profile.processes is not None and profile.processes != count:
        base = slowed(base, count / profile.processes, f"rescaled to {count} processes")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    base = base.model_copy(update={"memory_bytes": max(ram // count, 1)})
    return _host_group(1, count, base, text)


def slowed(profile: Profile, factor: float, note: str = "") -> Profile:
    """`profile` with every compute and memory time multiplied, as when processes share cores.

    Launch overhead is what a core does alone, so it grows only beyond one
    process per core, and is never taken to shrink.
    """
    if factor == 1.0:
        return profile

    fitted = profile.fitted
    if fitted is not None:
        fitted = fitted.model_copy(update={"contention": fitted.contention * factor})

    def stretch(points: tuple[Point, ...]) -> tuple[Point, ...]:
        return tuple(Point(x=point.x, seconds=point.seconds * factor) for point in points)

    return profile.model_copy(
        update={
            "name": f"{profile.name}, {note}" if note else profile.name,
            "fitted": fitted,
            "matmul": stretch(profile.matmul),
            "memory": stretch(profile.memory),
            "collectives": tuple(
                CollectiveCurve(
                    kind=curve.kind,
                    participants=curve.participants,
                    points=stretch(curve.points),
                )
                for curve in profile.collectives
            ),
            "peak_flops": profile.peak_flops / factor,
            "memory_bytes_per_s": profile.memory_bytes_per_s / factor,
            "op_overhead_s": profile.op_overhead_s * max(1.0, factor),
        }
    )


def _group(part: str, text: str) -> HostGroup:
    match = _GROUP.fullmatch(part)
    if match is None:
        what = f"{part!r} in the cluster {text!r}" if part != text else f"the cluster {text!r}"
        raise ClusterError(f"{what} is not HOSTSxDEVICES:KIND", _FORMS)
    hosts = _count(match["hosts"], "hosts", part)
    devices = _count(match["devices"], "devices per host", part, _MOST_IN_A_HOST)
    kind = match["kind"]
    return _host_group(hosts, devices, profile_named(kind), part)


def _host_group(hosts: int, devices: int, profile: Profile, part: str) -> HostGroup:
    levels = default_links(profile, hosts, devices)
    if not levels or levels[-1].devices != hosts * devices:
        what = f"{hosts} host{'s' if hosts > 1 else ''} of {devices} devices"
        outer = "across" if hosts > 1 else "host"
        raise ClusterError(
            f"{part}: the field links of the profile has nothing that joins {what}",
            f"Add a link named {outer} to it, with bytes_per_s (in bytes/s) and latency_s "
            "(in seconds).",
        )
    return HostGroup(hosts=hosts, devices=devices, profile=profile, levels=levels)


def _count(digits: str, what: str, text: str, most: int = _MOST_DEVICES) -> int:
    if not re.fullmatch(r"[0-9]+", digits) or not digits.strip("0"):
        got = repr(digits) if digits else "nothing"
        raise ClusterError(
            f"the number of {what} in {text!r} must be a positive whole number, got {got}", _FORMS
        )
    # Compared by their length first: Python refuses to convert thousands of digits.
    if len(digits.lstrip("0")) > len(str(most)) or int(digits) > most:
        raise ClusterError(
            f"the number of {what} in {_shortened(text)} is beyond {most}",
            "Check the numbers of hosts and of devices per host.",
        )
    return int(digits)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
