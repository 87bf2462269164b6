"""Waiting at collectives for processes that share cores.

Processes that share a machine's cores work side by side only on average: which
of them the scheduler lets run, and which core has other work, decides who comes
last. How much later that is grows with what was computed since they last met.
Calibration measures it (`Fitted.waits`); devices of their own have none.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshwright.cluster.types import Profile
from meshwright.cost.curve import interpolate


class Since:
    """Seconds of work since the processes last met."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def worked(self, seconds: float) -> None:
        self.seconds += seconds

    def met(self) -> float:
        """The work until now; from here on it is counted anew."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def waiting_seconds(profiles: Sequence[Profile], extent: int, worked_s: float) -> float:
    """How long `extent` processes wait for the last one, after work of `worked_s` each."""
    if extent < 2 or worked_s <= 0:
        return 0.0
    return max((_of(profile, extent, worked_s) for profile in profiles), default=0.0)


def _of(profile: Profile, extent: int, worked_s: float) -> float:
    waits = profile.fitted.waits if profile.fitted else ()
    if not waits:
        return 0.0
    curve = min(waits, key=lambda item: (abs(item.participants - extent), -item.participants))
    shortest = curve.points[0]
    if worked_s <= shortest.x:
        return shortest.seconds * worked_s / shortest.x
    return interpolate(curve.points, worked_s)
