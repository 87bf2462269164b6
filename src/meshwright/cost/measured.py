"""What calibration timed, as it is passed from processes to the fit: of JSON's types."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Timed(BaseModel):
    """One probe: what the op does (`cost.terms.Work`), and seconds of one call in each pass."""

    name: str
    key: str
    family: str
    amounts: tuple[float, ...]
    dtype: str = "float32"
    seconds: list[float] = Field(default_factory=list)


class Measured(BaseModel):
    """What one process saw; every list holds one figure for each pass.

    ops, dtypes and optimizers are in seconds of the process's own processor
    time (on an accelerator, and where several threads compute, of the clock),
    `contention` is the clock's seconds for each of those. collectives are in
    seconds by the clock.

    dtypes: one product of the same shape at each dtype. optimizers: by name,
    then by bytes of a parameter, of the step of one such parameter.
    collectives: by `kind:participants`, then by payload bytes.
    across: the same for devices of different hosts.
    waits: by participants, then by wanted processor time of the work between two
    collectives: that of the work that was done, and by the clock, what work and collective
    take longer than the collective alone.
    steps: of a step without ops, and of one more microbatch of it.
    tiers: read and write of so many bytes, by the tier's name.
    """

    device: str = "cpu"
    ops: list[Timed] = Field(default_factory=list)
    dtypes: dict[str, list[float]] = Field(default_factory=dict)
    optimizers: dict[str, dict[float, list[float]]] = Field(default_factory=dict)
    contention: list[float] = Field(default_factory=list)
    collectives: dict[str, dict[float, list[float]]] = Field(default_factory=dict)
    across: dict[str, dict[float, list[float]]] = Field(default_factory=dict)
    waits: dict[int, dict[float, list[tuple[float, float]]]] = Field(default_factory=dict)
    steps: list[tuple[float, float]] = Field(default_factory=list)
    tiers: dict[str, tuple[int, float, float]] = Field(default_factory=dict)
