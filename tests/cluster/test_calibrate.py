"""Calibration of this machine, over real processes."""

from __future__ import annotations

import time

import pytest

from meshwright.cluster.parse import parse_cluster
from meshwright.errors import UsageError
from meshwright.runtime.calibrate import calibrate


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_two_processes() -> None:
    started = time.time()
    profile = calibrate(2, budget_s=1.0)
    assert time.time() - started < 60
    assert profile.calibrated
    assert profile.processes == 2
    assert 1e8 < profile.peak_flops < 1e13
    assert 1e7 < profile.memory_bytes_per_s < 1e12
    assert 1e-7 < profile.op_overhead_s < 1e-2
    assert {(curve.kind, curve.participants) for curve in profile.collectives} == {
        (kind, 2) for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    }
    assert all(len(curve.points) == 5 for curve in profile.collectives)
    assert {"attention", "convolution", "softmax", "view"} <= profile.family_rate.keys()
    assert parse_cluster("local:2", profile).calibrated


@pytest.mark.parametrize(("processes", "budget_s"), [(0, 1.0), (-1, 1.0), (2, 0.0)])
def test_nonsense(processes: int, budget_s: float) -> None:
    with pytest.raises(UsageError):
        calibrate(processes, budget_s)
