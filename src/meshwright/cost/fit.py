"""From what processes timed to a profile.

Of each probe the median over passes and the mean over processes is taken. The
constants of an op are those that bring the sum of its terms nearest to the
probes of it, every probe's relative error counted alike; the size of the
caches is the one at which all memory-bound ops together fit best. Collectives
keep their curves, since how they are run changes with the payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from statistics import fmean, median
from typing import NamedTuple

from meshwright.cluster.types import CollectiveCurve, Fitted, Link, Point, Profile, Tier, Waits
from meshwright.cost.fitted import ANY, constants_of, dot
from meshwright.cost.measured import Measured, Timed
from meshwright.cost.nonnegative import relative_fit
from meshwright.cost.terms import Work, terms
from meshwright.errors import UsageError

# Candidates for where caches end, in bytes moved by one op.
_CACHES = tuple(float(1 << power) for power in range(18, 26))
_RATE_BYTES = float(1 << 25)


class Residual(NamedTuple):
    """One probe: seconds by the clock that the fit gives, and that were measured."""

    name: str
    family: str
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1


class Fit(NamedTuple):
    profile: Profile
    residuals: tuple[Residual, ...]


def fit_profile(results: Sequence[Measured], *, name: str, source: str, memory_bytes: int) -> Fit:
    """The profile, and how far each probe is from it. All must have measured the same things.

    Raises UsageError where nothing was measured.
    """
    one = results[0]
    if not one.ops or not one.ops[0].seconds:
        raise UsageError(
            "Nothing was measured to fit a profile to", "Let the calibration take a pass."
        )
    probes = [
        (_work(timed), _combined([item.ops[k].seconds for item in results]))
        for k, timed in enumerate(one.ops)
    ]
    cache_bytes = min(_CACHES, key=lambda size: _misfit(probes, size))
    fitted = Fitted(
        ops=_constants(probes, cache_bytes),
        contention=_combined([item.contention for item in results]),
        cache_bytes=cache_bytes,
        dtype_time=_dtype_times(results),
        optimizers=_optimizers(results, cache_bytes),
        step_s=_combined([[step for step, _ in item.steps] for item in results] or [[0.0]]),
        microbatch_s=_combined([[more for _, more in item.steps] for item in results]),
        waits=_waits(results[0], _combined([item.contention for item in results])),
        noise=_noise(results),
    )
    residuals = tuple(
        Residual(
            timed.name, timed.family,
            _seconds(work, fitted) * fitted.contention, seconds * fitted.contention,
        )
        for timed, (work, seconds) in zip(one.ops, probes, strict=True)
    )  # fmt: skip
    streamed = constants_of(Work("add", ANY, (_RATE_BYTES,), "float32"), fitted)
    stream_s = fitted.contention * dot(
        streamed, terms(Work("add", ANY, (_RATE_BYTES,), "float32"), cache_bytes)
    )
    matmul = rising(_by_flops(probes, fitted.contention))
    profile = Profile(
        name=name,
        device=one.device,
        source=source,
        memory_bytes=memory_bytes,
        peak_flops=max(point.x / point.seconds for point in matmul),
        memory_bytes_per_s=_RATE_BYTES / stream_s,
        op_overhead_s=max(streamed[0], 1e-9) * fitted.contention,
        matmul=matmul,
        collectives=_curves(results),
        calibrated=True,
        processes=len(results),
        fitted=fitted,
        links=_links(results),
        lower_tiers=_tiers(results),
    )
    return Fit(profile, residuals)


def _work(timed: Timed) -> Work:
    return Work(timed.key, timed.family, timed.amounts, timed.dtype)


def _combined(by_process: Sequence[Sequence[float]]) -> float:
    """Mean over processes of each pass, and the median of those."""
    return median(fmean(values) for values in zip(*by_process, strict=True))


def _seconds(work: Work, fitted: Fitted) -> float:
    return dot(constants_of(work, fitted), terms(work, fitted.cache_bytes))


def _constants(
    probes: Iterable[tuple[Work, float]], cache_bytes: float
) -> dict[str, tuple[float, ...]]:
    """By key; and by family, over all its ops, for those that were not probed."""
    groups: dict[str, list[tuple[tuple[float, ...], float]]] = {}
    for work, seconds in probes:
        row = terms(work, cache_bytes)
        for key in {work.key, work.family}:
            groups.setdefault(key, []).append((row, seconds))
    return {
        key: relative_fit([row for row, _ in rows], [seconds for _, seconds in rows])
        for key, rows in groups.items()
    }


def _misfit(probes: Sequence[tuple[Work, float]], cache_bytes: float) -> float:
    streams = [(work, seconds) for work, seconds in probes if work.streams]
    constants = _constants(streams, cache_bytes)
    return sum(
        (dot(constants[work.key], terms(work, cache_bytes)) / seconds - 1) ** 2
        for work, seconds in streams
    )


def _dtype_times(results: Sequence[Measured]) -> dict[str, float]:
    found = {
        dtype: _combined([item.dtypes[dtype] for item in results]) for dtype in results[0].dtypes
    }
    plain = found.get("float32")
    return {
        dtype: seconds / plain for dtype, seconds in found.items() if plain and dtype != "float32"
    }


def _optimizers(
    results: Sequence[Measured], cache_bytes: float
) -> dict[str, tuple[float, float, float]]:
    found = {}
    for name, sizes in results[0].optimizers.items():
        rows = [(1.0, size, max(size - cache_bytes, 0.0)) for size in sizes]
        seconds = [_combined([item.optimizers[name][size] for item in results]) for size in sizes]
        tensor_s, byte_s, beyond_s = relative_fit(rows, seconds)
        found[name] = (tensor_s, byte_s, beyond_s)
    return found


def _by_flops(probes: Sequence[tuple[Work, float]], contention: float) -> dict[float, float]:
    """The fastest product of each size: what the processor is able to do."""
    found: dict[float, float] = {}
    for work, seconds in probes:
        if work.key == "matmul":
            flops = 2 * work.amounts[1]
            found[flops] = min(seconds * contention, found.get(flops, float("inf")))
    return found


def _curves(results: Sequence[Measured]) -> tuple[CollectiveCurve, ...]:
    curves = []
    for key, table in results[0].collectives.items():
        kind, count = key.split(":")
        points = {
            size: _combined([item.collectives[key][size] for item in results]) for size in table
        }
        curves.append(CollectiveCurve(kind=kind, participants=int(count), points=rising(points)))
    return tuple(curves)


def _waits(result: Measured, contention: float) -> tuple[Waits, ...]:
    """All processes agree on these, so one's are everyone's."""
    found = []
    for count, table in result.waits.items():
        late: dict[float, float] = {}
        for pairs in table.values():
            work_s = contention * median(work_s for work_s, _ in pairs)
            late[work_s] = max(median(taken_s for _, taken_s in pairs) - work_s, 1e-6)
        found.append(Waits(participants=count, points=rising(late)))
    return tuple(found)


def _links(results: Sequence[Measured]) -> tuple[Link, ...]:
    """Latency and bandwidth of shifting around a ring, inside a host and between hosts."""
    links = []
    for name, tables in (("host", results[0].collectives), ("across", results[0].across)):
        rings = {key: table for key, table in tables.items() if key.startswith("ring_shift:")}
        if not rings:
            continue
        key = max(rings, key=lambda item: int(item.split(":")[1]))
        source = [getattr(item, "across" if name == "across" else "collectives")[key]
                  for item in results]  # fmt: skip
        sizes = list(rings[key])
        seconds = [_combined([table[size] for table in source]) for size in sizes]
        latency_s, byte_s = relative_fit([(1.0, size) for size in sizes], seconds)
        rate = 1 / byte_s if byte_s else sizes[-1] / seconds[-1]
        links.append(Link(name=name, latency_s=latency_s, bytes_per_s=rate))
    return tuple(links)


def _tiers(results: Sequence[Measured]) -> tuple[Tier, ...]:
    tiers = []
    for name, (size, _, _) in results[0].tiers.items():
        reads = median(item.tiers[name][1] for item in results)
        writes = median(item.tiers[name][2] for item in results)
        tiers.append(
            Tier(
                name=name,
                bytes=size,
                read_bytes_per_s=reads,
                write_bytes_per_s=writes,
                latency_s=0.0,
            )
        )
    return tuple(tiers)


def _noise(results: Sequence[Measured]) -> dict[str, float]:
    """How far passes lie apart, as a share of what they measured.

    Of all probes of a sort together: the sum of a pass over the sum of the
    medians; what single probes do averages out in a step, which has many ops.
    """
    one = results[0]
    compute = [[timed.seconds for timed in item.ops] for item in results]
    contended = [
        [[s * c for s, c in zip(seconds, item.contention, strict=True)] for seconds in probes]
        for item, probes in zip(results, compute, strict=True)
    ]
    optimizers = [
        [
            [s * c for s, c in zip(seconds, item.contention, strict=True)]
            for table in item.optimizers.values()
            for seconds in table.values()
        ]
        for item in results
    ]
    collectives = [
        [seconds for table in item.collectives.values() for seconds in table.values()]
        for item in results
    ]
    found = {"compute": _spread(contended), "optimizer": _spread(optimizers)}
    if one.collectives:
        found["collectives"] = _spread(collectives)
    return found


def _spread(by_process: Sequence[Sequence[Sequence[float]]]) -> float:
    """[process][probe][pass] -> the passes' range, each probe weighing the same."""
    probes = [
        [fmean(values) for values in zip(*each, strict=True)]
        for each in zip(*by_process, strict=True)
    ]
    if not probes or len(probes[0]) < 2:
        return 0.0
    middles = [median(passes) for passes in probes]
    totals = [
        fmean(passes[k] / middle for passes, middle in zip(probes, middles, strict=True))
        for k in range(len(probes[0]))
    ]
    return max(totals) - min(totals)


def worst(residuals: Iterable[Residual]) -> list[Residual]:
    """Furthest from the fit first, too much and too little counted alike."""
    return sorted(residuals, key=lambda item: -abs(log(item.predicted_s / item.measured_s)))


def median_error(residuals: Iterable[Residual]) -> float:
    return median(abs(item.error) for item in residuals)


def by_family(residuals: Iterable[Residual]) -> Mapping[str, list[Residual]]:
    found: dict[str, list[Residual]] = {}
    for item in residuals:
        found.setdefault(item.family, []).append(item)
    return found


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
