"""Persistent memory and the optimizer's time."""

from __future__ import annotations

import pytest

from meshwright.cluster.profile_file import builtin_profile
from meshwright.cost.memory import optimizer_cost, optimizer_seconds, persistent_bytes
from meshwright.errors import UsageError
from meshwright.layout.lowered import StoredParameter
from meshwright.layout.types import REPLICATED
from meshwright.program.types import Value

VALUES = {name: Value(name, (100, 10), "float32", name) for name in ("w", "frozen", "mean")}


def stored(name: str, gradient: str | None) -> StoredParameter:
    return StoredParameter(
        name, (100, 10), "float32", REPLICATED, name, gradient is not None, gradient
    )


PARAMETERS = (stored("w", "dw"), stored("frozen", None))


@pytest.mark.parametrize(
    ("optimizer", "states"), [("adamw", 2), ("Adam", 2), ("sgd", 0), ("sgd-momentum", 1)]
)
def test_persistent_bytes(optimizer: str, states: int) -> None:
    held = persistent_bytes(PARAMETERS, (stored("mean", None),), VALUES, optimizer)
    assert held.parameters == 8000
    assert held.gradients == 4000
    assert held.optimizer == 4000 * states
    assert held.buffers == 4000


def test_optimizer_seconds_count_what_is_trained() -> None:
    profile = builtin_profile("cpu")
    both = optimizer_seconds(PARAMETERS, VALUES, "adamw", profile)
    assert both == optimizer_seconds(PARAMETERS[:1], VALUES, "adamw", profile)
    assert both == pytest.approx(20 * 5e-6 + 20 * 4000 / 4e9)
    assert optimizer_seconds(PARAMETERS, VALUES, "sgd", profile) < both
    assert optimizer_seconds(PARAMETERS[1:], VALUES, "adamw", profile) == 0


def test_unknown_optimizer() -> None:
    with pytest.raises(UsageError) as caught:
        optimizer_cost("magic")
    assert "magic" in caught.value.message
    assert "adamw" in caught.value.remedy
