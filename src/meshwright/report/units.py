"""Numbers as a person reads them."""

from __future__ import annotations

import math

NOT_KNOWN = "–"
NOT_FINITE = "not finite"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return NOT_FINITE
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(seconds) * factor >= 1.0:
            return f"{significant(seconds * factor)} {unit}"
    return f"{significant(seconds * 1e9)} ns" if seconds else "0 s"


def memory(size_bytes: float) -> str:
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if abs(size_bytes) >= 1024**power:
            return f"{significant(size_bytes / 1024**power)} {unit}"
    return f"{size_bytes:.0f} B"


def rate(per_second: float) -> str:
    for unit, factor in ((" M", 1e6), (" k", 1e3)):
        if abs(per_second) >= 10 * factor:
            return f"{significant(per_second / factor)}{unit}/s"
    return f"{significant(per_second)}/s"


def percent(fraction: float) -> str:
    return f"{significant(100 * fraction)} %"


def deviation(measured: float, predicted: float) -> str:
    """How far measured lies above (+) or below (−) predicted."""
    if not predicted or not math.isfinite(measured / predicted):
        return NOT_KNOWN
    shift = 100 * (measured / predicted - 1)
    if abs(shift) < 0.05:
        return "±0 %"
    digits = 1 if abs(shift) < 10 else 0
    return f"{'+' if shift > 0 else '−'}{abs(shift):,.{digits}f} %"


def count(number: int) -> str:
    return f"{number:,}"


def significant(number: float) -> str:
    """Three significant digits, and every digit before the point."""
    if not math.isfinite(number):
        return NOT_FINITE
    if abs(number) >= 100:
        return f"{number:,.0f}"
    if abs(number) >= 10:
        return f"{number:.1f}"
    return f"{number:.2f}"
