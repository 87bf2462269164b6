"""What the simulator says about one step of one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from meshwright.plan.types import Collective


class Event(NamedTuple):
    """One stretch of a queue: `queue` is `compute` or `communication`."""

    name: str
    queue: str
    start_s: float
    end_s: float


class MemoryPoint(NamedTuple):
    """Memory in use while `label` runs."""

    label: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """One step of one device: time, memory, collectives.

    `memory` says what the peak is made of, in bytes: `parameters`, `gradients`,
    `optimizer`, `buffers` (constants included), `batch`, `gathered` (parameters
    in their gathered form) and `activations` (everything else that a microbatch
    makes). It sums up to `peak_memory_bytes`. `peak_at` names the op, or the
    part of the step, at the peak. `flops` are those that the device executes,
    recomputation included. `events` and `curve` are empty unless they were
    asked for.
    """

    step_time_s: float
    compute_s: float
    communication_s: float
    optimizer_s: float
    peak_memory_bytes: int
    memory: dict[str, int]
    peak_at: str
    collectives: tuple[Collective, ...]
    flops: float
    events: tuple[Event, ...] = ()
    curve: tuple[MemoryPoint, ...] = ()
