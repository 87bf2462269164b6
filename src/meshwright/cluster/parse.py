"""From what the user writes to a Cluster.

local:4                       this machine, four processes
16x8:h100-sxm                 16 hosts of 8 devices each
4x8:h100-sxm+8x8:a100-80g     two groups of hosts
2x8:mine.json                 devices that a profile's JSON file describes
cluster.json                  a whole cluster (docs: reference, cluster files)
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from meshwright.cluster.levels import levels_of
from meshwright.cluster.profile_file import builtin_profile, explain, load_profile, read_text
from meshwright.cluster.types import Cluster, CollectiveCurve, HostGroup, LinkLevel, Point, Profile
from meshwright.errors import ClusterError

_FORMS = "Write it as local:4, 16x8:h100-sxm, 4x8:h100-sxm+8x8:a100-80g, or a path to a JSON file."
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
        return _from_file(text)
    return Cluster(text=text, groups=tuple(_group(part.strip(), text) for part in text.split("+")))


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
    return _host_group(1, count, base)


def slowed(profile: Profile, factor: float, note: str = "") -> Profile:
    """`profile` with every compute and memory time multiplied, as when processes share cores.

    Launch overhead is what a core does alone, so it grows only beyond one
    process per core, and is never taken to shrink.
    """
    if factor == 1.0:
        return profile

    def stretch(points: tuple[Point, ...]) -> tuple[Point, ...]:
        return tuple(Point(x=point.x, seconds=point.seconds * factor) for point in points)

    return profile.model_copy(
        update={
            "name": f"{profile.name}, {note}" if note else profile.name,
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
    devices = _count(match["devices"], "devices per host", part)
    kind = match["kind"]
    return _host_group(hosts, devices, _profile(kind))


def _profile(kind: str, folder: Path | None = None) -> Profile:
    if kind.endswith(".json"):
        return load_profile((folder or Path()) / kind)
    return builtin_profile(kind)


def _host_group(hosts: int, devices: int, profile: Profile) -> HostGroup:
    return HostGroup(
        hosts=hosts, devices=devices, profile=profile, levels=_levels(hosts, devices, profile)
    )


def _levels(hosts: int, devices: int, profile: Profile) -> tuple[LinkLevel, ...]:
    return levels_of(profile.links or builtin_profile("cpu").links, hosts, devices)


def _count(digits: str, what: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", digits) or int(digits) == 0:
        got = repr(digits) if digits else "nothing"
        raise ClusterError(
            f"the number of {what} in {text!r} must be a positive whole number, got {got}", _FORMS
        )
    return int(digits)


def _from_file(path: str) -> Cluster:
    """A cluster's JSON file: `{"groups": [{"hosts": 4, "devices": 8, "profile": "h100-sxm"}]}`.

    `profile` is a built-in kind, the path of a profile's file (relative to
    this one), or a whole profile; the four link figures default to the profile's.
    """
    raw = read_text(path)
    try:
        data = json.loads(raw)
    except json.JSONDecodeError as error:
        raise ClusterError(f"{path} is not valid JSON: {error}", "Mend the JSON there.") from None
    if not isinstance(data, dict):
        raise ClusterError(f"{path} must hold a JSON object", 'Start from {"groups": [...]}.')
    if "matmul" in data and "groups" not in data:
        raise ClusterError(
            f"{path} holds a profile of one device, not a cluster",
            f"Say how many there are, as in 1x8:{path}.",
        )
    groups = data.get("groups")
    if isinstance(groups, list):
        data["groups"] = [_completed(group, Path(path).parent) for group in groups]
    try:
        return Cluster.model_validate({**data, "text": path})
    except ValidationError as error:
        known = (*Cluster.model_fields, *HostGroup.model_fields, *Profile.model_fields)
        raise ClusterError(*explain(error, path, known)) from None


def _completed(group: Any, folder: Path) -> Any:
    if not isinstance(group, dict):
        return group
    profile = group.get("profile")
    if isinstance(profile, str):
        profile = _profile(profile, folder)
    elif isinstance(profile, dict):
        with suppress(ValidationError):  # which the whole file's validation then tells
            profile = Profile.model_validate(profile)
    group = {**group, "profile": profile}
    hosts, devices = group.get("hosts"), group.get("devices")
    if "levels" in group or not isinstance(profile, Profile):
        return group
    if not isinstance(hosts, int) or not isinstance(devices, int) or hosts < 1 or devices < 1:
        return {**group, "levels": ()}
    levels = [level.model_dump() for level in _levels(hosts, devices, profile)]
    for key in [key for key in group if key.startswith(("intra_", "inter_"))]:
        place = 0 if key.startswith("intra_") else -1
        levels[place][key.partition("_")[2]] = group.pop(key)
    return {**group, "levels": levels}
