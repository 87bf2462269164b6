"""Memory that a device holds between steps, and what the optimizer does to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from meshwright.cluster.types import Profile
from meshwright.cost.compute import host_seconds, streaming_seconds
from meshwright.cost.constants import Constants
from meshwright.cost.fitted import optimizer_tensor_seconds
from meshwright.cost.hardware import hardware_of
from meshwright.errors import UsageError
from meshwright.layout.lowered import StoredParameter
from meshwright.program.types import Value


@dataclass(frozen=True, slots=True)
class OptimizerCost:
    """states: tensors of the parameter's size kept between steps.
    passes: times that a parameter's size is read or written in one step.
    ops: launches that a parameter's step takes, the optimizer's own Python counted as some.
    scratch: tensors of a parameter's size that live while it is stepped.

    PyTorch's own unfused optimizers are counted, pass by pass: one parameter at a
    time on a CPU, many at once on accelerators (its `foreach` form). A fused one
    reads the gradient, and reads and writes the parameter and each state, once.
    """

    states: int
    passes: int
    ops: int
    scratch: int


# Tensors that one launch of a fused optimizer steps, as in PyTorch's multi-tensor kernels; and
# what gathering each into their lists takes the host, in ops.
_TENSORS_A_LAUNCH = 30
_HOST_OPS_A_TENSOR = 0.5

_FP32_BYTES = 4


OPTIMIZERS: Mapping[str, OptimizerCost] = {
    "sgd": OptimizerCost(states=0, passes=3, ops=4, scratch=0),
    "sgd-momentum": OptimizerCost(states=1, passes=8, ops=7, scratch=0),
    "adam": OptimizerCost(states=2, passes=18, ops=18, scratch=1),
    "adamw": OptimizerCost(states=2, passes=20, ops=20, scratch=1),
    "adagrad": OptimizerCost(states=1, passes=11, ops=12, scratch=1),
    "rmsprop": OptimizerCost(states=1, passes=13, ops=14, scratch=1),
    "none": OptimizerCost(states=0, passes=0, ops=0, scratch=0),
}


@dataclass(frozen=True, slots=True)
class PersistentBytes:
    """What one device holds between steps; gradients are those it steps with."""

    parameters: int
    gradients: int
    optimizer: int
    buffers: int


def optimizer_cost(optimizer: str) -> OptimizerCost:
    """Raises UsageError for a name outside `OPTIMIZERS`."""
    try:
        return OPTIMIZERS[optimizer.lower()]
    except KeyError:
        raise UsageError(
            f"no cost is known for the optimizer {optimizer!r}",
            f"Use one of {', '.join(OPTIMIZERS)}.",
        ) from None


def persistent_bytes(
    parameters: Iterable[StoredParameter],
    buffers: Iterable[StoredParameter],
    values: Mapping[str, Value],
    optimizer: str,
) -> PersistentBytes:
    """Bytes that a device stores for its shards of `parameters` and `buffers`."""
    stored = trained = 0
    for parameter in parameters:
        nbytes = values[parameter.value].nbytes
        stored += nbytes
        if parameter.trainable and parameter.gradient is not None:
            trained += nbytes
    return PersistentBytes(
        parameters=stored,
        gradients=trained,
        optimizer=trained * optimizer_cost(optimizer).states,
        buffers=sum(values[buffer.value].nbytes for buffer in buffers),
    )


def optimizer_seconds(
    parameters: Iterable[StoredParameter],
    values: Mapping[str, Value],
    optimizer: str,
    profile: Profile,
    constants: Constants | None = None,
    *,
    fused: bool = False,
    master: bool = False,
    gradient_bytes: int | None = None,
) -> float:
    """Seconds of one optimizer step over the local shards.

    fused: one pass over everything. master: a float32 copy of the parameters
    and float32 states are kept beside parameters of 16 bits, which is counted
    with `fused` alone. gradient_bytes: bytes of one element of a gradient
    where that is not the parameter's size.
    """
    cost = optimizer_cost(optimizer)
    if not cost.ops:
        return 0.0
    stepped = [
        values[item.value] for item in parameters if item.trainable and item.gradient is not None
    ]
    if fused:
        moved = sum(
            item.numel
            * fused_bytes(cost, item.nbytes // max(item.numel, 1), master, gradient_bytes)
            for item in stepped
        )
        launches = ceil(len(stepped) / _TENSORS_A_LAUNCH)
        return streaming_seconds(moved, profile, constants, launches)
    if profile.fitted is not None and optimizer.lower() in profile.fitted.optimizers:
        return sum(
            optimizer_tensor_seconds(optimizer.lower(), item.nbytes, profile.fitted)
            for item in stepped
        )
    if hardware_of(profile) is not None:  # PyTorch takes many tensors at once, pass by pass
        moved = cost.passes * sum(item.nbytes for item in stepped)
        launches = cost.ops * ceil(len(stepped) / _TENSORS_A_LAUNCH)
        issued = launches + _HOST_OPS_A_TENSOR * len(stepped)
        return max(
            streaming_seconds(moved, profile, constants, launches),
            host_seconds(issued, profile, constants),
        )
    return sum(
        streaming_seconds(item.nbytes * cost.passes, profile, constants, cost.ops)
        for item in stepped
    )


def fused_bytes(
    cost: OptimizerCost, item_bytes: int, master: bool, gradient_bytes: int | None = None
) -> int:
    """Bytes that one pass of a fused optimizer moves for each element."""
    gradient = item_bytes if gradient_bytes is None else gradient_bytes
    if master and item_bytes < _FP32_BYTES:
        return gradient + 2 * _FP32_BYTES * (1 + cost.states) + item_bytes
    return gradient + 2 * item_bytes * (1 + cost.states)
