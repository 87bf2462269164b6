"""The built-in profiles hold together."""

from __future__ import annotations

from itertools import pairwise

import pytest

from meshwright.cluster.profile_file import builtin_kinds, builtin_profile


def test_the_usual_kinds_are_there() -> None:
    usual = "v100-16g v100-32g a100-40g a100-80g h100-sxm h100-pcie h200 b200"
    assert set(usual.split()) <= set(builtin_kinds())
    assert "cpu" not in builtin_kinds()


@pytest.mark.parametrize("kind", [*builtin_kinds(), "cpu"])
def test_profile(kind: str) -> None:
    profile = builtin_profile(kind)
    assert profile.source
    assert not profile.calibrated
    assert profile.links
    if kind != "cpu":
        assert profile.name == kind
        assert profile.links[0].bytes_per_s > profile.links[-1].bytes_per_s
    rates = [point.x / point.seconds for point in profile.matmul]
    assert all(later > 0.999 * earlier for earlier, later in pairwise(rates))
    assert 0.4 * profile.peak_flops < rates[-1] <= profile.peak_flops
