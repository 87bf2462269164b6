"""Waiting at collectives: measured for processes that share cores, none for devices."""

import pytest

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import CollectiveCurve, Fitted, Point, Profile, Waits
from meshwright.cost.table import CostTable
from meshwright.cost.waiting import Since, waiting_seconds

_WAITS = (
    Waits(participants=2, points=(Point(x=1e-3, seconds=1e-3), Point(x=1e-2, seconds=3e-3))),
    Waits(participants=4, points=(Point(x=1e-3, seconds=2e-3), Point(x=1e-2, seconds=8e-3))),
)


def _measured() -> Profile:
    launch = {"pointwise": (1e-5, 1e-9, 1e-9)}
    return Profile(
        name="measured", device="cpu", source="a test", memory_bytes=1 << 30, peak_flops=1e10,
        memory_bytes_per_s=1e10, op_overhead_s=1e-5, calibrated=True, processes=4,
        matmul=(Point(x=1e6, seconds=1e-4),),
        collectives=(
            CollectiveCurve(kind="all_reduce", participants=4, points=(Point(x=1, seconds=5e-3),)),
        ),
        fitted=Fitted(ops=launch, cache_bytes=1 << 20, waits=_WAITS),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("extent", "worked_s", "waited_s"),
    [
        (4, 0.0, 0.0),
        (4, 5e-4, 1e-3),  # below what was measured: in proportion
        (4, 1e-3, 2e-3),
        (4, 1e-1, 8e-2),  # and above
        (2, 1e-3, 1e-3),
        (3, 1e-3, 2e-3),  # of two counts as near, the larger one
        (1, 1e-3, 0.0),
    ],
)
def test_waiting_is_read_from_the_curve(extent: int, worked_s: float, waited_s: float) -> None:
    assert waiting_seconds([_measured()], extent, worked_s) == pytest.approx(waited_s)


def test_a_collective_after_work_takes_its_time_and_the_wait() -> None:
    costs = CostTable(parse_cluster("local:4", _measured()))
    at_once = costs.collective("all_reduce", 4, 1, 1)
    assert at_once == pytest.approx(5e-3)
    assert costs.collective("all_reduce", 4, 1, 1, 1e-3) == pytest.approx(7e-3)
    assert costs.collective("all_reduce", 4, 1, 1) == at_once  # what is kept is without it


def test_devices_of_their_own_do_not_wait() -> None:
    costs = CostTable(parse_cluster("1x8:h100-sxm"))
    assert costs.collective("all_reduce", 8, 1, 1024, 1.0) == costs.collective(
        "all_reduce", 8, 1, 1024
    )


def test_work_counts_from_one_meeting_to_the_next() -> None:
    since = Since(1.0)
    since.worked(2.0)
    assert since.met() == 3.0
    since.worked(0.5)
    assert (since.met(), since.met()) == (0.5, 0.0)
