"""The search: candidates of the space that a strategy leaves open, costed, the best taken.

The space is meshes of data and tensor axes (and of further axes that the strategy
names), ZeRO stages and microbatch counts. A wider search replaces `candidates` and keeps the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from meshwright.cluster.mesh import Mesh
from meshwright.errors import NoPlanFits, StrategyError
from meshwright.plan.types import STAGE
from meshwright.search.constraints import NONE, Constraints, resolve
from meshwright.search.named import candidate, name_of
from meshwright.search.strategy import Strategy, factorisations, mesh_for, pipeline_of
from meshwright.search.types import AnalysisFor, Candidate, Evaluate, Evaluated


@dataclass(frozen=True)
class Found:
    """The best candidate, all others that were costed, and what was left out and why."""

    best: Evaluated
    others: tuple[Evaluated, ...]
    left_out: tuple[tuple[str, str], ...]
    why: str


def search(
    strategy: Strategy,
    devices: int,
    memory_bytes: int,
    global_batch: int,
    analysis_for: AnalysisFor,
    evaluate: Evaluate,
    constraints: Constraints = NONE,
) -> Found:
    """The fastest candidate that fits the memory of one device and obeys the constraints.

    Raises StrategyError when the strategy can't be laid out, NoPlanFits when
    nothing fits: it says what came closest, by how much, and what would fit.
    """
    strategy = constraints.narrow(strategy, devices)
    left_out: list[tuple[str, str]] = []
    evaluated: list[Evaluated] = []
    for microbatches in _counts(strategy, global_batch):
        analysis = analysis_for(microbatches)
        resolve(constraints, analysis)
        for unordered, zero in _space(strategy, devices):
            mesh = constraints.ordered(unordered)
            pipeline, recompute = pipeline_of(strategy, mesh), strategy.recompute
            try:
                made = candidate(
                    analysis, mesh, zero=zero, microbatches=microbatches,
                    sequence=strategy.sequence, attention=strategy.attention,
                    pipeline=pipeline, recompute=recompute,
                    name=name_of(
                        mesh, zero, strategy.sequence, strategy.attention, pipeline, recompute
                    )
                    + (f",microbatches={microbatches}" if microbatches > 1 else ""),
                    constraints=constraints,
                )  # fmt: skip
            except StrategyError as error:
                if not strategy.auto:
                    raise
                left_out.append((name_of(mesh, zero), error.message))
                continue
            prediction = evaluate(made)
            evaluated.append(
                Evaluated(made, prediction, prediction.peak_memory_bytes <= memory_bytes)
            )
        if any(item.fits for item in evaluated):
            break
    if not evaluated:
        raise StrategyError(
            f"No strategy can be laid on {devices} devices: {left_out[0][1]}",
            "Change the global batch or the cluster.",
        )
    fitting = [item for item in evaluated if item.fits]
    if not fitting:
        raise _nothing_fits(evaluated, memory_bytes)
    best = min(fitting, key=_rank)
    others = tuple(sorted((e for e in evaluated if e is not best), key=_rank))
    return Found(best, others, tuple(left_out), _why(strategy, best, others))


def _space(strategy: Strategy, devices: int) -> Iterator[tuple[Mesh, int]]:
    if not strategy.auto:
        yield mesh_for(strategy, devices), strategy.zero or 0
        return
    for mesh in factorisations(devices, strategy.axes):
        stages = (0, 1, 2, 3) if mesh.extent("data") > 1 else (0,)
        for zero in stages:
            if strategy.zero is None or zero == strategy.zero:
                yield mesh, zero


def _counts(strategy: Strategy, global_batch: int) -> Iterator[int]:
    """Microbatch counts to try: the one asked for, or more and more while nothing fits."""
    if strategy.microbatches is not None:
        if global_batch % strategy.microbatches:
            raise StrategyError(
                f"A global batch of {global_batch} can't be cut into {strategy.microbatches} "
                "equal microbatches.",
                "Choose a count that divides the global batch.",
            )
        yield strategy.microbatches
        return
    if strategy.axes.get(STAGE, 1) > 1:
        yield _for_stages(strategy, global_batch)
        return
    yield 1
    if strategy.auto:
        yield from (count for count in (2, 4, 8, 16, 32) if global_batch % count == 0)


def _for_stages(strategy: Strategy, global_batch: int) -> int:
    """Up to four microbatches a stage, which leave it idle for less than a fifth of the step."""
    stages = strategy.axes[STAGE]
    data = prod(max(strategy.axes.get(name, 1), 1) for name in ("replica", "data"))
    counts = [
        count
        for count in range(1, 4 * stages + 1)
        if global_batch % (count * data) == 0 and (strategy.virtual == 1 or count % stages == 0)
    ]
    if not counts:
        raise StrategyError(
            f"A global batch of {global_batch} can't be cut into microbatches for {stages} stages "
            f"over {data} devices of the data axis.",
            "Use a global batch that is a multiple of both, or say microbatches=.",
        )
    return counts[-1]


def _rank(item: Evaluated) -> tuple[bool, float, int, int]:
    """Fastest first; of equals the one with the least to it, then the least memory."""
    return (
        not item.fits,
        round(item.prediction.step_time_s, 9),
        item.candidate.zero,
        item.prediction.peak_memory_bytes,
    )


def _why(strategy: Strategy, best: Evaluated, others: tuple[Evaluated, ...]) -> str:
    name = best.candidate.name
    seconds = best.prediction.step_time_s
    if not strategy.auto:
        return f"{name} is what was asked for."
    slower = next((other for other in others if other.fits), None)
    if slower is None:
        if others:
            return f"{name} is the only candidate that fits the memory."
        return f"{name} is the only way to lay this model on the cluster."
    share = (slower.prediction.step_time_s / seconds - 1) * 100
    margin = f"{share:.0f}%" if share >= 1 else "less than 1%"
    reason = (
        "it spends least on communication"
        if best.prediction.communication_s
        <= min(other.prediction.communication_s for other in others if other.fits)
        else "its compute and communication together take least"
    )
    return (
        f"{name} is predicted fastest: {reason}; next is {slower.candidate.name}, {margin} slower."
    )


def _nothing_fits(evaluated: list[Evaluated], memory_bytes: int) -> NoPlanFits:
    closest = min(evaluated, key=lambda item: item.prediction.peak_memory_bytes)
    peak = closest.prediction.peak_memory_bytes
    largest = max(closest.prediction.memory.items(), key=lambda part: part[1], default=("", 0))
    made_of = f", of which {largest[0]} {_gib(largest[1])}" if largest[0] else ""
    factor = -(-peak // memory_bytes)
    return NoPlanFits(
        f"No plan fits {_gib(memory_bytes)} a device. The closest is {closest.candidate.name}: "
        f"it needs {_gib(peak)} at its peak{made_of}, {_gib(peak - memory_bytes)} too much.",
        f"Plan for devices with {_gib(peak)} of memory, for about {factor} times as many devices, "
        "or for a smaller batch.",
    )


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"


__all__ = ["Candidate", "Found", "search"]
