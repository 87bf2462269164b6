"""Prices of hosts and devices: where they are given, and what a wrong one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.profile_file import builtin_kinds, builtin_profile, save_profile
from meshwright.errors import ClusterError


def cluster_file(folder: Path, *groups: dict[str, Any]) -> str:
    usual = {"hosts": 2, "devices": 8, "profile": "h100-sxm"}
    path = folder / "cluster.json"
    path.write_text(json.dumps({"groups": [{**usual, **group} for group in groups]}))
    return str(path)


def test_a_host_has_a_price(tmp_path: Path) -> None:
    assert parse_cluster(cluster_file(tmp_path, {"price_per_hour": 98.5})).cost_per_hour == 197.0


def test_a_device_has_a_price_which_that_of_the_host_overrules(tmp_path: Path) -> None:
    priced = builtin_profile("h100-sxm").model_copy(update={"price_per_hour": 2.5})
    save_profile(priced, tmp_path / "priced.json")
    assert parse_cluster(f"2x8:{tmp_path}/priced.json").cost_per_hour == 40.0
    own = {"profile": "priced.json", "price_per_hour": 16.0}
    assert parse_cluster(cluster_file(tmp_path, own)).cost_per_hour == 32.0


def test_all_groups_need_one(tmp_path: Path) -> None:
    assert parse_cluster(cluster_file(tmp_path, {"price_per_hour": 10}, {})).cost_per_hour is None
    both = cluster_file(tmp_path, {"price_per_hour": 10}, {"price_per_hour": 20})
    assert parse_cluster(both).cost_per_hour == 60


def test_no_price_is_guessed() -> None:
    assert all(builtin_profile(kind).price_per_hour is None for kind in builtin_kinds())
    assert parse_cluster("1x8:h100-sxm").cost_per_hour is None


@pytest.mark.parametrize("price", [-1, 0, "cheap", 1e9, 1e-9])
def test_a_wrong_price_is_named_with_its_unit(price: object, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"groups\.0\.price_per_hour") as caught:
        parse_cluster(cluster_file(tmp_path, {"price_per_hour": price}))
    assert "money an hour" in caught.value.remedy
