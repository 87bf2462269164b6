"""Nothing fits: what came closest, where it is over by how much, and what would fit.

Each thing that is said to fit was laid out, lowered and simulated first: other strategies on
the same devices, more microbatches, other kinds of device, more hosts. The cheapest come
first: what costs nothing, then fewer devices before more of them. A smaller batch is never
proposed: more microbatches free the same memory, and keep the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshwright.cluster.types import Cluster
from meshwright.errors import MeshwrightError, NoPlanFits
from meshwright.layout.groups import Analysis
from meshwright.plan.types import STAGE
from meshwright.search.constraints import NONE, Constraints
from meshwright.search.named import candidate, name_of
from meshwright.search.strategy import Strategy, mesh_for, parse_strategy, pipeline_of
from meshwright.search.types import AnalysisFor, Candidate, Evaluate, Evaluated

__all__ = ["Change", "Site", "candidate_of", "what_would_fit"]

SECONDS = 10.0
MOST_DEVICES = 16_384
_KINDS = 3  # other kinds of device that are named at most

EvaluateOn = Callable[[Cluster], Evaluate]


@dataclass(frozen=True)
class Change:
    """Something that fits, as evaluated.

    kind: `strategy`, `microbatches`, `device` or `devices`. text: what to do. devices: how many
    it takes.
    """

    kind: str
    text: str
    cluster: str
    strategy: str
    devices: int
    step_time_s: float
    peak_memory_bytes: int

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Site:
    """What planning for something else than was asked for needs.

    evaluate_on: lowers a candidate and simulates it on a cluster. resized: the cluster with so
    many hosts, None where that makes no sense; replaced: with other kinds of device that have
    more memory, the least first. stage_of: the stage of a pipeline that is fullest.
    """

    cluster: Cluster
    global_batch: int
    analysis_for: AnalysisFor
    evaluate_on: EvaluateOn
    resized: Callable[[int], Cluster | None]
    replaced: Sequence[Cluster]
    constraints: Constraints = NONE
    stage_of: Callable[[Candidate], int] | None = None


def what_would_fit(
    error: NoPlanFits, strategy: Strategy, site: Site, seconds: float = SECONDS
) -> NoPlanFits:
    """`error` with where it is over, and what would fit, found within about so many seconds.

    Those are of this process's own time, so that other work on the machine changes nothing.

    An error that is not about memory is given back as it is.
    """
    closest = error.closest
    if not isinstance(closest, Evaluated):
        return error
    deadline = time.process_time() + seconds
    changes: list[Change] = []
    for find in (_strategies, _microbatches, _kinds, _hosts):
        if time.process_time() > deadline:
            break
        changes += find(closest, strategy, site, deadline)
    changes.sort(key=lambda item: (item.devices, item.kind == "device"))
    return _told(closest, site, changes)


def _strategies(
    closest: Evaluated, strategy: Strategy, site: Site, deadline: float
) -> Iterable[Change]:
    """Another strategy on the same devices, where one was asked for by name."""
    if strategy.auto:
        return
    evaluate = site.evaluate_on(site.cluster)
    count = closest.candidate.microbatches
    for text in _savers(site.cluster, site.cluster.size):
        found = _try(text, site, site.cluster, count, evaluate, deadline)
        if found is not None and found.fits:
            yield _change("strategy", f"--strategy {_said(found)}", site.cluster, found)
            return


def _microbatches(
    closest: Evaluated, strategy: Strategy, site: Site, deadline: float
) -> Iterable[Change]:
    """The smallest count above the closest's that makes its strategy fit."""
    made, evaluate = closest.candidate, site.evaluate_on(site.cluster)
    sizes = dict(made.mesh.axes)
    ways = sizes.get("data", 1) * sizes.get("replica", 1)
    counts = [
        count
        for count in _divisors(site.global_batch)
        if count > made.microbatches and site.global_batch % (count * ways) == 0
    ]
    text = _bare(made, strategy)

    def fits(count: int) -> Evaluated | None:
        found = _try(text, site, site.cluster, count, evaluate, deadline)
        return found if found is not None and found.fits else None

    best = fits(counts[-1]) if counts else None
    if best is None:
        return
    low, high = 0, len(counts) - 1
    while low < high and time.process_time() < deadline:
        middle = (low + high) // 2
        found = fits(counts[middle])
        if found is None:
            low = middle + 1
        else:
            best, high = found, middle
    said = f"--microbatches {best.candidate.microbatches} with --strategy {text}"
    yield _change("microbatches", said, site.cluster, best)


def _kinds(closest: Evaluated, strategy: Strategy, site: Site, deadline: float) -> Iterable[Change]:
    """As many devices of a kind with more memory, that with the least first."""
    named = 0
    for cluster in site.replaced:
        if time.process_time() > deadline or named == _KINDS:
            return
        evaluate = site.evaluate_on(cluster)
        if strategy.auto:
            found = _again(closest.candidate, cluster, evaluate)
        else:
            count = closest.candidate.microbatches
            found = _try(_bare(closest.candidate, strategy), site, cluster, count, evaluate,
                         deadline)  # fmt: skip
        if found is not None and found.fits:
            named += 1
            kind = cluster.groups[0].profile.name
            yield _change(
                "device", f"devices of the kind {kind}, as in --cluster {cluster.text}", cluster,
                found,
            )  # fmt: skip


def _again(made: Candidate, cluster: Cluster, evaluate: Evaluate) -> Evaluated | None:
    try:
        said = evaluate(made)
    except MeshwrightError:
        return None
    return Evaluated(made, said, said.peak_memory_bytes <= cluster.memory_bytes)


def _hosts(closest: Evaluated, strategy: Strategy, site: Site, deadline: float) -> Iterable[Change]:
    """The fewest hosts of the same kind on which something fits."""
    group = site.cluster.groups[0]
    if len(site.cluster.groups) > 1 or site.resized(group.hosts) is None:
        return

    def fits(hosts: int) -> Evaluated | None:
        cluster = site.resized(hosts)
        assert cluster is not None
        evaluate = site.evaluate_on(cluster)
        for text, count in _on(cluster, closest, strategy, site):
            found = _try(text, site, cluster, count, evaluate, deadline)
            if found is not None and found.fits:
                return found
        return None

    size, tried, best = group.hosts, [group.hosts], None
    while best is None and size * 2 * group.devices <= MOST_DEVICES:
        if time.process_time() > deadline:
            return
        size *= 2
        best = fits(size)
        tried.append(size)
    if best is None:
        return
    between = [
        hosts
        for hosts in range(tried[-2] + 1, size)
        if _divides(hosts * group.devices, site.global_batch)
    ]
    low, high = 0, len(between)
    while low < high and time.process_time() < deadline:
        middle = (low + high) // 2
        found = fits(between[middle])
        if found is None:
            low = middle + 1
        else:
            best, high, size = found, middle, between[middle]
    cluster = site.resized(size)
    assert cluster is not None
    text = f"{size} host{'s' if size > 1 else ''} in place of {group.hosts}: --cluster "
    yield _change(
        "devices", f"{text}{cluster.text} --strategy {_said(best)}", cluster, best
    )  # fmt: skip


def _on(
    cluster: Cluster, closest: Evaluated, strategy: Strategy, site: Site
) -> Iterator[tuple[str, int]]:
    """Strategies to try on a larger cluster, with microbatches, those that need least last."""
    own = _bare(closest.candidate, strategy)
    if not strategy.auto and any(size == 0 for size in strategy.axes.values()):
        yield strategy.text, closest.candidate.microbatches
    for text in dict.fromkeys((own, *_savers(cluster, cluster.size))):
        parsed = parse_strategy(text)
        try:
            sizes = dict(mesh_for(parsed, cluster.size).axes)
        except MeshwrightError:
            continue
        ways = sizes.get("data", 1) * sizes.get("replica", 1)
        if site.global_batch % ways:
            continue
        most = site.global_batch // ways
        asked = strategy.microbatches
        for count in dict.fromkeys((closest.candidate.microbatches, most)):
            if asked in (None, count) and most % count == 0:
                yield text, count


def _savers(cluster: Cluster, devices: int) -> Iterator[str]:
    """Strategies by how much memory they save: state of the optimizer, then all of a model."""
    yield from ("zero=1", "zero=2", "zero=3")
    host = cluster.groups[0].devices
    for size in (n for n in _divisors(host) if 1 < n < devices):
        yield f"tensor={size},zero=3"
        yield f"tensor={size},sequence,zero=3"
    if devices <= host:
        yield from ("tensor", "tensor,sequence")


def _try(
    text: str, site: Site, cluster: Cluster, microbatches: int, evaluate: Evaluate, deadline: float
) -> Evaluated | None:
    """A named strategy as evaluated; None where it can't be laid out, or time is over."""
    if time.process_time() > deadline:
        return None
    try:
        analysis = site.analysis_for(microbatches)
        made = candidate_of(text, analysis, cluster.size, microbatches, site.constraints)
        said = evaluate(made)
    except MeshwrightError:
        return None
    return Evaluated(made, said, said.peak_memory_bytes <= cluster.memory_bytes)


def candidate_of(
    text: str,
    analysis: Analysis,
    devices: int,
    microbatches: int = 1,
    constraints: Constraints = NONE,
) -> Candidate:
    """What a named strategy is on so many devices. Raises StrategyError where it can't be."""
    strategy = constraints.narrow(parse_strategy(text), devices)
    mesh = constraints.ordered(mesh_for(strategy, devices))
    pipeline, zero = pipeline_of(strategy, mesh), strategy.zero or 0
    name = name_of(
        mesh, zero, strategy.sequence, strategy.attention, pipeline, strategy.recompute,
        strategy.tables,
    )  # fmt: skip
    return candidate(
        analysis, mesh, zero=zero, microbatches=microbatches, sequence=strategy.sequence,
        attention=strategy.attention, pipeline=pipeline, recompute=strategy.recompute,
        constraints=constraints, tables=strategy.tables,
        name=name + (f",microbatches={microbatches}" if microbatches > 1 else ""),
    )  # fmt: skip


def _bare(made: Candidate, strategy: Strategy) -> str:
    """The strategy of a candidate, without its microbatches."""
    return name_of(
        made.mesh, made.zero, strategy.sequence, strategy.attention, made.pipeline, made.recompute,
        strategy.tables,
    )  # fmt: skip


def _said(found: Evaluated) -> str:
    return found.candidate.name


def _change(kind: str, text: str, cluster: Cluster, found: Evaluated) -> Change:
    return Change(
        kind, text, cluster.text, _said(found), cluster.size,
        found.prediction.step_time_s, found.prediction.peak_memory_bytes,
    )  # fmt: skip


def _told(closest: Evaluated, site: Site, changes: Sequence[Change]) -> NoPlanFits:
    said, name, cluster = closest.prediction, closest.candidate.name, site.cluster
    peak = said.peak_memory_bytes
    parts = sorted(said.memory.items(), key=lambda part: -part[1])
    made_of = ", ".join(f"{part} {gib(size)}" for part, size in parts[:4] if size)
    where, ranks = _over_on(closest, site)
    short = cluster.memory_bytes
    message = (
        f"No plan fits {gib(short)} a device. The closest is {name}: it needs {gib(peak)} at its "
        f"peak on {where} ({made_of}), {gib(peak - short)} too much."
    )
    if changes:
        listed = "; ".join(
            f"{item.text} ({gib(item.peak_memory_bytes)}, {item.step_time_s:.3g} s a step)"
            for item in changes
        )
        remedy = f"What would fit, cheapest first: {listed}."
    else:
        remedy = (
            "Nothing that was tried would fit: other strategies, more microbatches, other kinds "
            f"of device, up to {MOST_DEVICES} devices. Make the model or its sequences smaller."
        )
    details: Mapping[str, Any] = {
        "closest": {
            "strategy": name,
            "mesh": dict(closest.candidate.mesh.axes),
            "microbatches": closest.candidate.microbatches,
            "step_time_s": said.step_time_s,
            "peak_memory_bytes": peak,
            "memory": dict(said.memory),
        },
        "memory_bytes": short,
        "over_bytes": peak - short,
        "over_on": [{"first": first, "last": last} for first, last in ranks],
        "would_fit": [item.as_json() for item in changes],
    }
    return NoPlanFits(message, remedy, closest=closest, details=details)


def _over_on(closest: Evaluated, site: Site) -> tuple[str, list[tuple[int, int]]]:
    """(in words, first and last rank of each run) of the devices that are over."""
    peak, cluster = closest.prediction.peak_memory_bytes, site.cluster
    stages = dict(closest.candidate.mesh.axes).get(STAGE, 1)
    if stages > 1 and site.stage_of is not None:
        # Stages need different amounts, and the peak is that of the fullest one.
        stage, size = site.stage_of(closest.candidate), cluster.size // stages
        first, last = stage * size, (stage + 1) * size - 1
        return f"the devices of stage {stage} (ranks {first} to {last})", [(first, last)]
    if len(cluster.groups) == 1:
        return "every device", [(0, cluster.size - 1)]
    runs, words, first = [], [], 0
    for group in cluster.groups:
        if group.profile.memory_bytes < peak:
            runs.append((first, first + group.size - 1))
            words.append(f"{group.profile.name} (ranks {first} to {first + group.size - 1})")
        first += group.size
    return f"every {' and '.join(words)}", runs


def gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _divides(devices: int, batch: int) -> bool:
    """Whether some part of the devices, the rest of a host being left to tensor, divides it."""
    return any(devices % ways == 0 and batch % (devices // ways) == 0 for ways in (1, 2, 4, 8, 16))
