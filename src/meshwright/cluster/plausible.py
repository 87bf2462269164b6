"""Figures that no device or link has: values in the wrong unit, found by their size.

All figures of profiles and clusters are in bytes, bytes/s, FLOP/s, Hz, W and
seconds. A data sheet states GB/s, TFLOP/s or microseconds, and what was copied
from it without a factor is off by a thousand or more. The bounds are far
beyond what there is, so that no true figure meets them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from meshwright.cluster.types import (
    Fitted,
    HostGroup,
    Link,
    LinkLevel,
    Point,
    Profile,
    Record,
    Tier,
)

__all__ = [
    "Implausible",
    "implausible_group",
    "implausible_level",
    "implausible_profile",
    "unit_of",
]


class Implausible(NamedTuple):
    """`field` is dotted, as in `links.0.bytes_per_s`."""

    field: str
    message: str
    remedy: str


class _Range(NamedTuple):
    low: float
    high: float
    unit: str
    # Units that the figure may have been written in, by name, and their size in `unit`.
    others: tuple[tuple[str, float], ...] = ()


_GB_S = (("GB/s", 1e9), ("TB/s", 1e12), ("MB/s", 1e6))
_MICRO = (("microseconds", 1e-6), ("milliseconds", 1e-3), ("nanoseconds", 1e-9))
_GB = (("GB", 1e9), ("TB", 1e12), ("MB", 1e6))

_MEMORY = _Range(1e6, 1e14, "bytes", _GB)
_STREAM = _Range(1e7, 1e15, "bytes/s", _GB_S)
_FLOPS = _Range(1e7, 1e18, "FLOP/s", (("TFLOP/s", 1e12), ("PFLOP/s", 1e15), ("GFLOP/s", 1e9)))
_LAUNCH = _Range(0, 0.05, "s", _MICRO)
_LINK = _Range(1e6, 1e14, "bytes/s", _GB_S)
_LATENCY = _Range(0, 0.5, "s", _MICRO)
_COUNT = _Range(1, 1e6, "devices")
_PRICE = _Range(
    1e-4, 1e4, "money an hour", (("a second", 3600), ("a month", 1 / 730), ("a year", 1 / 8760))
)
_TIME = _Range(0, 3600, "s", _MICRO)

_PROFILE: dict[str, _Range] = {
    "memory_bytes": _MEMORY,
    "memory_bytes_per_s": _STREAM,
    "peak_flops": _FLOPS,
    "op_overhead_s": _LAUNCH,
    "compute_units": _Range(1, 1e6, "units"),
    "clock_hz": _Range(1e7, 2e10, "Hz", (("MHz", 1e6), ("GHz", 1e9))),
    "exponentials_per_s": _Range(1e7, 1e17, "1/s", (("billions a second", 1e9),)),
    "l2_bytes": _Range(1e4, 1e11, "bytes", (("MB", 1e6), ("kB", 1e3))),
    "power_w": _Range(0.1, 1e5, "W", (("kW", 1e3), ("mW", 1e-3))),
    "host_devices": _Range(1, 4096, "devices"),
    "price_per_hour": _PRICE,
    "processes": _Range(1, 1e6, "processes"),
}
_LINKS = {"bytes_per_s": _LINK, "latency_s": _LATENCY, "shared_by": _COUNT, "devices": _COUNT}
_TIERS = {
    "bytes": _Range(1e7, 1e17, "bytes", _GB),
    "read_bytes_per_s": _LINK,
    "write_bytes_per_s": _LINK,
    "latency_s": _Range(0, 1, "s", _MICRO),
    "shared_by": _COUNT,
}
_ENDINGS = (
    ("bytes_per_s", "bytes/s"), ("bytes", "bytes"), ("flops", "FLOP/s"), ("hz", "Hz"),
    ("exponentials_per_s", "1/s"), ("_s", "seconds"), ("_w", "watts"), ("seconds", "seconds"),
    ("price_per_hour", "money an hour"),
)  # fmt: skip
_RATIO = _Range(1e-6, 1e6, "times")
_SHARE = _Range(0, 10, "times", (("percent", 0.01),))
_CONSTANT = _Range(0, 1, "s", _MICRO)
_FITTED = {
    "contention": _Range(0.01, 1e4, "times"),
    "cache_bytes": _Range(1e3, 1e12, "bytes", _GB),
    "step_s": _Range(0, 60, "s", _MICRO),
    "microbatch_s": _Range(0, 60, "s", _MICRO),
}


def implausible_profile(profile: Profile) -> Implausible | None:
    """The first figure of `profile` that no device has, or None."""
    return next(_profile(profile), None)


def implausible_group(group: HostGroup) -> Implausible | None:
    """The first figure of `group` that no host has; its profile is looked at too."""
    found = [
        Implausible(f"profile.{item.field}", item.message, item.remedy)
        for item in _profile(group.profile)
    ]
    found += _within(
        group,
        {
            "hosts": _COUNT,
            "devices": _Range(1, 4096, "devices"),
            "price_per_hour": _PRICE._replace(high=1e6),
        },
    )
    found += _records(group.levels, "levels", _LINKS)
    return next(iter(found), None)


def implausible_level(level: LinkLevel, field: str) -> Implausible | None:
    """The first figure of `level` that no link has, named as a part of `field`."""
    found = next(_within(level, _LINKS), None)
    return found and found._replace(field=f"{field}.{found.field}")


def _profile(profile: Profile) -> Iterator[Implausible]:
    yield from _within(profile, _PROFILE)
    for dtype, flops in profile.peak_flops_by_dtype.items():
        yield from _outside(f"peak_flops_by_dtype.{dtype}", flops, _FLOPS._replace(low=1e9))
    stated = profile.peak_flops_by_dtype.get(profile.matmul_dtype)  # type: ignore[call-overload]
    if not profile.matmul and stated != profile.peak_flops:
        yield Implausible(
            "peak_flops",
            f"is {profile.peak_flops:g}, but peak_flops_by_dtype.{profile.matmul_dtype} is "
            f"{stated:g}: both are the rate at matmul_dtype, in FLOP/s",
            "Give both the same value.",
        )
    yield from _records(profile.links, "links", _LINKS)
    yield from _records(profile.lower_tiers, "lower_tiers", _TIERS)
    for field in ("dtype_rate", "family_rate"):
        for name, rate in getattr(profile, field).items():
            yield from _outside(f"{field}.{name}", rate, _RATIO)
    yield from _curve("matmul", profile.matmul, _FLOPS._replace(low=1e5))
    yield from _beside_peak(profile)
    if profile.fitted is not None:
        yield from _fitted(profile.fitted)
    yield from _curve("memory", profile.memory, _STREAM._replace(low=1e5))
    for index, curve in enumerate(profile.collectives):
        yield from _outside(f"collectives.{index}.participants", curve.participants, _COUNT)
        yield from _curve(f"collectives.{index}.points", curve.points, _LINK._replace(low=1))


def _fitted(fitted: Fitted) -> Iterator[Implausible]:
    for found in _within(fitted, _FITTED):
        yield found._replace(field=f"fitted.{found.field}")
    for field in ("ops", "optimizers"):
        for name, constants in getattr(fitted, field).items():
            for index, seconds in enumerate(constants):
                yield from _outside(f"fitted.{field}.{name}.{index}", seconds, _CONSTANT)
    for field, bounds in (("dtype_time", _RATIO), ("noise", _SHARE)):
        for name, value in getattr(fitted, field).items():
            yield from _outside(f"fitted.{field}.{name}", value, bounds)


def _beside_peak(profile: Profile) -> Iterator[Implausible]:
    """Times in milliseconds still give rates that some device has, but not this one."""
    fastest = max((point.x / point.seconds for point in profile.matmul), default=None)
    if fastest and not 1e-3 <= fastest / profile.peak_flops <= 2:
        yield Implausible(
            "matmul",
            f"comes to {fastest:.3g} FLOP/s at best, but peak_flops is {profile.peak_flops:.3g}; "
            "expected at most twice of that and at least a thousandth",
            "Give times in seconds, and peak_flops in FLOP/s at matmul_dtype.",
        )


def unit_of(field: str) -> str | None:
    """The unit that a field's name states, such as bytes/s; None where it states none."""
    return next((unit for ending, unit in _ENDINGS if field.endswith(ending)), None)


def _records(
    records: tuple[Link, ...] | tuple[LinkLevel, ...] | tuple[Tier, ...],
    field: str,
    ranges: dict[str, _Range],
) -> Iterator[Implausible]:
    for index, record in enumerate(records):
        for found in _within(record, ranges):
            yield found._replace(field=f"{field}.{index}.{found.field}")


def _within(record: Record, ranges: dict[str, _Range]) -> Iterator[Implausible]:
    for field, bounds in ranges.items():
        value = getattr(record, field)
        if value is not None:
            yield from _outside(field, value, bounds)


def _curve(field: str, points: tuple[Point, ...], rates: _Range) -> Iterator[Implausible]:
    """Times must be times, and the last point's rate one that something has."""
    for index, point in enumerate(points):
        yield from _outside(f"{field}.{index}.seconds", point.seconds, _TIME)
    if points and not rates.low <= (rate := points[-1].x / points[-1].seconds) <= rates.high:
        yield Implausible(
            f"{field}.{len(points) - 1}",
            f"comes to {rate:.3g} {rates.unit} (x over seconds), and nothing lies outside "
            f"{rates.low:g} to {rates.high:g}",
            "Give x in FLOPs or bytes and the time in seconds.",
        )


def _outside(field: str, value: float, bounds: _Range) -> Iterator[Implausible]:
    if bounds.low <= value <= bounds.high:
        return
    value = min(value, 1e300)  # whole numbers of a file may be beyond all floats
    meant = next(
        (
            f" If it is in {name}, write {value * size:g}."
            for name, size in bounds.others
            if bounds.low <= value * size <= bounds.high
        ),
        "",
    )
    yield Implausible(
        field,
        f"is {value:g}; expected {bounds.low:g} to {bounds.high:g} {bounds.unit}",
        f"Give it in {bounds.unit}.{meant}",
    )
