"""Which links join the devices of an axis, worked out on paper and by looking at every set."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.mesh import Mesh
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.reach import level_between, reach
from meshwright.cluster.types import Cluster


def spans(text: str, extent: int, stride: int) -> list[list[tuple[str, int]]]:
    return [
        [(span.level.name, span.extent) for span in way.spans]
        for way in reach(parse_cluster(text), extent, stride)
    ]


@pytest.mark.parametrize(
    ("text", "extent", "stride", "expected"),
    [
        ("4x8:h100-sxm", 1, 1, []),
        ("4x8:h100-sxm", 8, 1, [[("host", 8)]]),
        ("4x8:h100-sxm", 2, 4, [[("host", 2)]]),
        ("4x8:h100-sxm", 4, 8, [[("across", 4)]]),
        ("4x8:h100-sxm", 32, 1, [[("host", 8), ("across", 4)]]),
        ("4x8:h100-sxm", 16, 2, [[("host", 4), ("across", 4)]]),
        ("1x8:h100-sxm", 8, 1, [[("host", 8)]]),
        # Blocks of four on hosts of six: some lie half on one host and half on the next.
        ("4x6:h100-sxm", 4, 1, [[("host", 2), ("across", 2)]]),
        ("2x6:h100-sxm", 12, 1, [[("host", 6), ("across", 2)]]),
        # A domain of 72 devices in hosts of four, and two racks of them.
        ("36x4:gb200", 144, 1, [[("host", 4), ("rack", 18), ("across", 2)]]),
        ("36x4:gb200", 8, 1, [[("host", 4), ("rack", 2)]]),
        ("36x4:gb200", 2, 72, [[("across", 2)]]),
        # The last rack is not full: blocks of sixteen lie across the border at 72.
        ("20x4:gb200", 16, 1, [[("host", 4), ("rack", 2), ("across", 2)]]),
        ("20x4:gb200", 8, 1, [[("host", 4), ("rack", 2)]]),
        ("2x8:mi250x", 16, 1, [[("device", 2), ("host", 4), ("across", 2)]]),
        # Groups: inside each, and over both.
        ("4x8:h100-sxm+8x8:a100-80g", 8, 1, [[("host", 8)], [("host", 8)]]),
        ("1x8:h100-sxm+1x8:a100-80g", 16, 1, [[("host", 8), ("across", 2)]] * 2),
        ("1x8:h100-sxm+1x8:a100-80g", 2, 8, [[("across", 2)]] * 2),
        ("1x4:h100-sxm+1x8:a100-80g", 12, 1,
         [[("host", 4), ("across", 2)], [("host", 8), ("across", 2)]]),
    ],
)  # fmt: skip
def test_on_paper(
    text: str, extent: int, stride: int, expected: list[list[tuple[str, int]]]
) -> None:
    assert spans(text, extent, stride) == expected


def test_the_slower_group_joins_groups() -> None:
    cluster = parse_cluster("1x8:h100-sxm+1x8:a100-80g")
    (way, _) = reach(cluster, 16, 1)
    assert way.spans[-1].level.bytes_per_s == 25e9
    assert way.spans[-1].level.devices == 16


@pytest.mark.parametrize(("extent", "stride"), [(0, 1), (2, 0), (-1, 1)])
def test_nonsense(extent: int, stride: int) -> None:
    with pytest.raises(ValueError, match="extent"):
        reach(parse_cluster("2x8:h200"), extent, stride)


def names_of_a_set(cluster: Cluster, ranks: tuple[int, ...]) -> set[str]:
    """Levels that join neighbours of a set, every pair looked up on its own."""
    found = set()
    for a in ranks:
        for b in ranks:
            level = level_between(cluster, a, b)
            if level is not None:
                found.add(level.name)
    return found


HOSTS = st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 6, 8]))
KINDS = st.sampled_from(["h100-sxm", "gb200", "mi250x", "a100-80g"])


@settings(deadline=None)
@given(st.lists(st.tuples(HOSTS, KINDS), min_size=1, max_size=3), st.data())
def test_against_every_set(groups: list[tuple[tuple[int, int], str]], data: st.DataObject) -> None:
    """Of all sets of an axis, none crosses a level that `reach` leaves out, and one crosses its
    outermost."""
    cluster = parse_cluster("+".join(f"{h}x{d}:{kind}" for (h, d), kind in groups))
    divisors = [n for n in range(1, cluster.size + 1) if cluster.size % n == 0]
    extent = data.draw(st.sampled_from(divisors))
    stride = data.draw(st.sampled_from([n for n in divisors if cluster.size % (n * extent) == 0]))
    ways = reach(cluster, extent, stride)
    axes = (("rest", cluster.size // (extent * stride)), ("axis", extent), ("inner", stride))
    mesh = Mesh(axes)
    sets = {mesh.peers(rank, "axis") for rank in range(cluster.size)}
    crossed = set().union(*(names_of_a_set(cluster, ranks) for ranks in sets))
    if extent == 1:
        assert ways == ()
        return
    order = ["device", "host", "rack", "across"]
    outermost = max(crossed, key=order.index)
    assert outermost in {way.spans[-1].level.name for way in ways}
    assert all(order.index(way.spans[-1].level.name) <= order.index(outermost) for way in ways)
    for way in ways:
        assert all(span.extent > 1 for span in way.spans)
        assert prod(span.extent for span in way.spans) >= extent or len(groups) > 1


def test_level_between() -> None:
    cluster = parse_cluster("36x4:gb200+2x8:h100-sxm")
    joined = {
        (0, 3): "host", (3, 4): "rack", (71, 72): "across", (143, 144): "across",
        (144, 151): "host", (151, 152): "across",
    }  # fmt: skip
    for (a, b), name in joined.items():
        for pair in ((a, b), (b, a)):
            level = level_between(cluster, *pair)
            assert level is not None
            assert level.name == name, pair
    assert level_between(cluster, 5, 5) is None
    with pytest.raises(ValueError, match="160"):
        level_between(cluster, 0, 1000)
