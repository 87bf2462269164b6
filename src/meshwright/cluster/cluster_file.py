"""Clusters as JSON files.

    {"groups": [{"hosts": 4, "devices": 8, "profile": "h100-sxm",
                 "levels": [{"name": "across", "bytes_per_s": 2.5e10, "cards": 4}]}],
     "between": {"bytes_per_s": 1.25e10, "latency_s": 2e-5}}

`profile` is a built-in kind, a profile's file (relative to this one) or a whole
profile. A level takes the figures that it leaves out from the profile's link of
that name; levels that a group does not name are the profile's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from meshwright.cluster.levels import levels_of
from meshwright.cluster.plausible import implausible_group, implausible_level
from meshwright.cluster.profile_file import (
    builtin_profile,
    explain,
    load_profile,
    read_text,
    whole_number,
)
from meshwright.cluster.types import LEVELS, Cluster, HostGroup, LinkLevel, Profile
from meshwright.errors import ClusterError

__all__ = ["cluster_of", "default_links", "load_cluster", "profile_named"]

_KNOWN = (
    *Cluster.model_fields, *HostGroup.model_fields, *Profile.model_fields,
    *LinkLevel.model_fields, "cards",
)  # fmt: skip


_ANY_LEVEL = {"name": "across", "devices": 1, "bytes_per_s": 1.0, "latency_s": 0.0}


def load_cluster(path: str) -> Cluster:
    """Raises ClusterError that names the file, the field and what was expected."""
    raw = read_text(path)
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ClusterError(f"{path} is not valid JSON: {error}", "Mend the JSON there.") from None
    if not isinstance(data, dict):
        raise ClusterError(f"{path} must hold a JSON object", 'Start from {"groups": [...]}.')
    if "groups" not in data and ("matmul" in data or "peak_flops" in data):
        raise ClusterError(
            f"{path} holds a profile of one device, not a cluster",
            f"Say how many there are, as in 1x8:{path}.",
        )
    groups = data.get("groups")
    if isinstance(groups, list):
        data["groups"] = [
            _completed(group, f"groups.{index}", path) for index, group in enumerate(groups)
        ]
        _complete_between(data, path)
    try:
        return cluster_of(Cluster.model_validate({**data, "text": path}), path)
    except ValidationError as error:
        raise ClusterError(*explain(error, path, _KNOWN)) from None


def cluster_of(cluster: Cluster, where: str) -> Cluster:
    """`cluster`, checked for figures that none has. Raises ClusterError, with `where` in it."""
    for index, group in enumerate(cluster.groups):
        found = implausible_group(group)
        if found is not None:
            raise ClusterError(
                f"{where}: the field groups.{index}.{found.field} {found.message}.", found.remedy
            )
    found = implausible_level(cluster.between, "between") if cluster.between else None
    if found is not None:
        raise ClusterError(f"{where}: the field {found.field} {found.message}.", found.remedy)
    return cluster


def profile_named(kind: str, folder: Path | None = None) -> Profile:
    """A built-in kind, or the profile in a file whose path `folder` is put before."""
    if kind.endswith(".json"):
        return load_profile((folder or Path()) / kind)
    return builtin_profile(kind)


def default_links(profile: Profile, hosts: int, devices: int) -> tuple[LinkLevel, ...]:
    """Levels as `profile` has them. A CPU whose profile says nothing of links has those of the
    built-in one, and so has a single device; others have no levels then."""
    links = profile.links
    if not links and (profile.device == "cpu" or hosts * devices == 1):
        links = builtin_profile("cpu").links
    return levels_of(links, hosts, devices)


def _completed(group: Any, field: str, path: str) -> Any:
    """`group` with its profile loaded and its levels written out, where it is sound so far."""
    if not isinstance(group, dict):
        return group
    profile = group.get("profile")
    if isinstance(profile, str):
        profile = profile_named(profile, Path(path).parent)
    elif isinstance(profile, dict):
        try:
            profile = Profile.model_validate(profile)
        except ValidationError as error:
            message, remedy = explain(error, path, tuple(Profile.model_fields), f"{field}.profile.")
            raise ClusterError(message, remedy) from None
    group = {**group, "profile": profile}
    counts = [group.get("hosts"), group.get("devices")]
    if not isinstance(profile, Profile) or not all(whole_number(count) for count in counts):
        # Validation says what is wrong with these, and need not say that levels are missing.
        return {"levels": [_ANY_LEVEL], **group}
    hosts, devices = group["hosts"], group["devices"]
    usual = default_links(profile, hosts, devices)
    given = group.get("levels", [])
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        return group
    return {**group, "levels": _merged(usual, given, hosts, devices, f"{field}.levels", path)}


def _merged(
    usual: Sequence[LinkLevel],
    given: Sequence[Mapping[str, Any]],
    hosts: int,
    devices: int,
    field: str,
    path: str,
) -> list[dict[str, Any]]:
    """The usual levels with what the file gives in their place."""
    by_name: dict[str, dict[str, Any]] = {level.name: level.model_dump() for level in usual}
    seen = set()
    for index, item in enumerate(given):
        name = item.get("name")
        if name not in LEVELS or name in seen:
            problem = f"is there twice: {name}" if name in seen else f"is {name!r}"
            raise ClusterError(
                f"{path}: the field {field}.{index}.name {problem}; "
                f"expected one of {', '.join(LEVELS)}, each once.",
                "Name each level once.",
            )
        seen.add(name)
        level = by_name.setdefault(name, {})
        changed = {key: value for key, value in item.items() if key != "cards"}
        level.update(changed)
        if name == "host":
            level.setdefault("devices", devices)
        if name == "across":
            level.setdefault("devices", hosts * devices)
        if "cards" in item:
            where = f"{path}: the field {field}.{index}"
            level.update(_shared(item, level, devices, where))
    return [by_name[name] for name in LEVELS if name in by_name]


def _shared(
    item: Mapping[str, Any], level: Mapping[str, Any], devices: int, where: str
) -> dict[str, Any]:
    """Who shares what, of so many network `cards` a host, each of `bytes_per_s`."""
    cards, speed = item["cards"], level.get("bytes_per_s")
    if not whole_number(cards) or (devices % cards and cards % devices):
        raise ClusterError(
            f"{where}.cards is {cards!r}; expected a whole number of cards a host that divides its "
            f"{devices} devices, or is a multiple of them.",
            "Give shared_by (devices a card) and bytes_per_s instead where cards are uneven.",
        )
    if "shared_by" in item:
        raise ClusterError(
            f"{where} has both cards and shared_by, which say the same.", "Leave one of them out."
        )
    if cards <= devices or not isinstance(speed, int | float):
        return {"shared_by": devices // cards or 1}
    return {"shared_by": 1, "bytes_per_s": speed * (cards // devices)}


def _complete_between(data: dict[str, Any], path: str) -> None:
    between = data.get("between")
    if between is None:
        return
    if len(data["groups"]) < 2:
        raise ClusterError(
            f"{path}: the field between is there, but only one group of hosts.",
            "Say what joins the hosts of one group in its levels, under the name across.",
        )
    if isinstance(between, dict):
        counts = [
            group["hosts"] * group["devices"]
            for group in data["groups"]
            if isinstance(group, dict)
            and whole_number(group.get("hosts"))
            and whole_number(group.get("devices"))
        ]
        if len(counts) == len(data["groups"]):
            data["between"] = {"name": "across", "devices": sum(counts), **between}
