"""Times of collectives, by formula and from measured curves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import (
    Cluster,
    CollectiveCurve,
    HostGroup,
    LinkLevel,
    Point,
    Profile,
    Tier,
)
from meshwright.cost.communication import (
    collective_seconds,
    point_to_point_seconds,
    tier_seconds,
)
from meshwright.cost.constants import default_constants
from meshwright.cost.families import COLLECTIVES
from meshwright.errors import RuleError, UsageError


def cluster(hosts: int = 2, devices: int = 8, **changes: Any) -> Cluster:
    profile = Profile(
        name="plain", device="cuda", source="test", memory_bytes=1, peak_flops=1.0,
        memory_bytes_per_s=1.0, op_overhead_s=0.0, matmul=(Point(x=1, seconds=1),), **changes,
    )  # fmt: skip
    group = HostGroup(
        hosts=hosts, devices=devices, profile=profile,
        levels=(
            LinkLevel(name="host", devices=devices, bytes_per_s=1e11, latency_s=1e-6),
            LinkLevel(name="across", devices=hosts * devices, bytes_per_s=1e10, latency_s=1e-5),
        ),
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


KINDS = st.sampled_from(sorted(COLLECTIVES))
BYTES = st.integers(0, 1 << 32)
CLUSTERS = st.sampled_from(
    ["4x8:h100-sxm", "8x8:a100-80g", "4x8:v100-32g", "2x8:l40s", "18x4:gb200",
     "4x8:h100-sxm+8x8:a100-80g", "local:8"]
)  # fmt: skip


@settings(max_examples=100)
@given(KINDS, BYTES, CLUSTERS, st.sampled_from([2, 4, 8, 16, 32]), st.sampled_from([1, 2, 4, 8]))
def test_slower_links_never_take_less(
    kind: str, nbytes: int, text: str, extent: int, stride: int
) -> None:
    c = parse_cluster(text)
    assume(extent * stride <= c.size)
    slower = c.model_copy(
        update={
            "groups": tuple(
                group.model_copy(
                    update={
                        "levels": tuple(
                            level.model_copy(update={"bytes_per_s": level.bytes_per_s / 2})
                            for level in group.levels
                        )
                    }
                )
                for group in c.groups
            )
        }
    )
    plain = collective_seconds(kind, extent, stride, nbytes, c)
    assert 0 < plain <= collective_seconds(kind, extent, stride, nbytes, slower)


@settings(max_examples=100)
@given(BYTES, st.sampled_from([2, 4, 8, 16, 32]), st.sampled_from(["h100-sxm", "a100-80g"]))
def test_levels_are_never_slower_than_a_ring_over_the_slowest_alone(
    nbytes: int, extent: int, kind: str
) -> None:
    for name in ("all_reduce", "all_gather", "reduce_scatter"):
        within = collective_seconds(name, extent, 1, nbytes, parse_cluster(f"32x8:{kind}"))
        across = collective_seconds(name, extent, 8, nbytes, parse_cluster(f"32x8:{kind}"))
        assert within <= across


def test_bytes_never_travel_faster_than_the_wires() -> None:
    for text, line in (("2x8:a100-80g", 300e9), ("2x8:h100-sxm", 450e9)):
        c = parse_cluster(text)
        for kind in ("all_gather", "reduce_scatter", "all_to_all"):
            assert collective_seconds(kind, 8, 1, GIB, c) > 7 / 8 * GIB / line


def test_switches_that_add_up_halve_the_traffic() -> None:
    c = parse_cluster("2x8:h100-sxm")
    group = c.groups[0]
    levels = tuple(level.model_copy(update={"in_network": False}) for level in group.levels)
    plain = c.model_copy(update={"groups": (group.model_copy(update={"levels": levels}),)})
    fast, slow = (collective_seconds("all_reduce", 8, 1, GIB, item) for item in (c, plain))
    assert 1.2 < slow / fast < 2
    for kind in ("all_gather", "all_to_all"):
        assert collective_seconds(kind, 8, 1, GIB, c) == collective_seconds(kind, 8, 1, GIB, plain)


def test_small_messages_take_a_protocol_of_low_latency() -> None:
    c = parse_cluster("2x8:a100-80g")
    one = replace(default_constants(), hop_latency_in_host_s=34e-6)
    assert collective_seconds("all_gather", 8, 1, 8, c, one) < 7 * 34e-6


def test_broadcasts_of_accelerators_go_round_a_ring() -> None:
    """NCCL has no other way for them: the time grows with the number of devices."""
    few, many = (
        collective_seconds("broadcast", 8 * hosts, 1, 1 << 20, parse_cluster(f"{hosts}x8:a100-80g"))
        for hosts in (16, 128)
    )
    assert 4 < many / few < 8
    big = collective_seconds("broadcast", 8, 1, GIB, parse_cluster("1x8:a100-80g"))
    whole = collective_seconds("all_gather", 8, 1, GIB, parse_cluster("1x8:a100-80g"))
    assert big == pytest.approx(whole * 8 / 7, rel=0.01)


def test_all_to_all_sends_out_what_goes_to_other_hosts() -> None:
    c = parse_cluster("4x8:h100-sxm")
    line = 50e9 * default_constants().link_efficiency_across
    assert collective_seconds("all_to_all", 32, 1, GIB, c) == pytest.approx(
        24 / 32 * GIB / line, rel=0.01
    )


class TestMessages:
    c = parse_cluster("4x8:h100-sxm")

    def test_inside_a_host_and_out_of_it(self) -> None:
        inside = point_to_point_seconds(GIB, 0, 4, self.c)
        across = point_to_point_seconds(GIB, 0, 8, self.c)
        assert point_to_point_seconds(GIB, 3, 3, self.c) == 0
        assert across > 5 * inside > 5 * GIB / 450e9

    def test_senders_share_links(self) -> None:
        group = self.c.groups[0]
        levels = (*group.levels[:-1], group.levels[-1].model_copy(update={"shared_by": 4}))
        c = self.c.model_copy(update={"groups": (group.model_copy(update={"levels": levels}),)})
        alone = point_to_point_seconds(GIB, 0, 8, c, senders=1)
        assert alone == pytest.approx(point_to_point_seconds(GIB, 0, 8, self.c))
        assert point_to_point_seconds(GIB, 0, 8, c) == pytest.approx(4 * alone, rel=1e-3)

    def test_kinds_of_host_wait_for_the_slower(self) -> None:
        c = parse_cluster("1x8:h100-sxm+1x8:a100-80g")
        assert point_to_point_seconds(GIB, 7, 8, c) == pytest.approx(
            point_to_point_seconds(GIB, 0, 8, parse_cluster("2x8:a100-80g")), rel=0.01
        )


@pytest.mark.parametrize("halves", ["6x8:{0}+6x8:{0}", "4x8:{0}+8x8:{0}", "8x8:{0}+4x8:{0}"])
@pytest.mark.parametrize("kind", sorted(COLLECTIVES))
def test_hosts_cost_the_same_in_however_many_groups_they_are_written(
    kind: str, halves: str
) -> None:
    """Hosts of one kind lead out over the same cards, to hosts of any group."""
    whole = parse_cluster("12x8:a100-80g")
    parts = parse_cluster(halves.format("a100-80g"))
    for extent, stride in ((96, 1), (48, 2), (24, 4), (12, 8), (6, 16), (3, 32), (2, 48)):
        for nbytes in (256, 1 << 20, 1 << 28):
            once = collective_seconds(kind, extent, stride, nbytes, whole)
            # A tree inside each group may have one round more than the tree over all of them.
            most = 1.3 if kind == "all_reduce" else 1 + 1e-9
            assert 1 - 1e-9 <= collective_seconds(kind, extent, stride, nbytes, parts) / once < most


def test_all_to_all_of_a_mixed_cluster_takes_no_less_than_on_its_slower_kind() -> None:
    mixed = parse_cluster("4x8:h100-sxm+8x8:a100-80g")
    slower = parse_cluster("12x8:a100-80g")
    assert collective_seconds("all_to_all", 96, 1, GIB, mixed) >= (
        collective_seconds("all_to_all", 96, 1, GIB, slower) * (1 - 1e-9)
    )


@pytest.mark.parametrize("kind", sorted(COLLECTIVES))
def test_a_links_own_latency_counts_where_it_is_longer_than_the_fitted_hop(kind: str) -> None:
    usual = parse_cluster("2x8:h100-sxm")
    group = usual.groups[0]
    far = group.levels[1].model_copy(update={"latency_s": 1e-3})
    slow = usual.model_copy(
        update={"groups": (group.model_copy(update={"levels": (group.levels[0], far)}),)}
    )
    assert collective_seconds(kind, 2, 8, 64, slow) > 10 * collective_seconds(kind, 2, 8, 64, usual)
    assert collective_seconds(kind, 8, 1, 64, slow) == collective_seconds(kind, 8, 1, 64, usual)


def test_axes_inside_one_kind_of_host_cost_what_the_slower_kind_takes() -> None:
    both = parse_cluster("2x8:h100-sxm+2x8:a100-80g")
    slow = parse_cluster("2x8:a100-80g")
    for extent, stride in ((8, 1), (4, 2), (16, 1)):
        assert collective_seconds("all_gather", extent, stride, GIB, both) == collective_seconds(
            "all_gather", extent, stride, GIB, slow
        )


def test_copies_between_tiers() -> None:
    tier = Tier(
        name="host", bytes=1 << 40, read_bytes_per_s=50e9, write_bytes_per_s=25e9, latency_s=1e-5
    )
    read, written = (tier_seconds(1e9, tier, direction) for direction in ("read", "write"))
    assert 1e9 / 50e9 < read < written < 2.1 * read
    shared = tier.model_copy(update={"shared_by": 4})
    assert tier_seconds(1e9, shared, "read") > 3.9 * read


def test_an_axis_that_the_cluster_has_no_devices_for_is_refused() -> None:
    with pytest.raises(UsageError, match="16 devices"):
        collective_seconds("all_reduce", 16, 2, GIB, parse_cluster("2x8:h100-sxm"))
