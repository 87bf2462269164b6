"""Clusters and profiles: what there is to run on, and what it was measured to do. Pure data."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(Record):
    """One measured point of a curve: `x` in the curve's unit, the time it took in seconds."""

    x: float = Field(gt=0)
    seconds: float = Field(gt=0)


def _ascending(points: tuple[Point, ...]) -> tuple[Point, ...]:
    if any(later.x <= earlier.x for earlier, later in pairwise(points)):
        raise ValueError("points must be in ascending order of x, each x once")
    return points


Curve = Annotated[tuple[Point, ...], AfterValidator(_ascending)]


class CollectiveCurve(Record):
    """Measured time of one collective kind over `participants` devices, by payload bytes."""

    kind: str
    participants: int = Field(ge=2)
    points: Curve = Field(min_length=1)


class Links(Record):
    """Links of a usual host of one kind of device.

    Latency in seconds; bandwidth per direction and device in bytes/s, as a
    collective achieves it. `intra` joins devices of one host, `inter` joins hosts.
    """

    intra_bytes_per_s: float = Field(gt=0)
    intra_latency_s: float = Field(ge=0)
    inter_bytes_per_s: float = Field(gt=0)
    inter_latency_s: float = Field(ge=0)


class Profile(Record):
    """Coefficients of one kind of device, measured by `calibrate` or published.

    matmul: time by FLOPs of one matmul, at `matmul_dtype`; rates follow from it.
    dtype_rate: speed of matmul at other dtypes, as a multiple of `matmul_dtype`'s.
    memory_bytes_per_s: streaming bandwidth of pointwise ops, reads and writes counted.
    memory: time of one pointwise op by bytes read and written, launch included;
        where it is empty, `op_overhead_s` and `memory_bytes_per_s` stand in.
    family_rate: speed of an op family (`meshwright.cost.families`) as a multiple
        of plain matmul's for the matmul-like ones, of streaming's for the rest;
        `convolution_backward` and the like overrule it for the backward.
    op_overhead_s: fixed time of one op's launch.
    memory_bytes: memory of one device.
    peak_flops: arithmetic rate that MFU is stated against, in FLOP/s.
    calibrated: true when the figures were measured where the work will run.
    processes: how many processes competed for the machine while it was measured.
    links: None where the kind of device says nothing about its host.
    """

    format_version: int = 1
    name: str
    device: str  # "cpu" or "cuda"
    source: str  # where the figures come from
    memory_bytes: int = Field(gt=0)
    peak_flops: float = Field(gt=0)
    memory_bytes_per_s: float = Field(gt=0)
    op_overhead_s: float = Field(ge=0)
    matmul: Curve = Field(min_length=1)
    collectives: tuple[CollectiveCurve, ...] = ()
    matmul_dtype: str = "float32"
    dtype_rate: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    memory: Curve = ()
    family_rate: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    calibrated: bool = False
    processes: int | None = Field(default=None, ge=1)
    links: Links | None = None


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
    groups: tuple[HostGroup, ...] = Field(min_length=1)

    @property
    def size(self) -> int:
        return sum(group.hosts * group.devices for group in self.groups)

    @property
    def memory_bytes(self) -> int:
        """Memory of its smallest device: what a plan has to fit."""
        return min(group.profile.memory_bytes for group in self.groups)

    @property
    def peak_flops(self) -> float:
        """Sum over all devices, in FLOP/s: what MFU is stated against."""
        return sum(group.hosts * group.devices * group.profile.peak_flops for group in self.groups)

    @property
    def calibrated(self) -> bool:
        return all(group.profile.calibrated for group in self.groups)
