"""The fit of constants to made-up errors: what it finds, within bounds, whatever the file says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmarks.published import fit
from benchmarks.published.rows import Row, parse_row
from published_table import GOOD

from meshwright.cost.constants import Constants, default_constants

FSDP = {"source": "llm-foundry, made up", "flash_attention": "1", "zero_or_fsdp": "3"}
ROWS = [
    parse_row(2, GOOD | source | {"gpu": gpu, "step_time_s": str(1 + k / 8)})
    for k in range(4)
    for source in ({}, FSDP)
    for gpu in ("A100-SXM-80GB", "H100-SXM-80GB")
]


def made_up(launch_s: float) -> Callable[..., tuple[list[SimpleNamespace], np.ndarray]]:
    """`log_errors` of a world in which Ampere reaches 0.8, overlap costs 0.3 and launches this."""

    def log_errors(rows: Sequence[Row], constants: Constants) -> tuple[list[Any], np.ndarray]:
        errors = []
        for row in rows:
            error = 0.3 * math.log(constants.host_launch_s / launch_s)
            if fit.touches("overlap_slowdown", row):
                error += 0.2 * math.log(constants.overlap_slowdown / 0.3)
            if "A100" in row.gpu:
                error -= 0.7 * math.log(constants.matmul_efficiency_ampere / 0.8)
            errors.append(error)
        return [SimpleNamespace(row=row, measured_s=1.0) for row in rows], np.array(errors)

    return log_errors


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> fit.Fit:
    monkeypatch.setattr(fit, "log_errors", made_up(6e-6))
    return fit.fit(ROWS)


def test_the_constants_that_errors_were_made_of_are_found(found: fit.Fit) -> None:
    assert found.constants.host_launch_s == pytest.approx(6e-6, rel=0.05)
    assert found.constants.matmul_efficiency_ampere == pytest.approx(0.8, rel=0.05)
    assert found.constants.overlap_slowdown == pytest.approx(0.3, rel=0.1)
    assert np.abs(found.errors).max() < 0.02


def test_constants_stay_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "log_errors", made_up(1e-7))
    found = fit.fit(ROWS)
    assert found.constants.host_launch_s == pytest.approx(fit.RANGES["host_launch_s"][1], rel=1e-3)
    for name, at in zip(found.names, found.at, strict=True):
        _, low, high = fit.RANGES[name]
        assert math.log(low) - 1e-9 <= at <= math.log(high) + 1e-9


def test_constants_that_no_row_asks_for_stay_at_their_start(found: fit.Fit) -> None:
    start = fit.RANGES["memory_efficiency"][0]
    assert found.constants.memory_efficiency == pytest.approx(start)


def test_the_start_is_no_matter_of_the_file(
    found: fit.Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fit.replace(default_constants(), matmul_efficiency_ampere=0.66, tile_overhead_s=9e-7)
    monkeypatch.setattr(fit, "default_constants", lambda: other)
    assert fit.fit(ROWS).constants == found.constants


def test_a_source_left_out_counts_no_more(found: fit.Fit) -> None:
    """Without the only source that overlaps, nothing is known of overlap."""
    without = found.without(FSDP["source"])
    assert without.overlap_slowdown == pytest.approx(fit.RANGES["overlap_slowdown"][0], rel=0.05)
    assert found.constants.overlap_slowdown > 1.2 * without.overlap_slowdown


def test_start_values_lie_within_bounds() -> None:
    for start, low, high in fit.RANGES.values():
        assert low <= start <= high
