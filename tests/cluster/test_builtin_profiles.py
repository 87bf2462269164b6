"""The built-in profiles hold together, and say where each figure comes from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import log2

import pytest

from meshwright.cluster.profile_file import builtin_kinds, builtin_profile
from meshwright.cluster.types import Profile, Record

KINDS = builtin_kinds()

# Figures that follow from nothing outside: counts of the format itself, and calibration's.
OWN = {"format_version", "processes"}


def test_the_usual_kinds_are_there() -> None:
    usual = """v100-16g v100-32g a100-40g a100-80g a100-40g-pcie a100-80g-pcie h100-sxm h100-pcie
        h100-96g-500w h200 b200 b300 gb200 gb300 l4 l40s a10g a6000 rtx-4090 mi250x mi300x tpu-v4"""
    assert set(usual.split()) <= set(KINDS)
    assert "cpu" not in KINDS


def figures(record: Record) -> Iterator[str]:
    """Names of all fields of `record` that are given and hold a number, dotted as in `sources`."""
    for field in sorted(record.model_fields_set):
        value = getattr(record, field)
        if isinstance(value, bool | str) or value is None:
            continue
        if isinstance(value, int | float):
            yield field
        elif isinstance(value, dict):
            yield from (
                f"{field}.{key}" for key, item in value.items() if not isinstance(item, str)
            )
        elif field in ("links", "lower_tiers"):
            for item in value:
                yield from (f"{field}.{item.name}.{name}" for name in figures(item))
        else:
            yield field


def has_source(figure: str, profile: Profile) -> bool:
    parts = figure.split(".")
    return any(".".join(parts[:n]) in profile.sources for n in range(1, len(parts) + 1))


@pytest.mark.parametrize("kind", [*KINDS, "cpu"])
def test_every_figure_has_a_source(kind: str) -> None:
    profile = builtin_profile(kind)
    found = set(figures(profile)) - OWN
    assert "memory_bytes" in found
    assert any(figure.startswith("links.") for figure in found)
    assert [figure for figure in sorted(found) if not has_source(figure, profile)] == []


@pytest.mark.parametrize("kind", [*KINDS, "cpu"])
def test_no_source_is_of_nothing(kind: str) -> None:
    profile = builtin_profile(kind)
    found = set(figures(profile))
    for name, text in profile.sources.items():
        assert any(f"{figure}.".startswith(f"{name}.") for figure in found), name
        # A document that can be found, or the plain word that there is none.
        assert any(mark in text for mark in ("https://", "assumed", "worked out", "nvidia-smi")), (
            text
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_profile_is_complete(kind: str) -> None:
    profile = builtin_profile(kind)
    assert profile.name == kind
    assert not profile.calibrated
    assert not profile.matmul
    assert profile.peak_flops == profile.peak_flops_by_dtype[profile.matmul_dtype]
    for needed in ("architecture", "compute_units", "clock_hz", "exponentials_per_s", "l2_bytes",
                   "power_w", "host_devices"):  # fmt: skip
        assert getattr(profile, needed) is not None, needed
    assert [tier.name for tier in profile.tiers] == ["hbm", "host", "disk"]
    assert {"host", "across"} <= {link.name for link in profile.links}


@pytest.mark.parametrize("kind", KINDS)
def test_peak_clock_and_units_belong_together(kind: str) -> None:
    """A unit's arithmetic each clock is a power of two, and no figure of the three is free."""
    profile = builtin_profile(kind)
    assert profile.compute_units
    assert profile.clock_hz
    each_clock = profile.peak_flops / profile.compute_units / profile.clock_hz
    assert log2(each_clock) == pytest.approx(round(log2(each_clock)), abs=0.01)
    assert 500 < each_clock < 33000


@pytest.mark.parametrize("kind", KINDS)
def test_narrower_dtypes_are_never_slower(kind: str) -> None:
    profile = builtin_profile(kind)
    order = ("float32", "tf32", "bfloat16", "float16", "float8", "float4")
    rates = [profile.peak_flops_by_dtype[name] for name in order  # type: ignore[index]
             if name in profile.peak_flops_by_dtype]  # fmt: skip
    assert rates == sorted(rates)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_nearer_is_faster(kind: str) -> None:
    profile = builtin_profile(kind)
    reads = [tier.read_bytes_per_s / tier.shared_by for tier in profile.tiers]
    assert reads == sorted(reads, reverse=True)
    sizes = [tier.bytes for tier in profile.tiers[1:]]
    assert sizes == sorted(sizes)
    speeds = [link.bytes_per_s / link.shared_by for link in profile.links]
    if kind != "tpu-v4":  # a chip has fewer neighbours on its tray than in its cube
        assert speeds == sorted(speeds, reverse=True)
    assert all(speed < profile.memory_bytes_per_s for speed in speeds)


def test_the_cpu_is_a_guess_of_what_is_reached() -> None:
    profile = builtin_profile("cpu")
    rates = [point.x / point.seconds for point in profile.matmul]
    assert all(later > 0.999 * earlier for earlier, later in pairwise(rates))
    assert 0.4 * profile.peak_flops < rates[-1] <= profile.peak_flops
    assert [tier.name for tier in profile.tiers] == ["ram", "disk"]
