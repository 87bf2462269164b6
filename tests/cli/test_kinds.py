"""The listing of built-in kinds fits a terminal and leaves none out."""

from __future__ import annotations

import pytest
from command_line import Here

from meshwright.cluster.profile_file import builtin_kinds, builtin_profile


def test_a_row_for_each_kind(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = here("doctor", "--kinds")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert "…" not in done.out
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert set(builtin_kinds()) <= set(rows)
    assert rows["gb200"] == ["185", "2,500", "8,000", "900", "50", "4", "72"]
    assert rows["v100-32g"] == ["32", "125", "900", "150", "6.25", "8"]


def test_as_json_with_sources(here: Here) -> None:
    found = here("doctor", "--kinds", "--json").object["kinds"]
    assert [kind["name"] for kind in found] == list(builtin_kinds())
    for kind in found:
        assert kind["sources"] == builtin_profile(kind["name"]).sources
        assert kind["peak_flops_by_dtype"]
