"""Calibration of this machine, over real processes."""

from __future__ import annotations

import time

import pytest

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Profile
from meshwright.cost.fit import median_error
from meshwright.cost.memory import OPTIMIZERS
from meshwright.errors import UsageError
from meshwright.runtime.calibrate import calibrate, calibration
from meshwright.runtime.probing import KINDS, PAYLOADS


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_two_processes() -> None:
    started = time.time()
    found = calibration(2, budget_s=1.0)
    profile = found.profile
    assert time.time() - started < 110
    assert profile.calibrated
    assert profile.processes == 2
    assert 1e8 < profile.peak_flops < 1e13
    assert 1e7 < profile.memory_bytes_per_s < 1e12
    assert 1e-7 < profile.op_overhead_s < 1e-2
    assert {(curve.kind, curve.participants) for curve in profile.collectives} == {
        (kind, 2) for kind in KINDS
    }
    assert all(len(curve.points) == len(PAYLOADS) for curve in profile.collectives)
    fitted = profile.fitted
    assert fitted is not None
    families = {"attention", "convolution2d", "convolution_backward", "softmax", "view", "matmul"}
    assert families <= fitted.ops.keys()
    assert fitted.optimizers.keys() == {key for key in OPTIMIZERS if key != "none"}
    assert {"compute", "optimizer", "collectives"} == fitted.noise.keys()
    assert [waits.participants for waits in fitted.waits] == [2]
    assert len(fitted.waits[0].points) >= 2
    assert 0.5 < fitted.contention < 50
    assert median_error(found.residuals) < 0.3
    assert len(profile.lower_tiers) <= 1
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    assert parse_cluster("local:2", profile).calibrated


@pytest.mark.parametrize(("processes", "budget_s"), [(0, 1.0), (-1, 1.0), (2, 0.0)])
def test_nonsense(processes: int, budget_s: float) -> None:
    with pytest.raises(UsageError):
        calibrate(processes, budget_s)
