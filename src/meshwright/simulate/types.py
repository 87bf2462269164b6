"""What the simulator says about one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from meshwright.plan.types import Collective, Pipeline


class Event(NamedTuple):
    """One stretch of a queue of a stage.

    `queue` is `compute`; `communication`, or the axis whose communicator it is;
    or the stage that something is sent to.
    """

    name: str
    queue: str
    start_s: float
    end_s: float
    stage: int = 0


class MemoryPoint(NamedTuple):
    """Memory in use while `label` runs."""

    label: str
    bytes: int


class MemoryMoment(NamedTuple):
    """Most memory in use while `label` runs, which it starts to do at `start_s`."""

    label: str
    bytes: int
    start_s: float


@dataclass(frozen=True, slots=True)
class StageResult:
    """One stage: a device of it, since all its devices do the same.

    compute_s: its compute, clipping and optimizer included. stalls: the rest of
    the step, by what the stage waits for: `bubble` for other stages, `transfer` for
    values on their way, `collectives`, `gathers`, `gradient reduction`, `data` for
    the batch, `launches` for the host, `contention` with collectives that run beside
    compute, `overhead`. Both together are the step.
    """

    modules: tuple[str, ...]  # where its pieces begin
    compute_s: float
    communication_s: float
    stalls: Mapping[str, float]
    peak_memory_bytes: int
    memory: Mapping[str, int]
    peak_at: str
    peak_source: str
    curve: tuple[MemoryMoment, ...] = ()

    @property
    def bubble_s(self) -> float:
        return self.stalls.get("bubble", 0.0)


COMMUNICATION_STALLS = ("transfer", "collectives", "gathers", "gradient reduction")


@dataclass(frozen=True, slots=True)
class Simulation:
    """One step: time, memory, collectives.

    `memory` says what the peak is made of, in bytes: `parameters`, `gradients`,
    `optimizer`, `buffers` (constants included), `batch`, `gathered` (parameters
    in their gathered form) and `activations` (everything else that a microbatch
    makes). It sums up to `peak_memory_bytes`. `peak_at` names the op, or the
    part of the step, at the peak. `flops` are those that the device executes,
    recomputation included. `events` and `curve` are empty unless they were
    asked for. `collectives` are those that run, `before_merging` what they would be
    if each tensor had one of its own.

    Where the model is cut into stages, memory is that of the fullest one,
    collectives those of the one that communicates longest, and seconds and flops
    are means over them. `exposed_communication_s` is communication that compute
    waits for, `bubble` the share of the step in which a stage has nothing to do,
    and `stalls` says what else than compute the step is spent on; see
    `StageResult`. `pipeline` has its cuts filled in. `notes` names what could not
    be counted. `step_time_interval_s` is where the step's time lies, by the noise of
    the profile; None where none was measured.
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
    before_merging: tuple[Collective, ...] = ()
    events: tuple[Event, ...] = ()
    curve: tuple[MemoryPoint, ...] = ()
    peak_source: str = ""
    exposed_communication_s: float = 0.0
    bubble: float = 0.0
    stalls: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[StageResult, ...] = ()
    pipeline: Pipeline | None = None
    notes: tuple[str, ...] = ()
    step_time_interval_s: tuple[float, float] | None = None
