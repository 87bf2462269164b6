"""The search: candidates of the space that a strategy leaves open, costed, the best taken.

Named strategies cost one evaluation. `auto` goes through three stages, each begun from the
best so far: the catalogue of named strategies, a tree search over moves, and local
improvement of single decisions. What analysis shows to be no better is not simulated.
The time that a search may take cuts off a sequence of evaluations that depends on the
model, the cluster, the strategy and the seed alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from types import MappingProxyType

from meshwright.cluster.types import Cluster
from meshwright.cost.table import table_for
from meshwright.errors import NoPlanFits, StrategyError, UsageError
from meshwright.plan.types import STAGE, Choice, Stopped
from meshwright.search import moves
from meshwright.search.bound import Decided, lower_bound
from meshwright.search.choices import choices_of
from meshwright.search.constraints import NONE, Constraints, resolve
from meshwright.search.costing import (
    BudgetOver,
    Costed,
    Costing,
    EffortOver,
    Progress,
    SearchProgress,
)
from meshwright.search.estimate import Estimator
from meshwright.search.goals import TIME, Goal
from meshwright.search.improve import improve
from meshwright.search.named import candidate, name_of
from meshwright.search.names import Names
from meshwright.search.op_level import ByOp, LayByOp
from meshwright.search.space import Space
from meshwright.search.strategy import Strategy, mesh_for, pipeline_of
from meshwright.search.tree import Tree
from meshwright.search.types import AnalysisFor, Candidate, Cost, Costs, Evaluated

__all__ = ["BUDGET_S", "Candidate", "Found", "Goal", "SearchProgress", "default_budget_s", "search"]

BUDGET_S = 20.0
_BUDGET_VARIABLE = "MESHWRIGHT_BUDGET_SECONDS"
_PATIENCE = 24  # evaluations of the tree in a row that find nothing better
_ALTERNATIVES = 20
_RUNNERS_UP = 1  # meshes beside the best one's whose best plan is improved as well
_GAP = 0.002  # of the bound: what is closer to it counts as the best
_BY_OP = 0.01  # of the bound: what is closer to it is not looked at op by op
_OPS_PER_S = 5000.0  # that a machine of nominal speed lowers and simulates
_OF_TREE = 0.7  # of the work, until which the tree may go on
_LEAST_TREE, _LEAST_IMPROVED = 6, 8  # candidates that each may cost at least
_CLOSEST = 4  # plans costed to say what is closest, where none fits
_CLOSE = 1.01  # where that is at most so much slower


@dataclass(frozen=True)
class Found:
    """The best candidate, others that were costed, what was left out and why, how it ended.

    others: the named strategies and the best of the rest, best first. lower_bound_s: no
    plan is faster on this cluster; None where nothing is known of it.
    """

    best: Evaluated
    others: tuple[Evaluated, ...]
    left_out: tuple[tuple[str, str], ...]
    why: str
    choices: tuple[Choice, ...] = ()
    stopped: Stopped = "asked"
    lower_bound_s: float | None = None
    evaluated: int = 1


def search(
    strategy: Strategy,
    devices: int,
    memory_bytes: int,
    global_batch: int,
    analysis_for: AnalysisFor,
    evaluate: Cost,
    constraints: Constraints = NONE,
    *,
    cluster: Cluster | None = None,
    optimizer: str = "adamw",
    stands_for: Mapping[str, int] = MappingProxyType({}),
    budget_s: float = BUDGET_S,
    seed: int = 0,
    goal: Goal = TIME,
    progress: Progress | None = None,
    effort_s: float | None = None,
    by_op: LayByOp | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Found:
    """The best candidate for the goal that fits the memory and obeys the constraints.

    cluster: for what analysis can say before a candidate is simulated; without one nothing
    is ruled out and moves are tried in their own order. stands_for: modules of the analysed
    Program that stand for so many equal ones. budget_s: seconds after which no further
    candidate is simulated. effort_s: what the tree and improvement may take at most on a
    machine of nominal speed, in work that is the same on any; None for no limit. by_op: how
    the ops of a small Program can be laid out one by one;
    None looks at groups alone. clock: by which `budget_s` is measured.

    Raises StrategyError when the strategy can't be laid out, NoPlanFits when
    nothing fits: it says what came closest, by how much, and what would fit.
    """
    started = clock()
    strategy = constraints.narrow(strategy, devices)
    if not strategy.auto:
        found = _asked(
            strategy, devices, memory_bytes, global_batch, analysis_for, evaluate, constraints, goal
        )
        if cluster is None:
            return found
        count = found.best.candidate.microbatches
        bound = lower_bound(
            analysis_for(count), table_for(cluster), devices=devices, microbatches=count,
            optimizer=optimizer, stands_for=stands_for,
            decided=Decided(
                stages=max(strategy.axes.get(STAGE, 1), 1), recompute=strategy.recompute
            ),
        )  # fmt: skip
        return replace(found, lower_bound_s=bound.step_s)
    if strategy.microbatches is not None or strategy.axes.get(STAGE, 1) > 1:
        strategy = replace(strategy, microbatches=_count(strategy, global_batch))
    space = Space(strategy, devices, global_batch, analysis_for, constraints)
    resolve(constraints, space.first)
    estimator = None
    if cluster is not None:
        estimator = Estimator(space, table_for(cluster), optimizer, stands_for)
    costing = Costing(space, evaluate, memory_bytes, goal, estimator, started + budget_s, progress)
    costing.clock = clock
    single = ByOp(by_op, stands_for) if by_op is not None else None
    effort = effort_s * _OPS_PER_S if effort_s is not None else float("inf")
    stopped = _run(costing, cluster, seed, single, effort)
    found = _found(costing, stopped, estimator)
    return single.taken(costing, found) if single is not None else found


def default_budget_s() -> float:
    """`BUDGET_S`, or what the environment says. Raises UsageError where that is no number."""
    text = os.environ.get(_BUDGET_VARIABLE)
    if text is None:
        return BUDGET_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(
            f"{_BUDGET_VARIABLE} is {text!r}.", "Give seconds, 0 or more, or leave it unset."
        )
    return seconds


def _run(
    costing: Costing, cluster: Cluster | None, seed: int, single: ByOp | None, effort: float
) -> Stopped:
    """effort: ops to look at before tree and improvement end."""
    meshes = moves.meshes(costing.space, cluster)
    tree = Tree(costing, cluster, meshes, seed, _PATIENCE)
    names = Names(costing, cluster, meshes)
    try:
        names.likely()
        if single is not None and not _proved(costing, _BY_OP):
            single.run(costing, costing.space.devices)
        ended = "closed"
        if not _proved(costing):
            ended = _within(costing, _OF_TREE * effort, _LEAST_TREE, tree.run) or "effort"
            improved = _within(
                costing, effort, _LEAST_IMPROVED, partial(_improved, costing, cluster)
            )
            ended = ended if improved else "effort"
        best = costing.best
        names.rest()
        if costing.best is not best and not _proved(costing):
            again = _within(costing, effort, _LEAST_IMPROVED, partial(_improved, costing, cluster))
            ended = ended if again else "effort"
        if single is not None and not _proved(costing, _BY_OP):
            single.run(costing, costing.space.devices, last=True)
    except BudgetOver:
        names.unknown()
        _smallest(costing, tree)
        return "budget"
    _smallest(costing, tree)
    if _proved(costing):
        return "proved"
    if single is not None and single.cut_off:
        return "budget"
    if ended == "effort":
        return "effort"
    return "exhausted" if ended == "closed" else "settled"


def _within(costing: Costing, effort: float, least: int, stage: Callable[[], str]) -> str:
    """What a stage returns that may work until so much is done; "" where that ended it.

    least: candidates that it may cost however much was done before it.
    """
    costing.limit = max(effort, costing.effort + least * costing.one)
    try:
        return stage()
    except EffortOver:
        return ""
    finally:
        costing.limit = float("inf")


def _smallest(costing: Costing, tree: Tree) -> None:
    """Where nothing fits so far: the points that say what is closest, those of least memory.

    Of a bound on the step's time, the quickest. What a bound ruled out is among them, and no
    budget ends this.
    """
    if costing.best is not None and costing.best.result.fits:
        return
    options = [
        option
        for mesh in tree.meshes
        for option in moves.residency_options(
            costing.space,
            replace(tree.complete(mesh), microbatches=moves.counts(costing.space, mesh)[-1]),
        )
    ]
    options = list(dict.fromkeys(options))
    if costing.estimator is not None:
        options.sort(key=costing.estimator.smallest)
    if costing.goal.max_step_time_s is not None:
        options += [tree.complete(mesh) for mesh in tree.meshes]
        options = sorted(dict.fromkeys(options), key=costing.reckoning.quickest)
    costing.deadline = float("inf")
    for option in options[:_CLOSEST]:
        costing.forget(option)
        costing.cost(option)


def _improved(costing: Costing, cluster: Cluster | None) -> str:
    """The best improved, and the best of other meshes that come close."""
    if costing.best is None:
        return "closed"
    done: set[tuple[tuple[str, int], ...]] = set()
    for _ in range(1 + _RUNNERS_UP):
        fitting = [
            item for item in costing.costed
            if item.point.mesh not in done and (item.result.fits or not done)
        ]  # fmt: skip
        if not fitting:
            break
        start = min(fitting, key=lambda item: costing.goal.rank(item.result))
        best_s = costing.best.result.prediction.step_time_s
        if done and start.result.prediction.step_time_s > _CLOSE * best_s:
            break
        done.add(start.point.mesh)
        end = improve(costing, start, cluster)
        done.add(end.point.mesh)
    return "closed"


def _proved(costing: Costing, gap: float = _GAP) -> bool:
    """Whether the best is as good as a bound on all plans allows, but for `gap` of it."""
    bound = costing.estimator.lower_bound_s() if costing.estimator is not None else None
    best = costing.best
    return (
        bound is not None and best is not None and best.result.fits
        and costing.goal.kind != "memory"
        and best.result.prediction.step_time_s <= bound * (1 + gap)
    )  # fmt: skip


def _found(costing: Costing, stopped: Stopped, estimator: Estimator | None) -> Found:
    evaluated = [item.result for item in costing.costed]
    if not evaluated:
        left = next(iter(costing.left_out.values()), "no mesh has that many devices.")
        raise StrategyError(
            f"No strategy can be laid on {costing.space.devices} devices: {left}",
            "Change what is constrained, the global batch or the cluster."
            if costing.space.constraints
            else "Change the global batch or the cluster.",
        )
    best = costing.best
    assert best is not None
    if not best.result.fits:
        bound_s = estimator.lower_bound_s() if estimator is not None else None
        raise _nothing_fits(evaluated, costing.memory_bytes, costing.goal, bound_s)
    rank = costing.goal.rank
    others = sorted(
        (item for item in costing.costed if item is not best), key=lambda c: rank(c.result)
    )
    named = [item.result for item in others if not costing.space.changes(item.point)]
    rest = [item.result for item in others if costing.space.changes(item.point)]
    shown = named[:_ALTERNATIVES]
    shown += rest[: max(_ALTERNATIVES - len(shown), 3)]
    return Found(
        best.result,
        tuple(sorted(shown, key=rank)),
        tuple(costing.left_out.items()),
        _why(costing, best, stopped, shown),
        choices_of(costing, best),
        stopped,
        estimator.lower_bound_s() if estimator is not None else None,
        len(evaluated),
    )


# What was asked for by name


def _asked(
    strategy: Strategy,
    devices: int,
    memory_bytes: int,
    global_batch: int,
    analysis_for: AnalysisFor,
    evaluate: Cost,
    constraints: Constraints,
    goal: Goal,
) -> Found:
    count = _count(strategy, global_batch)
    analysis = analysis_for(count)
    resolve(constraints, analysis)
    mesh = constraints.ordered(mesh_for(strategy, devices))
    zero = strategy.zero or 0
    pipeline, recompute = pipeline_of(strategy, mesh), strategy.recompute
    made = candidate(
        analysis, mesh, zero=zero, microbatches=count,
        sequence=strategy.sequence, attention=strategy.attention, tables=strategy.tables,
        pipeline=pipeline, recompute=recompute,
        name=name_of(
            mesh, zero, strategy.sequence, strategy.attention, pipeline, recompute, strategy.tables
        )
        + (f",microbatches={count}" if count > 1 else ""),
        constraints=constraints,
    )  # fmt: skip
    forbidden = constraints.forbids_run(microbatches=count)
    if forbidden is not None:
        raise StrategyError(
            f"'{forbidden}' forbids what this is: {count} microbatches.",
            "Change the strategy, or allow it.",
        )
    found = evaluate(made)
    said = found.prediction if isinstance(found, Costs) else found
    fits = goal.fits(said.step_time_s, said.peak_memory_bytes, memory_bytes)
    result = Evaluated(made, said, fits)
    if not fits:
        raise _nothing_fits([result], memory_bytes, goal)
    return Found(result, (), (), f"{made.name} is what was asked for.")


def _count(strategy: Strategy, global_batch: int) -> int:
    """Into how many microbatches a step of named axes is cut."""
    if strategy.microbatches is not None:
        if global_batch % strategy.microbatches:
            raise StrategyError(
                f"A global batch of {global_batch} can't be cut into {strategy.microbatches} "
                "equal microbatches.",
                "Choose a count that divides the global batch.",
            )
        return strategy.microbatches
    if strategy.axes.get(STAGE, 1) > 1:
        return _for_stages(strategy, global_batch)
    return 1


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


# In words


_ENDED: Mapping[Stopped, str] = {
    "proved": "no plan can be faster, as a bound shows",
    "exhausted": "everything that analysis left open was costed",
    "settled": f"the last {_PATIENCE} candidates of the tree were no better, nor was any "
    "single change",
    "effort": "it had done the work that it may do, and no named strategy is better",
    "budget": "the time was over",
}


def _why(costing: Costing, best: Costed, stopped: Stopped, others: list[Evaluated]) -> str:
    name = best.result.candidate.name
    count = len(costing.costed)
    costed = f"{count} candidates" if count != 1 else "one candidate"
    ended = f"The search ended after {costed}: {_ENDED[stopped]}."
    if costing.uncosted:
        many = len(costing.uncosted)
        ended += f" It left {many} named strateg{'y' if many == 1 else 'ies'} uncosted, "
        ended += f"the likeliest {costing.uncosted[0]}."
    if costing.goal.kind == "memory":
        return f"{name} is predicted to need the least memory. {ended}"
    fitting = [item for item in others if item.fits]
    if not fitting:
        if others:
            return f"{name} is the only candidate that fits the memory. {ended}"
        if stopped in ("exhausted", "proved"):
            return f"{name} is the only candidate that was left to cost. {ended}"
        return f"{name} is the only candidate that was costed. {ended}"
    slower = min(fitting, key=lambda item: item.prediction.step_time_s)
    said = best.result.prediction
    share = (slower.prediction.step_time_s / said.step_time_s - 1) * 100
    margin = f"{share:.0f}%" if share >= 1 else "less than 1%"
    least = min(item.prediction.communication_s for item in fitting)
    reason = (
        "it spends least on communication"
        if said.communication_s <= least
        else "its compute and communication together take least"
    )
    return (
        f"{name} is predicted fastest: {reason}; next is {slower.candidate.name}, {margin} "
        f"slower. {ended}"
    )


def _nothing_fits(
    evaluated: list[Evaluated], memory_bytes: int, goal: Goal, bound_s: float | None = None
) -> NoPlanFits:
    small = [item for item in evaluated if item.prediction.peak_memory_bytes <= memory_bytes]
    if small and goal.max_step_time_s is not None:
        quickest = min(small, key=lambda item: item.prediction.step_time_s)
        proved = bound_s is not None and bound_s > goal.max_step_time_s
        costed = "" if proved else f" of the {len(evaluated)} that were costed"
        return NoPlanFits(
            f"No plan{costed} takes at most {goal.max_step_time_s:g} s. The quickest that fits is "
            f"{quickest.candidate.name}, with {quickest.prediction.step_time_s:.4g} s."
            + (f" None can take less than {bound_s:.4g} s." if bound_s else ""),
            "Allow a step more time, or plan for more devices."
            if proved
            else "Allow a step more time, plan for more devices, or let the search look longer "
            "(--budget-seconds).",
        )
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
        closest=closest,
    )


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
