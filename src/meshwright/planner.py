"""From a model and a cluster to a plan: capture, search, and what the plan says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

from meshwright._version import __version__
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster, Profile
from meshwright.cost.flops import op_flops
from meshwright.cost.interval import step_interval
from meshwright.cost.memory import optimizer_cost
from meshwright.errors import UsageError
from meshwright.layout.assignment import assign
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.origins import origins
from meshwright.layout.remarks import remarks
from meshwright.lower.lower import lower
from meshwright.model import Model
from meshwright.plan.types import (
    BUCKET_BYTES,
    Alternative,
    Pipeline,
    Plan,
    Prediction,
    RandomNumbers,
)
from meshwright.program.fingerprint import fingerprint, parameters_fingerprint
from meshwright.program.types import Program
from meshwright.search.constraints import parse as parse_constraints
from meshwright.search.search import search
from meshwright.search.strategy import parse_strategy
from meshwright.search.types import Candidate, Evaluated
from meshwright.simulate.step import simulate
from meshwright.simulate.types import Simulation
from meshwright.task import Task

Progress = Callable[[str], None]


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

    Raises UsageError for bad input, NoPlanFits when memory does not suffice,
    CaptureError when the model can't be captured.
    """
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
    say("capturing the step")
    program = model.microbatch(1)[0].program
    started, captured_before = time.perf_counter(), model.capture_s
    batch = model.global_batch

    cut: dict[str, Pipeline | None] = {}  # by candidate

    def evaluate(candidate: Candidate) -> Prediction:
        say(f"costing {candidate.name}")
        lowered = _lower(model, candidate, clip_norm is not None, bucket_bytes)
        result = simulate(
            lowered, where, microbatches=candidate.microbatches, optimizer=optimizer,
            pipeline=candidate.pipeline, recompute=candidate.recompute, memory_curve=False,
        )  # fmt: skip
        cut[candidate.name] = result.pipeline
        program = model.microbatch(candidate.microbatches)[0].program
        return predict(result, program, candidate.microbatches, where)

    found = search(
        wanted,
        where.size,
        where.memory_bytes,
        batch,
        lambda count: model.microbatch(count)[1],
        evaluate,
        obeyed,
    )
    search_s = time.perf_counter() - started - (model.capture_s - captured_before)
    best = found.best.candidate
    started = time.perf_counter()
    lowered = _lower(model, best, clip_norm is not None, bucket_bytes)
    lower_s = time.perf_counter() - started
    return Plan(
        meshwright_version=__version__,
        model=task.name,
        program=fingerprint(model.microbatch(best.microbatches)[0].program),
        parameters_fingerprint=parameters_fingerprint(program),
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
        pipeline=cut[best.name],
        recompute=best.recompute,
        predicted=found.best.prediction,
        origins=origins(lowered, best.microbatches),
        remarks=remarks(model.microbatch(best.microbatches)[1], lowered),
        why=found.why,
        constraints=obeyed.texts,
        alternatives=(*(_alternative(other) for other in found.others),),
        capture_s=model.capture_s,
        search_s=search_s,
        lower_s=lower_s,
    )


def _alternative(item: Evaluated) -> Alternative:
    return Alternative(
        **item.prediction.model_dump(),
        strategy=item.candidate.name,
        mesh=dict(item.candidate.mesh.axes),
        microbatches=item.candidate.microbatches,
        fits=item.fits,
    )


def _lower(
    model: Model, candidate: Candidate, clip: bool, bucket_bytes: int
) -> LoweredProgram:
    analysis = model.microbatch(candidate.microbatches)[1]
    assignment = assign(analysis, candidate.mesh, candidate.decisions, candidate.parameters, clip)
    return lower(analysis, assignment, candidate.mesh.coordinate(0), bucket_bytes)


def predict(
    result: Simulation, program: Program, microbatches: int, cluster: Cluster
) -> Prediction:
    """What the simulation says, with rates: tokens (or examples) and model FLOPs per second."""
    flops = microbatches * sum(op_flops(op, program.values) for op in program.ops)
    tokens = microbatches * tokens_of(program)
    return Prediction(
        step_time_s=result.step_time_s,
        step_time_interval_s=step_interval(
            cluster,
            result.step_time_s,
            compute_s=result.compute_s,
            collectives_s=result.communication_s,
            optimizer_s=result.optimizer_s,
        ),
        peak_memory_bytes=result.peak_memory_bytes,
        tokens_per_s=tokens / result.step_time_s if result.step_time_s else None,
        mfu=flops / (result.step_time_s * cluster.peak_flops) if result.step_time_s else None,
        collectives=result.collectives,
        before_merging=result.before_merging,
        compute_s=result.compute_s + result.optimizer_s,
        communication_s=result.communication_s,
        memory=result.memory,
    )


def tokens_of(program: Program) -> int:
    """Tokens of one microbatch: elements of the first batch leaf that holds token numbers.

    A model without one counts examples.
    """
    leaves = [program.values[item.value] for item in program.inputs_of("batch")]
    for leaf in leaves:
        if leaf.dtype in ("int64", "int32") and len(leaf.shape) >= 2:
            return leaf.numel
    return leaves[0].shape[0] if leaves and leaves[0].shape else 1
