"""Full collections are put off, and what the user set comes back."""

from __future__ import annotations

import gc
import subprocess
import sys

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


def test_what_is_left_at_the_end_is_not_looked_through():
    """In a process of its own: the collector stays off for what ends with it."""
    script = (
        "import gc\n"
        "from meshwright.collecting import leave_uncollected\n"
        "class Told:\n"
        "    def __del__(self):\n"
        "        print('collected')\n"
        "ring = Told()\n"
        "ring.itself = ring\n"
        "del ring\n"
        "leave_uncollected()\n"
        "assert not gc.isenabled()\n"
        "print(gc.collect(), gc.get_freeze_count() > 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["0", "True"]
