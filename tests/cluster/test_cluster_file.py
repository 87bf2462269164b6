"""Clusters that a file describes in full, and files that contradict themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.profile_file import builtin_profile
from meshwright.errors import ClusterError


def write(folder: Path, content: object) -> str:
    path = folder / "cluster.json"
    path.write_text(json.dumps(content))
    return str(path)


def group(**changes: Any) -> dict[str, Any]:
    return {"hosts": 4, "devices": 8, "profile": "h100-sxm"} | changes


def test_a_file_may_state_everything(tmp_path: Path) -> None:
    """Two groups, one with racks and four cards a host, and a slow link between the groups."""
    first = group(
        levels=[
            {"name": "device", "devices": 2, "bytes_per_s": 9e11, "latency_s": 1e-6},
            {"name": "rack", "devices": 16, "bytes_per_s": 5e10, "latency_s": 5e-6, "cards": 4},
            {"name": "across", "bytes_per_s": 1e11, "latency_s": 1e-5, "shared_by": 16},
        ]
    )
    second = {"hosts": 2, "devices": 4, "profile": builtin_profile("l4").model_dump()}
    between = {"bytes_per_s": 1.25e9, "latency_s": 1e-3, "shared_by": 8}
    cluster = parse_cluster(write(tmp_path, {"groups": [first, second], "between": between}))
    levels = [(level.name, level.devices, level.device_bytes_per_s)
              for level in cluster.groups[0].levels]  # fmt: skip
    assert levels == [
        ("device", 2, 9e11), ("host", 8, 450e9), ("rack", 16, 2.5e10), ("across", 32, 6.25e9),
    ]  # fmt: skip
    assert [level.name for level in cluster.groups[1].levels] == ["host", "across"]
    assert cluster.outermost.devices == cluster.size == 40
    assert cluster.outermost.device_bytes_per_s == 1.25e9 / 8


@pytest.mark.parametrize(
    ("cards", "shared_by", "bytes_per_s"), [(1, 8, 5e10), (2, 4, 5e10), (8, 1, 5e10), (16, 1, 1e11)]
)
def test_cards_of_a_host(tmp_path: Path, cards: int, shared_by: int, bytes_per_s: float) -> None:
    level = {"name": "across", "bytes_per_s": 5e10, "cards": cards}
    cluster = parse_cluster(write(tmp_path, {"groups": [group(levels=[level])]}))
    across = cluster.groups[0].levels[-1]
    assert (across.shared_by, across.bytes_per_s) == (shared_by, bytes_per_s)


def test_a_domain_wider_than_a_host(tmp_path: Path) -> None:
    """Hosts of four behind one NVLink domain, stated rather than built in."""
    rack = {"name": "rack", "devices": 32, "bytes_per_s": 9e11, "latency_s": 3e-6}
    content = {"groups": [group(hosts=16, devices=4, levels=[rack])]}
    cluster = parse_cluster(write(tmp_path, content))
    assert [level.devices for level in cluster.groups[0].levels] == [4, 32, 64]


def test_groups_without_a_link_between_take_the_slowest() -> None:
    cluster = parse_cluster("2x8:h100-sxm+2x8:l4")
    assert cluster.between is None
    assert cluster.outermost.device_bytes_per_s == 12.5e9 / 8
    assert cluster.outermost.devices == 32


LEVEL = {"name": "across", "bytes_per_s": 1e10}
WRONG: list[tuple[object, str]] = [
    # Levels that don't fit the hosts.
    (group(levels=[LEVEL | {"devices": 64}]), "groups.0: levels.1.devices is 64, but 4 hosts of 8"),
    (group(levels=[LEVEL | {"devices": 16}]), "levels.1.devices is 16: the last level has to join"),
    (group(levels=[{"name": "host", "devices": 6}]), "levels.0.devices is 6, but a host has 8"),
    (group(levels=[{"name": "device", "devices": 3, "bytes_per_s": 1e9, "latency_s": 0}]),
     "which does not divide a host's 8 devices"),
    (group(levels=[{"name": "rack", "devices": 12, "bytes_per_s": 1e9, "latency_s": 0}]),
     "levels.1.devices is 12, which is no multiple of the 8"),
    (group(levels=[{"name": "rack", "devices": 16, "latency_s": 0}]),
     "groups.0.levels.1.bytes_per_s is missing"),
    (group(levels=[{"name": "rack", "bytes_per_s": 1e9, "latency_s": 0}]),
     "groups.0.levels.1.devices is missing"),
    (group(levels=[LEVEL | {"shared_by": 33}]), "shared_by is 33, but there are 32 devices"),
    (group(levels=[LEVEL | {"shared_by": 0}]), "groups.0.levels.1.shared_by is wrong"),
    (group(levels=[LEVEL | {"cards": 3}]), "groups.0.levels.0.cards is 3; expected a whole number"),
    (group(levels=[LEVEL | {"cards": True}]), "groups.0.levels.0.cards is True"),
    (group(levels=[LEVEL | {"cards": 4, "shared_by": 2}]), "both cards and shared_by"),
    (group(levels=[LEVEL, LEVEL]), "groups.0.levels.1.name is there twice"),
    (group(levels=[{"name": "rock"}]), "groups.0.levels.0.name is 'rock'; expected one of device"),
    (group(levels=[{}]), "groups.0.levels.0.name is None"),
    (group(levels=[LEVEL | {"bandwidth": 3}]), "groups.0.levels.1.bandwidth is unknown"),
    (group(levels=3), "groups.0.levels is wrong"),
    # Units and signs.
    (group(levels=[LEVEL | {"bytes_per_s": 50}]), "levels.1.bytes_per_s is 50; expected"),
    (group(levels=[LEVEL | {"bytes_per_s": -1e9}]), "groups.0.levels.1.bytes_per_s is wrong"),
    (group(levels=[LEVEL | {"latency_s": 3}]), "groups.0.levels.1.latency_s is 3; expected"),
    (group(levels=[LEVEL | {"bytes_per_s": "fast"}]), "groups.0.levels.1.bytes_per_s is wrong"),
    (group(hosts=10**9), "groups.0.hosts is 1e+09"),
    (group(devices=10**5), "groups.0.devices is 100000"),
    (group(hosts=2.5), "groups.0.hosts is wrong"),
    (group(hosts=True), "groups.0.hosts is wrong: got True"),
    (group(profile="h101"), "h101"),
    (group(profile=None), "groups.0.profile"),
    (group(profile=builtin_profile("l4").model_dump() | {"memory_bytes": 24}),
     "groups.0.profile.memory_bytes is 24; expected 1e+06 to 1e+14 bytes"),
    (group(profile=builtin_profile("l4").model_dump() | {"memory_bytes": -24}),
     "groups.0.profile.memory_bytes is wrong"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_contradictions_name_the_field(tmp_path: Path, wrong: object, said: str) -> None:
    with pytest.raises(ClusterError) as caught:
        parse_cluster(write(tmp_path, {"groups": [wrong]}))
    assert said in caught.value.message
    assert "cluster.json" in caught.value.message or "h101" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("between", "groups", "said"),
    [
        ({"bytes_per_s": 1e9, "latency_s": 0}, 1, "between is there, but only one group"),
        ({"bytes_per_s": 1e9}, 2, "between.latency_s is missing"),
        ({"bytes_per_s": 50, "latency_s": 0}, 2, "between.bytes_per_s is 50"),
        ({"bytes_per_s": 1e9, "latency_s": 0, "devices": 3}, 2, "between.devices is 3"),
        (4, 2, "between"),
    ],
)
def test_between_groups(tmp_path: Path, between: object, groups: int, said: str) -> None:
    with pytest.raises(ClusterError) as caught:
        parse_cluster(write(tmp_path, {"groups": [group()] * groups, "between": between}))
    assert said in caught.value.message
