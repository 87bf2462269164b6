"""How far a predicted step time can be trusted: the noise of the machine that was measured."""

from __future__ import annotations

from meshwright.cluster.types import Cluster


def step_interval(
    cluster: Cluster,
    step_time_s: float,
    *,
    compute_s: float,
    collectives_s: float,
    optimizer_s: float,
) -> tuple[float, float] | None:
    """Least and most seconds of a step; None where no noise was measured.

    What slows one sort of work on a shared machine slows the others at the same
    time, so their shares add up. Half of a sort's noise lies on either side.
    """
    noises = [group.profile.fitted.noise for group in cluster.groups if group.profile.fitted]
    if not any(noises):
        return None
    parts = {"compute": compute_s, "collectives": collectives_s, "optimizer": optimizer_s}
    most_s = max(
        sum(seconds * noise.get(name, 0.0) / 2 for name, seconds in parts.items())
        for noise in noises
    )
    return max(step_time_s - most_s, 0.0), step_time_s + most_s
