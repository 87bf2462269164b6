"""From measurements to a profile."""

from __future__ import annotations

import pytest

from meshwright.cluster.parse import parse_cluster
from meshwright.cost.communication import collective_seconds
from meshwright.cost.fit import Measured, fit_profile, rising


def measured(scale: float) -> Measured:
    return Measured(
        overhead_s=1e-6 * scale,
        view_s=0.5e-6 * scale,
        matmul={1e6: 1e-4 * scale, 1e8: 5e-3 * scale},
        dtypes={"bfloat16": (1e8, 1e-2 * scale)},
        stream={1e4: 2e-6 * scale, 1e7: 2e-3 * scale},
        families={
            "softmax": (1e7, 0.0, 4e-3 * scale),
            "attention": (1e4, 1e8, 1e-2 * scale),
        },
        collectives={"all_reduce:2": {1024: 1e-3 * scale, 4096: 2e-3 * scale}},
    )


def test_fit() -> None:
    results = [
        Measured.model_validate_json(measured(scale).model_dump_json()) for scale in (0.5, 1.5)
    ]
    profile = fit_profile(results, name="mine", source="here", memory_bytes=10)
    assert profile.processes == 2
    assert profile.peak_flops == pytest.approx(1e8 / 5e-3)
    assert profile.op_overhead_s == pytest.approx(1e-6)
    assert profile.family_rate["view"] == pytest.approx(2.0)
    assert profile.family_rate["softmax"] == pytest.approx(0.5, rel=1e-2)
    assert profile.family_rate["attention"] == pytest.approx(0.5, rel=1e-2)
    assert profile.dtype_rate == {"bfloat16": pytest.approx(0.5, rel=1e-2)}
    cluster = parse_cluster("local:2", profile)
    assert collective_seconds("all_reduce", 2, 1, 4096, cluster) == pytest.approx(2e-3)


def test_rising_pools_what_falls() -> None:
    seconds = [point.seconds for point in rising({4: 4.0, 1: 1.0, 2: 4.0, 3: 1.0})]
    assert seconds == pytest.approx([1.0, 2.0, 2.0, 4.0])
    assert [point.x for point in rising({3: 1.0, 1: 1.0})] == [1, 3]
