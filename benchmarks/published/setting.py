"""How the framework of a row runs it, as the simulator takes it."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.published.settle import EIGHT_BIT, PURE, Settled

from meshwright.cluster.types import Cluster
from meshwright.cost.hardware import Kernels
from meshwright.simulate.executor import Executor

OPTIMIZER = "adamw"  # of all of these sources, in one of its variants with two states

_FASTER_KERNELS = ("hopper", "blackwell")


def executor_for(settled: Settled) -> Executor:
    framework = settled.framework
    mixed = settled.precision not in PURE
    in_float32 = mixed and settled.dims.dtype in framework.fp32_gradients
    return replace(
        framework.executor,
        compiled=settled.compiled,
        master_weights=mixed,
        master_gradients=framework.executor.master_gradients and mixed,
        gradient_dtype="float32" if in_float32 else None,
    )


def kernels_for(settled: Settled, cluster: Cluster) -> Kernels:
    framework = settled.framework
    new = cluster.groups[0].profile.architecture in _FASTER_KERNELS
    return Kernels(
        attention=framework.attention_hopper if new else framework.attention,
        linear_dtype="float8" if settled.precision in EIGHT_BIT else None,
    )
