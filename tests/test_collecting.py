"""Full collections are put off, and what the user set comes back."""

from __future__ import annotations

import gc

import pytest

from meshwright.collecting import rare_collections


@pytest.mark.parametrize("before", [(700, 10, 10), (0, 10, 10), (500_000, 5, 3)])
def test_thresholds_are_raised_and_put_back(before):
    usual = gc.get_threshold()
    gc.set_threshold(*before)
    during = []
    try:
        with pytest.raises(KeyError):
            _fail(during)
        after = gc.get_threshold()
    finally:
        gc.set_threshold(*usual)
    assert after == before
    youngest, _, oldest = during
    assert youngest == 0 if not before[0] else youngest >= max(before[0], 100_000)
    assert oldest >= 1_000


@rare_collections()
def _fail(during: list[int]) -> None:
    during += gc.get_threshold()
    raise KeyError
