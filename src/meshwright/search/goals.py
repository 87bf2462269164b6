"""What a search is for: the least time, memory, number of devices or money."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from meshwright.cluster.types import Cluster, HostGroup, LinkLevel
from meshwright.errors import MeshwrightError, NoPlanFits, StrategyError, UsageError
from meshwright.plan.types import Plan
from meshwright.search.types import Evaluated

Kind = Literal["time", "devices", "memory", "cost"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_HOUR_S = 3600.0


@dataclass(frozen=True)
class Goal:
    """`time`: what fits the memory, then the fastest. `memory`: the least peak. `devices`: the
    fewest that it fits on. `cost`: the least money for a step.

    max_step_time_s: slower plans do not count; what is asked for beside it is the least
    there is within that time.
    """

    kind: Kind = "time"
    max_step_time_s: float | None = None

    def fits(self, seconds: float, peak_bytes: int, memory_bytes: int) -> bool:
        within = self.max_step_time_s is None or seconds <= self.max_step_time_s
        return peak_bytes <= memory_bytes and within

    def objective(self, seconds: float, peak_bytes: float) -> float:
        """What is to be least, on devices that are given."""
        return peak_bytes if self.kind == "memory" else seconds

    def rank(self, item: Evaluated) -> tuple[float, ...]:
        """Best first; of equals the one with the least to it, then the least memory."""
        made, said = item.candidate, item.prediction
        seconds = round(said.step_time_s, 9)
        aim = self.objective(seconds, said.peak_memory_bytes)
        simple = made.zero, made.microbatches, len(made.mesh.axes)
        return not item.fits, aim, seconds, *simple, said.peak_memory_bytes


TIME = Goal()


def goal_of(kind: str, max_step_time_s: float | None) -> Goal:
    """Raises UsageError for a goal that there is not, or a time that makes no sense."""
    for known in KINDS:
        if kind == known:
            if max_step_time_s is not None and not 0 < max_step_time_s < float("inf"):
                raise UsageError(
                    f"The longest step time is {max_step_time_s}.", "Give seconds above 0."
                )
            return Goal(known, max_step_time_s)
    raise UsageError(f"There is no goal '{kind}'.", f"Use one of {', '.join(KINDS)}.")


def smaller(cluster: Cluster) -> Iterator[Cluster]:
    """Parts of a cluster that a job could have, smallest first, the cluster itself last.

    Powers of two of one host's devices, then of hosts; in a cluster of several kinds of
    host, its groups one by one and then all.
    """
    if len(cluster.groups) > 1:
        for group in sorted(cluster.groups, key=lambda item: item.size):
            yield from _parts(cluster.model_copy(update={"groups": (group,), "between": None}))
        yield cluster
        return
    yield from _parts(cluster)


def _parts(cluster: Cluster) -> Iterator[Cluster]:
    (group,) = cluster.groups
    for devices in _powers(group.devices):
        if devices < group.devices or group.hosts > 1:
            yield _part(cluster, group, 1, devices)
    for hosts in _powers(group.hosts):
        if 1 < hosts < group.hosts:
            yield _part(cluster, group, hosts, group.devices)
    yield cluster


def _powers(limit: int) -> Iterator[int]:
    size = 1
    while size < limit:
        if limit % size == 0:
            yield size
        size *= 2
    yield limit


def _part(cluster: Cluster, group: HostGroup, hosts: int, devices: int) -> Cluster:
    total = hosts * devices
    levels: list[LinkLevel] = []
    for level in group.levels:
        joined = min(level.devices, total)
        if level.name == "host":
            joined = devices
        if levels and joined <= levels[-1].devices and levels[-1].devices == total:
            break
        levels.append(
            level.model_copy(update={"devices": joined, "shared_by": min(level.shared_by, joined)})
        )
    levels[-1] = levels[-1].model_copy(update={"devices": total})
    kind = cluster.text.rpartition(":")[2]
    text = f"local:{total}" if cluster.text.startswith("local") else f"{hosts}x{devices}:{kind}"
    if cluster.text.endswith(".json"):
        text = f"{hosts}x{devices} of {cluster.text}"
    part = group.model_copy(update={"hosts": hosts, "devices": devices, "levels": tuple(levels)})
    return Cluster(text=text, groups=(part,))


def money_per_step(cluster: Cluster, seconds: float) -> float:
    """In the money that prices are in. Raises UsageError where a device has no price."""
    price = cluster.cost_per_hour
    if price is None:
        raise UsageError(
            f"The goal 'cost' needs prices, and {cluster.text} has none, or not for all its "
            "devices.",
            "Give price_per_hour in the cluster's file or the profile's, or choose another goal.",
        )
    return price * seconds / _HOUR_S


def _devices(part: Cluster) -> str:
    return "1 device" if part.size == 1 else f"{part.size} devices"


def over_parts(
    goal: Goal, cluster: Cluster, budget_s: float, plan_on: Callable[[Cluster, float], Plan]
) -> Plan:
    """The plan for the fewest devices that it fits on, or the one whose step costs least.

    plan_on: the fastest plan on a part of the cluster, within so many seconds of search;
    it raises NoPlanFits or StrategyError where there is none. Parts are tried from the
    smallest on; each gets what the ones before left, shared out evenly.
    Raises what the whole cluster raises where no part has a plan.
    """
    if goal.kind == "cost":
        money_per_step(cluster, 0.0)
    parts = list(smaller(cluster))
    best: tuple[float, Plan] | None = None
    said: list[str] = []
    refused: MeshwrightError | None = None
    started = time.perf_counter()
    for number, part in enumerate(parts):
        left_s = budget_s - (time.perf_counter() - started)
        try:
            made = plan_on(part, max(left_s / (len(parts) - number), 0.0))
        except (NoPlanFits, StrategyError) as error:
            said.append(f"{_devices(part)}: {error.message.split('. ')[0]}")
            refused = error
            continue
        if goal.kind == "devices":
            are = "is" if part.size == 1 else "are"
            why = f"Of what was tried, {_devices(part)} {are} the fewest that it fits on"
            tried = f" ({'; '.join(said)})" if said else ""
            return made.model_copy(update={"why": f"{why}{tried}. {made.why}"})
        money = money_per_step(part, made.predicted.step_time_s)
        said.append(f"{_devices(part)}: {money:.3g}")
        if best is None or money < best[0]:
            best = money, made
    if best is None:
        assert refused is not None
        raise refused
    money, made = best
    why = f"A step costs least on {made.cluster}, {money:.3g} ({'; '.join(said)}). {made.why}"
    return made.model_copy(update={"why": why})
