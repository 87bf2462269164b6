"""From what processes measured to a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log
from statistics import fmean

from pydantic import BaseModel, Field

from meshwright.cluster.profile_file import builtin_profile
from meshwright.cluster.types import CollectiveCurve, Point, Profile
from meshwright.cost.compute import streaming_seconds
from meshwright.cost.curve import interpolate


class Measured(BaseModel):
    """What one process saw, in seconds of one op each.

    matmul: by FLOPs, in float32. dtypes: (FLOPs, seconds) of one matmul each.
    stream: of a pointwise op, by bytes read and written. families: (bytes,
    FLOPs, seconds) of one typical op each, FLOPs 0 where memory bounds it.
    collectives: by `kind:participants`, then by payload bytes.
    """

    overhead_s: float = 0.0
    view_s: float = 0.0
    matmul: dict[float, float] = Field(default_factory=dict)
    dtypes: dict[str, tuple[float, float]] = Field(default_factory=dict)
    stream: dict[float, float] = Field(default_factory=dict)
    families: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    collectives: dict[str, dict[float, float]] = Field(default_factory=dict)


def fit_profile(
    results: Sequence[Measured], *, name: str, source: str, memory_bytes: int
) -> Profile:
    """The mean over processes; all must have measured the same things."""
    one = results[0]
    matmul = rising({x: fmean(item.matmul[x] for item in results) for x in one.matmul})
    memory = rising({x: fmean(item.stream[x] for item in results) for x in one.stream})
    collectives = []
    for key, curve in one.collectives.items():
        kind, count = key.split(":")
        points = {x: fmean(item.collectives[key][x] for item in results) for x in curve}
        collectives.append(
            CollectiveCurve(kind=kind, participants=int(count), points=rising(points))
        )
    profile = Profile(
        name=name,
        device="cpu",
        source=source,
        memory_bytes=memory_bytes,
        peak_flops=max(point.x / point.seconds for point in matmul),
        memory_bytes_per_s=memory[-1].x / memory[-1].seconds,
        op_overhead_s=min(fmean(item.overhead_s for item in results), memory[0].seconds),
        matmul=matmul,
        memory=memory,
        collectives=tuple(collectives),
        calibrated=True,
        processes=len(results),
        links=builtin_profile("cpu").links,
    )
    return profile.model_copy(update=_rates(results, profile))


def _rates(results: Sequence[Measured], profile: Profile) -> dict[str, dict[str, float]]:
    """How fast families and dtypes are beside plain matmul and streaming."""
    overhead_s, one = profile.op_overhead_s, results[0]

    def ratio(plain_s: float, seconds: float) -> float:
        floor = 0.1 * overhead_s
        return round(max(plain_s - overhead_s, floor) / max(seconds - overhead_s, floor), 4)

    dtypes = {}
    for dtype, (flops, _) in one.dtypes.items():
        seconds = fmean(item.dtypes[dtype][1] for item in results)
        dtypes[dtype] = ratio(interpolate(profile.matmul, flops), seconds)
    families = {"view": round(overhead_s / fmean(item.view_s for item in results), 4)}
    for family, (nbytes, flops, _) in one.families.items():
        seconds = fmean(item.families[family][2] for item in results)
        bound = interpolate(profile.matmul, flops) if flops else streaming_seconds(nbytes, profile)
        families[family] = ratio(bound, seconds)
    return {"dtype_rate": dtypes, "family_rate": families}


def rising(seconds_by_x: Mapping[float, float]) -> tuple[Point, ...]:
    """The nearest curve that never falls, since more work done faster is noise.

    Isotonic regression by pooling adjacent violators, on the logarithms.
    """
    blocks: list[tuple[float, int]] = []  # (mean of the logarithms, points pooled)
    for _, seconds in sorted(seconds_by_x.items()):
        mean, count = log(seconds), 1
        while blocks and blocks[-1][0] > mean:
            before, pooled = blocks.pop()
            mean = (before * pooled + mean * count) / (pooled + count)
            count += pooled
        blocks.append((mean, count))
    levels = [exp(mean) for mean, count in blocks for _ in range(count)]
    return tuple(
        Point(x=x, seconds=seconds) for x, seconds in zip(sorted(seconds_by_x), levels, strict=True)
    )
