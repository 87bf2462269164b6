"""Clusters and profiles: what there is to run on, and what it was measured to do. Pure data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(Record):
    """One measured point of a curve: `x` in the curve's unit, the time it took in seconds."""

    x: float = Field(gt=0)
    seconds: float = Field(gt=0)


class CollectiveCurve(Record):
    """Measured time of one collective kind over `participants` devices, by payload bytes."""

    kind: str
    participants: int = Field(ge=2)
    points: tuple[Point, ...]


class Profile(Record):
    """Coefficients of one kind of device, measured by `calibrate` or published.

    matmul: time by FLOPs of one matmul, at the dtype named; rates follow from it.
    memory_bytes_per_s: streaming bandwidth of pointwise ops, reads and writes counted.
    op_overhead_s: fixed time of one op's launch.
    memory_bytes: memory of one device.
    peak_flops: arithmetic rate that MFU is stated against, in FLOP/s.
    """

    format_version: int = 1
    name: str
    device: str  # "cpu" or "cuda"
    source: str  # where the figures come from
    memory_bytes: int = Field(gt=0)
    peak_flops: float = Field(gt=0)
    memory_bytes_per_s: float = Field(gt=0)
    op_overhead_s: float = Field(ge=0)
    matmul: tuple[Point, ...]
    collectives: tuple[CollectiveCurve, ...] = ()


class HostGroup(Record):
    """`hosts` equal hosts with `devices` devices each of the kind that `profile` describes.

    intra and inter describe links by latency in seconds and bandwidth per
    direction and device in bytes/s; they are used where the profile holds no
    measured collectives.
    """

    hosts: int = Field(ge=1)
    devices: int = Field(ge=1)
    profile: Profile
    intra_bytes_per_s: float = Field(gt=0)
    intra_latency_s: float = Field(ge=0)
    inter_bytes_per_s: float = Field(gt=0)
    inter_latency_s: float = Field(ge=0)


class Cluster(Record):
    text: str  # as the user wrote it
    groups: tuple[HostGroup, ...]

    @property
    def size(self) -> int:
        return sum(group.hosts * group.devices for group in self.groups)
