"""How near predictions came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median, quantiles


def relative_error(predicted: float, measured: float) -> float:
    return predicted / measured - 1


def median_absolute(errors: Sequence[float]) -> float:
    return median(abs(error) for error in errors)


def worst(errors: Sequence[float]) -> float:
    """The error that is furthest from 0, its sign kept."""
    return max(errors, key=abs)


def at_equal_load(repeats: Sequence[float], contention: Sequence[float]) -> list[float]:
    """Repeats as they would have been with the cores shared as in the median pass of probes.

    contention: of the passes around the repeats, one more than those.
    """
    usual = median(contention)
    return [
        seconds * usual / fmean(pair)
        for seconds, pair in zip(repeats, pairwise(contention), strict=True)
    ]


def spread(repeats: Sequence[float]) -> float:
    """Distance of the quartiles as a share of the median: how far repeats lie apart."""
    if len(repeats) < 2:
        return 0.0
    low, _, high = quantiles(repeats, n=4, method="inclusive")
    return (high - low) / median(repeats)


def fastest_is_right(plans: Iterable[tuple[float, float, float]]) -> bool:
    """plans of one model: (predicted, measured, spread). Is the one predicted fastest measured
    fastest, or within the noise of it?"""
    rows = list(plans)
    chosen = min(rows, key=lambda row: row[0])
    best = min(rows, key=lambda row: row[1])
    return chosen[1] <= best[1] * (1 + max(chosen[2], best[2]))
