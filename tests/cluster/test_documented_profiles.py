"""The tables of the reference page are those of the built-in profiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from documented import tables

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.plausible import implausible_profile
from meshwright.cluster.types import Fitted, HostGroup, Link, LinkLevel, Profile, Record, Tier

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "clusters-and-profiles.md"


@pytest.mark.parametrize("which", [0, 1], ids=["devices", "hosts"])
def test_the_table_is_on_the_page(which: int) -> None:
    page = PAGE.read_text()
    for row in tables()[which].splitlines():
        assert row in page, "run `python tests/cluster/documented.py` and paste what it prints"
    assert tables()[which] in page


@pytest.mark.parametrize("record", [Profile, Fitted, Link, Tier, LinkLevel, HostGroup])
def test_every_field_is_described(record: type[Record]) -> None:
    """By its name in code font, somewhere on the page."""
    page = PAGE.read_text()
    assert [name for name in record.model_fields if f"`{name}`" not in page] == []


def test_the_page_shows_a_cluster_file_that_is_read(tmp_path: Path) -> None:
    (example,) = (
        block.partition("```")[0]
        for block in PAGE.read_text().split("```json\n")[1:]
        if '"groups"' in block
    )
    file = tmp_path / "cluster.json"
    file.write_text(example)
    cluster = parse_cluster(str(file))
    assert cluster.size == 4 * 8 + 36 * 4
    first, second = cluster.groups
    assert [(level.name, level.devices) for level in first.levels] == [
        ("host", 8), ("rack", 16), ("across", 32),
    ]  # fmt: skip
    assert first.levels[1].device_bytes_per_s == 50e9 * 4 / 8
    assert second.levels[1].devices == 72
    assert cluster.outermost.device_bytes_per_s == 12.5e9 / 8


def test_the_page_shows_a_profile_that_is_read() -> None:
    (example,) = (
        block.partition("```")[0]
        for block in PAGE.read_text().split("```json\n")[1:]
        if '"peak_flops_by_dtype"' in block
    )
    assert implausible_profile(Profile.model_validate_json(example)) is None
