"""Persistent memory and the optimizer's time."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from meshwright.cluster.profile_file import builtin_profile
from meshwright.cost.constants import default_constants
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


class TestFused:
    """Adam on 10**8 elements, which are bound by memory."""

    values: ClassVar = {"w": Value("w", (10**8,), "bfloat16", "w")}
    profile = builtin_profile("a100-80g")

    def seconds(self, optimizer: str = "adamw", **changes: Any) -> float:
        return optimizer_seconds(
            (stored("w", "dw"),), self.values, optimizer, self.profile, **changes
        )

    def test_one_pass_over_everything(self) -> None:
        """Gradient, parameter and two moments, 2 bytes each, all but the gradient twice."""
        rate = self.profile.memory_bytes_per_s * default_constants().memory_efficiency
        assert self.seconds(fused=True) == pytest.approx(14e8 / rate, rel=0.01)
        assert self.seconds("sgd", fused=True) == pytest.approx(6e8 / rate, rel=0.01)
        assert self.seconds(fused=True) < 0.5 * self.seconds()

    def test_masters_and_states_in_float32(self) -> None:
        plain = self.seconds(fused=True)
        # 2 of the gradient, 3 times 8 of master and moments, 2 of the parameter written.
        assert self.seconds(fused=True, master=True) == pytest.approx(plain * 28 / 14, rel=0.01)
        assert self.seconds(fused=True, master=True, gradient_bytes=4) == pytest.approx(
            plain * 30 / 14, rel=0.01
        )

    def test_many_small_parameters_wait_for_the_host(self) -> None:
        values = {"w": Value("w", (10,), "float32", "w")}
        many = [stored("w", "dw")] * 300
        seconds = optimizer_seconds(many, values, "adamw", self.profile)
        launches = 20 * 300 / 30 + 300 / 2
        assert seconds == pytest.approx(launches * default_constants().host_launch_s)
        assert optimizer_seconds(many, values, "adamw", self.profile, fused=True) < seconds / 10


def test_unknown_optimizer() -> None:
    with pytest.raises(UsageError) as caught:
        optimizer_cost("magic")
    assert "magic" in caught.value.message
    assert "adamw" in caught.value.remedy
