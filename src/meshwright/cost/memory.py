"""Memory that a device holds between steps, and what the optimizer does to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshwright.cluster.types import Profile
from meshwright.cost.compute import streaming_seconds
from meshwright.errors import UsageError
from meshwright.layout.lowered import StoredParameter
from meshwright.program.types import Value


@dataclass(frozen=True, slots=True)
class OptimizerCost:
    """states: tensors of the parameter's size kept between steps.
    passes: times that a parameter's size is read or written in one step.
    ops: launches that a parameter's step takes, the optimizer's own Python counted as some.
    scratch: tensors of a parameter's size that live while it is stepped.

    PyTorch's own unfused optimizers are counted, pass by pass.
    """

    states: int
    passes: int
    ops: int
    scratch: int


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
) -> float:
    """Seconds of one optimizer step over the local shards."""
    cost = optimizer_cost(optimizer)
    if not cost.ops:
        return 0.0
    return sum(
        cost.ops * streaming_seconds(values[item.value].nbytes * cost.passes / cost.ops, profile)
        for item in parameters
        if item.trainable and item.gradient is not None
    )
