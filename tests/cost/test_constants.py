"""The file of fitted constants."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from meshwright.cost.constants import default_constants, entries


def test_every_constant_is_described() -> None:
    for entry in entries():
        assert entry.unit in ("share", "s", "elements", "exponentials")
        assert entry.meaning
        assert entry.value > 0
        assert entry.name.endswith("_s") == (entry.unit == "s")
        if "efficiency" in entry.name or entry.unit == "share":
            assert entry.value <= 1
    assert {entry.name: entry.value for entry in entries()} == asdict(default_constants())


def test_architectures_fall_back_on_a_named_value() -> None:
    constants = default_constants()
    assert constants.matmul_efficiency("ada") == constants.matmul_efficiency_ampere
    assert constants.matmul_efficiency("tpu4") == constants.matmul_efficiency_other
    assert constants.matmul_efficiency(None) == constants.matmul_efficiency_other
    for architecture in (None, "volta", "ampere", "hopper", "blackwell", "cdna3"):
        for backward in (False, True):
            assert 0 < constants.attention_efficiency(architecture, backward) <= 1


def test_the_documentation_lists_them_as_they_are() -> None:
    page = Path(__file__).parents[2] / "docs/internals/cost-model.md"
    rows = [
        line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    for entry in entries():
        row = f"| `{entry.name}` | {entry.value:g} | {entry.unit} | {entry.meaning} |"
        assert row in rows, f"docs/internals/cost-model.md lacks the row\n{row}"
    names = {entry.name for entry in entries()}
    told = {row.split("`")[1] for row in rows}
    assert told <= names
