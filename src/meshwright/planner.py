"""From a model and a cluster to a plan: capture, search, and what the plan says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from meshwright._version import __version__
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster, Profile
from meshwright.cluster.variants import with_hosts, with_larger_devices
from meshwright.collecting import rare_collections
from meshwright.cost.memory import optimizer_cost
from meshwright.cost.table import table_for
from meshwright.errors import MeshwrightError, NoPlanFits, UsageError
from meshwright.layout.origins import origins
from meshwright.layout.remarks import remarks
from meshwright.lower.alone import Alone
from meshwright.lower.by_op import OpByOp
from meshwright.model import Model
from meshwright.plan.types import (
    BUCKET_BYTES,
    Alternative,
    Plan,
    Prediction,
    RandomNumbers,
)
from meshwright.program.fingerprint import fingerprint, parameters_fingerprint
from meshwright.search.catalogue import named
from meshwright.search.closest import Site, candidate_of, what_would_fit
from meshwright.search.constraints import Constraints, resolve
from meshwright.search.constraints import parse as parse_constraints
from meshwright.search.costing import SearchProgress
from meshwright.search.goals import goal_of, over_parts, smaller
from meshwright.search.search import default_budget_s, search
from meshwright.search.strategy import parse_strategy
from meshwright.search.types import Candidate, Evaluate, Evaluated
from meshwright.stepping import Laid, Stepping
from meshwright.task import Task

Progress = Callable[[str], None]

# Of the seconds for a plan, what the search itself has at least, however long loading and
# capture took, before it or in it; and when it ends, so that the plan is laid out in time.
_SEARCHED = (0.3, 0.7)
# What tree and improvement may do, in seconds of nominal speed: less than the search has even
# after long captures, so that not the clock ends it.
_EFFORT = 0.15


@rare_collections()
def plan(
    task: Task,
    cluster: str | Cluster = "local:4",
    strategy: str = "auto",
    *,
    microbatches: int | None = None,
    clip_norm: float | None = None,
    optimizer: str = "adamw",
    rng: RandomNumbers = "exact",
    bucket_bytes: int = BUCKET_BYTES,
    profile: Profile | None = None,
    model: Model | None = None,
    progress: Progress | None = None,
    constraints: Sequence[str] = (),
    budget_s: float | None = None,
    seed: int = 0,
    goal: str = "time",
    max_step_time_s: float | None = None,
    advise: bool = True,
    begun: float | None = None,
    effort_s: float | None = None,
) -> Plan:
    """A plan for one training step of `task` on `cluster`. Needs no process group and no weights.

    cluster: as in `local:4` or `16x8:h100-sxm`, or a Cluster.
    strategy: `auto`, or a composition such as `data=2,tensor=2,zero=1`.
    microbatches: into how many the global batch is cut; None leaves it to the strategy.
    clip_norm: bound on the global norm of the gradients; None clips nothing.
    optimizer: whose state and time are counted, by name as in `adamw` or `sgd`.
    rng: how random ops draw. `exact` draws by global position, the same numbers under every
        plan; `fast` by each device's own generator, where replicas of a part draw alike.
    bucket_bytes: collectives of gradients and of parameters are merged up to it; 0 merges none.
    profile: what `calibrate` measured on this machine, for a `local` cluster.
    constraints: what the plan has to obey, as in `layout head.weight=0:tensor` or
        `forbid zero=3`; see `meshwright.search.constraint_texts`.
    budget_s: seconds for the whole plan, None for the usual 20: the search ends in time for
        the rest, and says whether it ended before. seed: of the search's own draws: the same
        input and seed give the same plan.
    goal: `time`, `devices`, `memory` or `cost` (`meshwright.search.goals`).
    max_step_time_s: plans whose step takes longer do not count.
    advise: where nothing fits, work out what would, which takes up to ten seconds more.
    begun: when the work began that `budget_s` is for, by `time.perf_counter`; None for now.
    effort_s: the budget by which work is measured out, where that is not `budget_s`.

    Raises UsageError for bad input, NoPlanFits when memory does not suffice,
    CaptureError when the model can't be captured.
    """
    begun = time.perf_counter() if begun is None else begun
    budget_s = default_budget_s() if budget_s is None else budget_s
    say = progress or (lambda message: None)
    where = parse_cluster(cluster, profile) if isinstance(cluster, str) else cluster
    wanted = parse_strategy(strategy)
    if microbatches is not None:
        if wanted.microbatches not in (None, microbatches):
            raise UsageError(
                f"The strategy asks for {wanted.microbatches} microbatches, the call for "
                f"{microbatches}.",
                "Say it once.",
            )
        wanted = replace(wanted, microbatches=microbatches)
    obeyed = parse_constraints(constraints)
    wish = goal_of(goal, max_step_time_s)
    optimizer_cost(optimizer)
    if rng not in get_args(RandomNumbers):
        raise UsageError(
            f"rng is '{rng}'.", "Give exact (the same numbers under every plan) or fast."
        )
    if bucket_bytes < 0:
        raise UsageError(
            f"bucket_bytes is {bucket_bytes}.", "Give a number of bytes, or 0 to merge nothing."
        )
    if clip_norm is not None and not 0 < clip_norm < float("inf"):
        raise UsageError(f"clip_norm is {clip_norm}.", "Give a positive norm, or leave it out.")
    model = model or Model(task)
    model.prober.say = say
    if wish.kind in ("devices", "cost"):
        return over_parts(
            wish, where, max(budget_s - (time.perf_counter() - begun), _SEARCHED[0] * budget_s),
            lambda part, left_s: plan(
                task, part, strategy, microbatches=microbatches, clip_norm=clip_norm,
                optimizer=optimizer, rng=rng, bucket_bytes=bucket_bytes, model=model,
                progress=progress, constraints=constraints, budget_s=left_s, seed=seed,
                max_step_time_s=max_step_time_s, advise=False,
                effort_s=budget_s / len(list(smaller(where))),
            ),
        )  # fmt: skip
    say("capturing the step")
    started, captured_before = time.perf_counter(), model.capture_s
    batch = model.global_batch
    stepping = Stepping(model, where, clip_norm is not None, optimizer, bucket_bytes)
    alike = not (obeyed and obeyed.names_single_layers(_names(model)))
    # One candidate is laid out on all blocks at once, many on few of them.
    few = wanted.auto and alike
    time_left = _TimeLeft(model, budget_s, begun)
    made: Laid | None = None
    while made is None:  # once more where few blocks turn out not to stand for all
        first = model.outline(wanted.microbatches or 1) if few else None
        if few and not model.shorten:
            say(f"planning on the whole model: {model.why_whole}")
        try:
            found = search(
                wanted,
                where.size,
                where.memory_bytes,
                batch,
                lambda count: model.outline(count).few if few else model.whole(count),
                lambda candidate: stepping.costs(candidate, few),
                obeyed,
                cluster=where,
                optimizer=optimizer,
                stands_for=first.stands_for if first else {},
                budget_s=time_left(),
                clock=lambda: -time_left(),
                seed=seed,
                effort_s=_EFFORT * (budget_s if effort_s is None else effort_s),
                goal=wish,
                progress=lambda state: say(_progress_text(state)),
                by_op=lambda analysis, mesh: OpByOp(
                    Alone(analysis, mesh, table_for(where), optimizer, bucket_bytes)
                ),
            )
        except NoPlanFits as error:
            if not advise:
                raise
            say("nothing fits; working out what would")
            raise what_would_fit(error, wanted, _site(stepping, obeyed, few, alike)) from None
        search_s = time.perf_counter() - started - (model.capture_s - captured_before)
        started, captured_before = time.perf_counter(), model.capture_s
        if first is None or model.outline(wanted.microbatches or 1) is first:
            say(f"laying out {found.best.candidate.name}")
            made = stepping.whole(found.best.candidate, few)
    best, analysis, lowered = made.candidate, made.analysis, made.lowered
    lower_s = time.perf_counter() - started - (model.capture_s - captured_before)
    return Plan(
        meshwright_version=__version__,
        model=task.name,
        program=fingerprint(analysis.program),
        parameters_fingerprint=parameters_fingerprint(analysis.program),
        cluster=where.text,
        strategy=best.name if wanted.auto else strategy,
        mesh=dict(best.mesh.axes),
        microbatches=best.microbatches,
        global_batch=batch,
        clip_norm=clip_norm,
        optimizer=optimizer,
        bucket_bytes=bucket_bytes,
        rng=rng,
        decisions=best.decisions,
        parameters=best.parameters,
        pipeline=made.pipeline,
        recompute=best.recompute,
        predicted=made.prediction,
        origins=origins(lowered, best.microbatches, table_for(where).collective),
        remarks=remarks(analysis, lowered),
        why=found.why,
        choices=tuple(item for item in found.choices if not obeyed.decided(item.subject)),
        lower_bound_s=found.lower_bound_s,
        gap=_gap(made.prediction, found.lower_bound_s),
        stopped=found.stopped,
        seed=seed,
        evaluated=found.evaluated,
        constraints=obeyed.texts,
        alternatives=(*(_alternative(other) for other in found.others),),
        capture_s=model.capture_s,
        search_s=search_s,
        lower_s=lower_s,
    )


PLAIN = ("data", "zero=1", "zero=2", "zero=3", "tensor")


@rare_collections()
def costed(
    task: Task,
    cluster: str | Cluster = "local:4",
    *,
    microbatches: int = 1,
    clip_norm: float | None = None,
    optimizer: str = "adamw",
    bucket_bytes: int = BUCKET_BYTES,
    profile: Profile | None = None,
    model: Model | None = None,
    progress: Progress | None = None,
    constraints: Sequence[str] = (),
) -> Mapping[str, Evaluated | MeshwrightError]:
    """Every named strategy as predicted, whether it fits or not, or why it can't be laid out.

    The arguments are those of `plan`. Raises CaptureError when the model can't be captured.
    """
    say = progress or (lambda message: None)
    where = parse_cluster(cluster, profile) if isinstance(cluster, str) else cluster
    obeyed = parse_constraints(constraints)
    model = model or Model(task)
    model.prober.say = say
    say("capturing the step")
    stepping = Stepping(model, where, clip_norm is not None, optimizer, bucket_bytes)
    few = not (obeyed and obeyed.names_single_layers(_names(model)))
    analysis = model.outline(microbatches).few if few else model.whole(microbatches)
    resolve(obeyed, analysis)
    names = named(
        analysis, where.size, model.global_batch,
        host=where.groups[0].devices, microbatches=microbatches,
    )  # fmt: skip
    found: dict[str, Evaluated | MeshwrightError] = {}
    for name in dict.fromkeys((*PLAIN, *names)):
        say(f"costing {name}")
        try:
            made = candidate_of(name, analysis, where.size, microbatches, obeyed)
            said = stepping.predict(made, few)
        except MeshwrightError as error:
            found[name] = error
        else:
            found[name] = Evaluated(made, said, said.peak_memory_bytes <= where.memory_bytes)
    return found


def _names(model: Model) -> Iterator[str]:
    return (name for name, _ in model.blueprint.module.named_parameters())


def _site(stepping: Stepping, constraints: Constraints, few: bool, alike: bool) -> Site:
    """What `what_would_fit` plans with; alike: few blocks may stand for all."""
    model, cluster = stepping.model, stepping.cluster

    def evaluate_on(other: Cluster) -> Evaluate:
        there = replace(stepping, cluster=other)
        return lambda candidate: there.predict(candidate, few or alike)

    def stage_of(candidate: Candidate) -> int:
        stages = stepping.simulated(candidate, few).stages
        return max(range(len(stages)), key=lambda k: stages[k].peak_memory_bytes, default=0)

    return Site(
        cluster,
        model.global_batch,
        lambda count: model.outline(count).few if few or alike else model.whole(count),
        evaluate_on,
        lambda hosts: with_hosts(cluster, hosts),
        with_larger_devices(cluster),
        constraints,
        stage_of,
    )


def _gap(prediction: Prediction, bound_s: float | None) -> float | None:
    """How much longer than the bound the step takes, as a share of it."""
    return max(0.0, prediction.step_time_s / bound_s - 1) if bound_s else None


def _progress_text(state: SearchProgress) -> str:
    best = (
        f"; best {state.best}, {state.best_s:.4g} s a step" if state.best and state.best_s else ""
    )
    return f"{state.evaluations} candidates costed, {state.seconds_left:.0f} s left{best}"


def _alternative(item: Evaluated) -> Alternative:
    return Alternative(
        **item.prediction.model_dump(),
        strategy=item.candidate.name,
        mesh=dict(item.candidate.mesh.axes),
        microbatches=item.candidate.microbatches,
        fits=item.fits,
    )


@dataclass(frozen=True)
class _TimeLeft:
    """Seconds that the search has left, of all that there are for the plan since `begun`."""

    model: Model
    budget_s: float
    begun: float
    started: float = field(default_factory=time.perf_counter)
    captured_s: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "captured_s", self.model.capture_s)

    def __call__(self) -> float:
        now = time.perf_counter()
        searched_s = now - self.started - (self.model.capture_s - self.captured_s)
        least, until = _SEARCHED
        return max(least * self.budget_s - searched_s, until * self.budget_s - (now - self.begun))
