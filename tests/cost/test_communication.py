"""Times of collectives, by formula and from measured curves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster, CollectiveCurve, HostGroup, Point, Profile
from meshwright.cost.communication import collective_seconds
from meshwright.cost.families import COLLECTIVES
from meshwright.errors import RuleError


def cluster(hosts: int = 2, devices: int = 8, **changes: Any) -> Cluster:
    profile = Profile(
        name="plain", device="cuda", source="test", memory_bytes=1, peak_flops=1.0,
        memory_bytes_per_s=1.0, op_overhead_s=0.0, matmul=(Point(x=1, seconds=1),), **changes,
    )  # fmt: skip
    group = HostGroup(
        hosts=hosts, devices=devices, profile=profile,
        intra_bytes_per_s=1e11, intra_latency_s=1e-6, inter_bytes_per_s=1e10, inter_latency_s=1e-5,
    )  # fmt: skip
    return Cluster(text="test", groups=(group,))


GIB = 1 << 30


def test_ring_inside_a_host() -> None:
    c = cluster()
    moved = 7 / 8 * GIB / 1e11
    assert collective_seconds("all_gather", 8, 1, GIB, c) == pytest.approx(7e-6 + moved)
    assert collective_seconds("reduce_scatter", 8, 1, GIB, c) == pytest.approx(7e-6 + moved)
    assert collective_seconds("all_reduce", 8, 1, GIB, c) == pytest.approx(14e-6 + 2 * moved)
    assert collective_seconds("all_to_all", 8, 1, GIB, c) == pytest.approx(7e-6 + moved)


def test_an_axis_leaves_the_host_when_its_ranks_do() -> None:
    c = cluster()
    inside = collective_seconds("all_reduce", 2, 4, GIB, c)
    across = collective_seconds("all_reduce", 2, 8, GIB, c)
    assert across > 9 * inside
    # Eight members a host bring eight network cards to the ring.
    wide = collective_seconds("all_reduce", 16, 1, GIB, c)
    assert wide < across


def test_small_all_reduces_take_the_tree() -> None:
    c = cluster(hosts=64)
    assert collective_seconds("all_reduce", 64, 8, 8, c) == pytest.approx(12e-5, rel=1e-3)


def test_one_device_needs_nothing_and_unknown_kinds_are_refused() -> None:
    assert collective_seconds("all_reduce", 1, 1, GIB, cluster()) == 0
    with pytest.raises(RuleError, match="gossip"):
        collective_seconds("gossip", 2, 1, GIB, cluster())


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(COLLECTIVES)),
    st.sampled_from([2, 4, 8, 16, 32]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 1 << 30),
    st.sampled_from(["local:4", "8x8:h100-sxm", "4x8:h100-sxm+8x8:a100-80g"]),
)
def test_more_bytes_never_cost_less(
    kind: str, extent: int, stride: int, nbytes: int, text: str
) -> None:
    c = parse_cluster(text)
    assume(extent * stride <= c.size)
    few = collective_seconds(kind, extent, stride, nbytes, c)
    many = collective_seconds(kind, extent, stride, 2 * nbytes + 1, c)
    assert 0 < few <= many


def test_mixed_clusters_wait_for_the_slowest() -> None:
    fast, slow = parse_cluster("2x8:h100-sxm"), parse_cluster("2x8:a100-80g")
    both = parse_cluster("2x8:h100-sxm+2x8:a100-80g")
    times = [collective_seconds("all_reduce", 8, 1, GIB, c) for c in (fast, slow, both)]
    assert times[0] < times[1] == times[2]


class TestMeasured:
    curves = (
        CollectiveCurve(
            kind="all_reduce",
            participants=4,
            points=(Point(x=1e3, seconds=1e-3), Point(x=1e6, seconds=1e-2)),
        ),
        CollectiveCurve(
            kind="all_reduce",
            participants=2,
            points=(Point(x=1e3, seconds=5e-4), Point(x=1e6, seconds=4e-3)),
        ),
    )

    def seconds(
        self, extent: int, nbytes: float, kind: str = "all_reduce", hosts: int = 1
    ) -> float:
        return collective_seconds(
            kind, extent, 1, nbytes, cluster(hosts, 8, collectives=self.curves)
        )

    def test_read(self) -> None:
        assert self.seconds(4, 10) == 1e-3
        assert self.seconds(4, 1e6) == pytest.approx(1e-2)
        assert self.seconds(4, 1e7) == pytest.approx(1e-1)
        assert self.seconds(2, 1e6) == pytest.approx(4e-3)

    def test_scaled_from_the_nearest_count(self) -> None:
        fixed, moved = 1e-3, 1e-2 - 1e-3
        scaled = fixed * 7 / 3 + moved * (7 / 8) / (3 / 4)
        assert self.seconds(8, 1e6) == pytest.approx(scaled)
        assert self.seconds(4, 1e6) < self.seconds(8, 1e6)

    def test_formulas_where_nothing_was_measured(self) -> None:
        plain = collective_seconds("all_gather", 4, 1, 1e6, cluster(1, 8))
        assert self.seconds(4, 1e6, "all_gather") == plain
        assert self.seconds(16, 1e9, hosts=2) == collective_seconds(
            "all_reduce", 16, 1, 1e9, cluster(2, 8)
        )
