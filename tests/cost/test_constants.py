"""The file of fitted constants."""

from __future__ import annotations

from dataclasses import asdict

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
