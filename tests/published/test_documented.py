"""The page of published measurements says what the committed result and constants say."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.published.fit import FITTED
from benchmarks.published.show import markdown

from meshwright.cost.constants import entries

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "internals" / "published.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "benchmarks" / "published" / "result.json").read_text())


def test_the_table_of_errors_is_the_results() -> None:
    assert markdown(RESULT) in PAGE


def test_the_fitted_constants_are_the_files() -> None:
    values = {entry.name: entry.value for entry in entries()}
    for name in FITTED:
        assert f"| `{name}` | {values[name]:g} |" in PAGE


def test_the_result_is_within_what_is_asked_of_it() -> None:
    """Fully specified rows of A100 and H100, those held out among them."""
    for part in ("a100_h100", "a100_h100 held-out"):
        step, memory = (RESULT["parts"][part][name] for name in ("step_time", "memory"))
        assert step["median"] <= 0.10
        assert step["p90"] <= 0.25
        assert step["rank"] >= 0.9
        assert memory["median"] <= 0.08
