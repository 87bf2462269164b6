"""What every test gets: one thread, no network, a fixed seed, and a time limit.

A test that takes longer than `timeout` in pyproject.toml (seconds) fails with
the stack of every thread; a test marked `all` gets `LONG_S`. A `timeout` marker
of its own goes before both.
"""

from __future__ import annotations

import os
from pathlib import Path

# Before PyTorch is imported, here or in a process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MESHWRIGHT_PROBE_CACHE"] = "off"  # rules found are found anew
os.environ.setdefault("MESHWRIGHT_BUDGET_SECONDS", "2")  # of a search, where a test says none

import pytest
import torch

LONG_S = 1200

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("all") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_S))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """No test's numbers depend on which tests ran before it in the same process."""
    torch.manual_seed(0)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """An empty folder of the test's own, for what a run writes."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder
