"""What a report shows: a plan, what was measured while it ran, and how the two compare."""

from __future__ import annotations

from pydantic import Field

from meshwright.plan.types import Collective, Plan, Record

LossPoint = tuple[int, float]  # (step, loss)


class TimeRow(Record):
    """An op family or collective of a step that was timed op by op, in seconds of all of it."""

    name: str
    times: int
    predicted_s: float
    measured_s: float


class Measured(Record):
    """What the run took, per step; memory is that of the fullest device."""

    step_time_s: float
    peak_memory_bytes: int
    tokens_per_s: float | None = None
    collectives: tuple[Collective, ...] = ()  # executed, per device and step
    rows: tuple[TimeRow, ...] = ()  # the longest first


class MemoryPoint(Record):
    """Memory in use at one moment of a step; `parts` names what it is made of.

    Without `at_s`, the points of a curve are spread evenly over the step.
    """

    label: str
    bytes: int
    parts: dict[str, int] = Field(default_factory=dict)
    at_s: float | None = None


class Check(Record):
    name: str
    ok: bool
    detail: str = ""


class ReportData(Record):
    """Everything on the page. Curves of memory are of one step of the fullest device."""

    title: str
    plan: Plan
    losses: tuple[LossPoint, ...] = ()
    reference_losses: tuple[LossPoint, ...] = ()  # of one device
    measured: Measured | None = None
    memory_curve: tuple[MemoryPoint, ...] = ()  # predicted
    measured_memory_curve: tuple[MemoryPoint, ...] = ()
    memory_limit_bytes: int | None = None  # of one device
    checks: tuple[Check, ...] = ()
