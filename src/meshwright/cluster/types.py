"""Clusters and profiles: what there is to run on, and what it was measured to do. Pure data."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)

LevelName = Literal["device", "host", "rack", "across"]
TierName = Literal["hbm", "ram", "host", "disk"]
Dtypes = Literal["float64", "float32", "tf32", "bfloat16", "float16", "float8", "float4"]
CollectiveKind = Literal[
    "all_gather", "all_reduce", "all_to_all", "broadcast", "halo", "reduce_scatter", "ring_shift"
]

LEVELS: tuple[LevelName, ...] = ("device", "host", "rack", "across")


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _no_text(value: object) -> object:
    """Text and truth values are no figures, though pydantic would read "8" and true as such."""
    if isinstance(value, str | bool):
        raise ValueError("should be a number, not text or true or false")
    return value


Number = Annotated[float, BeforeValidator(_no_text)]
Whole = Annotated[int, BeforeValidator(_no_text)]


class Point(Record):
    """One measured point of a curve: `x` in the curve's unit, the time it took in seconds."""

    x: Number = Field(gt=0)
    seconds: Number = Field(gt=0)


def _ascending(points: tuple[Point, ...]) -> tuple[Point, ...]:
    if any(later.x <= earlier.x for earlier, later in pairwise(points)):
        raise ValueError("points must be in ascending order of x, each x once")
    return points


Curve = Annotated[tuple[Point, ...], AfterValidator(_ascending)]


class CollectiveCurve(Record):
    """Measured time of one collective kind over `participants` devices, by payload bytes."""

    kind: CollectiveKind
    participants: Whole = Field(ge=2)
    points: Curve = Field(min_length=1)


class Tier(Record):
    """Memory that a device can reach.

    bytes: this device's part of it. Bandwidths in bytes/s, as seen by the
    device: `read` fetches from the tier, `write` stores into it. latency_s of
    one transfer. shared_by: how many devices share the bandwidth, 1 where each has its own.
    """

    name: TierName
    bytes: Whole = Field(gt=0)
    read_bytes_per_s: Number = Field(gt=0)
    write_bytes_per_s: Number = Field(gt=0)
    latency_s: Number = Field(ge=0)
    shared_by: Whole = Field(default=1, ge=1)


class Link(Record):
    """Links of one level around a usual host of one kind of device.

    devices: how many devices one unit of the level joins; None where that
    follows from the cluster: a host's devices for `host`, all for `across`.
    bytes_per_s of one link in each direction, latency_s of one message;
    shared_by: how many devices share one link. in_network: whether its
    switches add up, so that an all_reduce sends each byte once.
    """

    name: LevelName
    devices: Whole | None = Field(default=None, ge=1)
    bytes_per_s: Number = Field(gt=0)
    latency_s: Number = Field(ge=0)
    shared_by: Whole = Field(default=1, ge=1)
    in_network: StrictBool = False

    @model_validator(mode="after")
    def _says_what_a_unit_is(self) -> Self:
        if self.devices is None and self.name in ("device", "rack"):
            raise ValueError(f"devices is needed: how many of them one {self.name} joins")
        return self


class LinkLevel(Record):
    """Links that join `devices` devices, counted in ranks from the innermost level outwards.

    A device's own link carries `bytes_per_s` in each direction; where it is
    `shared_by` several, they have that much together. `in_network` as in `Link`.
    """

    name: LevelName
    devices: Whole = Field(ge=1)
    latency_s: Number = Field(ge=0)
    bytes_per_s: Number = Field(gt=0)
    shared_by: Whole = Field(default=1, ge=1)
    in_network: StrictBool = False

    @property
    def device_bytes_per_s(self) -> float:
        """Each device's part, in each direction, while all use the level at once."""
        return self.bytes_per_s / self.shared_by


NonNegative = Annotated[Number, Field(ge=0)]


class Waits(Record):
    """Measured: how long `participants` processes wait at a collective for the last of them,
    by seconds of work that each did since they last met."""

    participants: Whole = Field(ge=2)
    points: Curve = Field(min_length=1)


class Fitted(Record):
    """Constants that `meshwright calibrate` fitted to what it timed on one machine.

    An op takes the sum of its constants in `ops` times its terms
    (`meshwright.cost.terms`): seconds a launch, a multiply-add, a byte and so on,
    of the process's own processor time. By op's name, else by family.

    contention: seconds by the clock for each second of processor time, while as
        many processes run as will: above 1 where they share cores.
    cache_bytes: what an op moves beyond it comes from memory.
    dtype_time: time of matmul-like ops at other dtypes, as a multiple of float32's.
    optimizers: by name, seconds a tensor, a byte of it, and a byte beyond the cache.
    step_s: what a step takes beside its ops, microbatch_s what each microbatch does.
    waits: of processes that share cores, beside the time of a collective on its own.
    noise: by `compute`, `collectives` and `optimizer`, how far two measurements of
        the same thing lay apart, as a share; half of it lies on either side.
    """

    ops: dict[str, tuple[NonNegative, ...]]
    contention: Number = Field(default=1.0, gt=0)
    cache_bytes: Number = Field(gt=0)
    dtype_time: dict[str, Annotated[Number, Field(gt=0)]] = Field(default_factory=dict)
    optimizers: dict[str, tuple[NonNegative, NonNegative, NonNegative]] = Field(
        default_factory=dict
    )
    step_s: Number = Field(default=0.0, ge=0)
    microbatch_s: Number = Field(default=0.0, ge=0)
    waits: tuple[Waits, ...] = ()
    noise: dict[str, NonNegative] = Field(default_factory=dict)


class Profile(Record):
    """Coefficients of one kind of device, measured by `calibrate` or published.

    Two sorts. With `matmul`, the figures are what was measured (or, for the
    built-in CPU, guessed) to be reached. Without it, they are the peaks that
    data sheets state, and the cost model's own constants say how much of them
    is reached (`meshwright.cost.constants`).

    memory_bytes: memory of one device, in bytes, that PyTorch can allocate from.
    memory_bytes_per_s: bandwidth of that memory, reads and writes counted alike.
    peak_flops: arithmetic rate that MFU is stated against, in FLOP/s: that of `matmul_dtype`.

    Of measured profiles:
    op_overhead_s: fixed time of one op's launch.
    matmul: time by FLOPs of one matmul, at `matmul_dtype`; rates follow from it.
    dtype_rate: speed of matmul at other dtypes, as a multiple of `matmul_dtype`'s.
    memory: time of one pointwise op by bytes read and written, launch included;
        where it is empty, `op_overhead_s` and `memory_bytes_per_s` stand in.
    family_rate: speed of an op family (`meshwright.cost.families`) as a multiple
        of plain matmul's for the matmul-like ones, of streaming's for the rest;
        `convolution_backward` and the like overrule it for the backward.
    collectives: measured times of collectives; read in place of `links` where there are any.
    calibrated: true when the figures were measured where the work will run.
    processes: how many processes competed for the machine while it was measured.
    fitted: constants of ops, read in place of the curves and rates above where there are any.

    Of published ones:
    architecture: generation of the chip in lower case, such as `ampere`.
    peak_flops_by_dtype: dense FLOP/s of matmuls by dtype: those of `Dtypes` that the
        device has. `float32` is what its plain units reach, tensor cores left out.
    compute_units: streaming multiprocessors, compute units or matrix units.
    clock_hz: clock at which `peak_flops` holds.
    exponentials_per_s: rate of its special-function units.
    l2_bytes: size of the cache that all compute units share.
    power_w: most power that a device may draw.
    host_devices: how many such devices a usual host has.

    Of both:
    links: of a usual host, innermost first; empty where the kind of device says
        nothing about its host.
    lower_tiers: memory beyond the device's own, nearest first.
    price_per_hour: what one device costs an hour, in whatever money; no built-in kind has one.
    sources: where figures come from, by the name of the field. `links.host` stands for
        all of that link's fields, `links.host.bytes_per_s` for one.
    """

    format_version: Literal[1] = 1
    name: str
    device: Literal["cpu", "cuda", "xla"]
    source: str  # where the figures come from
    memory_bytes: Whole = Field(gt=0)
    peak_flops: Number = Field(gt=0)
    memory_bytes_per_s: Number = Field(gt=0)
    op_overhead_s: Number = Field(default=0.0, ge=0)
    matmul: Curve = ()
    collectives: tuple[CollectiveCurve, ...] = ()
    matmul_dtype: str = "float32"
    dtype_rate: dict[str, Annotated[Number, Field(gt=0)]] = Field(default_factory=dict)
    memory: Curve = ()
    family_rate: dict[str, Annotated[Number, Field(gt=0)]] = Field(default_factory=dict)
    calibrated: StrictBool = False
    processes: Whole | None = Field(default=None, ge=1)
    fitted: Fitted | None = None
    architecture: str | None = None
    peak_flops_by_dtype: dict[Dtypes, Annotated[Number, Field(gt=0)]] = Field(default_factory=dict)
    compute_units: Whole | None = Field(default=None, ge=1)
    clock_hz: Number | None = Field(default=None, gt=0)
    exponentials_per_s: Number | None = Field(default=None, gt=0)
    l2_bytes: Whole | None = Field(default=None, ge=1)
    power_w: Number | None = Field(default=None, gt=0)
    host_devices: Whole | None = Field(default=None, ge=1)
    links: tuple[Link, ...] = ()
    lower_tiers: tuple[Tier, ...] = ()
    price_per_hour: Number | None = Field(default=None, gt=0)
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_how_fast_it_computes(self) -> Self:
        if not self.matmul and self.matmul_dtype not in self.peak_flops_by_dtype:
            raise ValueError(
                "either matmul (measured times) or peak_flops_by_dtype with the rate of "
                f"matmul_dtype, {self.matmul_dtype}, is needed"
            )
        absent = [name for name in ("compute_units", "clock_hz") if getattr(self, name) is None]
        if not self.matmul and absent:
            raise ValueError(
                f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} needed beside the "
                "peaks of a data sheet"
            )
        if self.matmul and "op_overhead_s" not in self.model_fields_set:
            raise ValueError(
                "with matmul (measured times), op_overhead_s is needed too, in seconds"
            )
        return self

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """All memory that the device can reach, its own first."""
        own = Tier(
            name="ram" if self.device == "cpu" else "hbm",
            bytes=self.memory_bytes,
            read_bytes_per_s=self.memory_bytes_per_s,
            write_bytes_per_s=self.memory_bytes_per_s,
            latency_s=0.0,
        )
        return (own, *self.lower_tiers)


class HostGroup(Record):
    """`hosts` equal hosts with `devices` devices each of the kind that `profile` describes.

    levels: the links between them, innermost first; the last joins all of them
    and, in a cluster of several groups, leads out of the group. Ranks count the
    devices of a host first. Where the profile holds measured collectives, those
    are read instead. price_per_hour: what one host costs an hour; None leaves it to the
    profile's price of a device.
    """

    hosts: int = Field(ge=1, strict=True)
    devices: int = Field(ge=1, strict=True)
    profile: Profile
    levels: tuple[LinkLevel, ...] = Field(min_length=1)
    price_per_hour: Number | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _levels_nest(self) -> Self:
        """Each level is made of whole units of the one before; the last is all there is, and
        may end in a part of a unit, such as a rack that is not full."""
        before, rank = 1, -1
        for index, level in enumerate(self.levels):
            field = f"levels.{index}"
            if LEVELS.index(level.name) <= rank:
                raise ValueError(f"{field}.name is {level.name}: levels come in the order of "
                                 f"{', '.join(LEVELS)}, each once")  # fmt: skip
            if level.devices > self.size:
                raise ValueError(f"{field}.devices is {level.devices}, but {self.hosts} hosts of "
                                 f"{self.devices} devices have {self.size}")  # fmt: skip
            if level.devices % before and level.devices < self.size:
                raise ValueError(f"{field}.devices is {level.devices}, which is no multiple of the "
                                 f"{before} that the level inside it joins")  # fmt: skip
            if level.name == "host" and level.devices != self.devices:
                raise ValueError(f"{field}.devices is {level.devices}, but a host has "
                                 f"{self.devices} devices")  # fmt: skip
            if level.name == "device" and self.devices % level.devices:
                raise ValueError(f"{field}.devices is {level.devices}, which does not divide a "
                                 f"host's {self.devices} devices")  # fmt: skip
            if level.name == "rack" and level.devices % self.devices:
                raise ValueError(f"{field}.devices is {level.devices}, which is no multiple of a "
                                 f"host's {self.devices} devices")  # fmt: skip
            if level.shared_by > self.size:
                raise ValueError(f"{field}.shared_by is {level.shared_by}, but there are "
                                 f"{self.size} devices")  # fmt: skip
            before, rank = level.devices, LEVELS.index(level.name)
        if before != self.size:
            raise ValueError(f"levels.{len(self.levels) - 1}.devices is {before}: the last level "
                             f"has to join all {self.size} devices")  # fmt: skip
        return self

    @property
    def size(self) -> int:
        return self.hosts * self.devices

    @property
    def cost_per_hour(self) -> float | None:
        """Of all its hosts; None where neither they nor their devices have a price."""
        if self.price_per_hour is not None:
            return self.hosts * self.price_per_hour
        device = self.profile.price_per_hour
        return None if device is None else self.size * device


class Cluster(Record):
    """between: links that join the groups of hosts, where there are several; else the
    slowest of what leads out of each of them."""

    text: str  # as the user wrote it
    groups: tuple[HostGroup, ...] = Field(min_length=1)
    between: LinkLevel | None = None

    @model_validator(mode="after")
    def _between_joins_all(self) -> Self:
        if self.between is not None and self.between.devices != self.size:
            raise ValueError(
                f"between.devices is {self.between.devices}, but the groups have {self.size}"
            )
        return self

    @property
    def outermost(self) -> LinkLevel:
        """The links that join everything."""
        if self.between is not None:
            return self.between
        last = [group.levels[-1] for group in self.groups]
        if len(last) == 1:
            return last[0]
        slowest = min(last, key=lambda level: level.device_bytes_per_s)
        latency_s = max(level.latency_s for level in last)
        return slowest.model_copy(update={"devices": self.size, "latency_s": latency_s})

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
    def cost_per_hour(self) -> float | None:
        """Of all there is, in the money that prices are in; None where a group has no price."""
        costs = [group.cost_per_hour for group in self.groups]
        return sum(cost for cost in costs if cost is not None) if None not in costs else None

    @property
    def calibrated(self) -> bool:
        return all(group.profile.calibrated for group in self.groups)
