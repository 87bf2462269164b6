"""The flow, top to bottom: capture, plan, lower, run. The one module that sees every stage."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from meshwright.capture.batch import batch_spec, describe_leaves
from meshwright.capture.copying import copy_for_real
from meshwright.capture.loss import run_loss
from meshwright.capture.meta import weights_on_meta
from meshwright.cluster.mesh import Mesh
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster, Profile
from meshwright.cost.breakdown import Spent, breakdown
from meshwright.cost.table import table_for
from meshwright.errors import MeshwrightError, PlanError, UsageError
from meshwright.layout.assignment import assign
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.origins import origins
from meshwright.layout.remarks import remarks
from meshwright.lower.lower import lower
from meshwright.lower.special_random import RANDOM
from meshwright.lower.user_rules import register_rule as register_rule
from meshwright.model import SHAPES_KEPT as SHAPES_KEPT
from meshwright.model import Model as Model
from meshwright.plan.check import check_devices, check_executable, check_plan
from meshwright.plan.file import load_plan
from meshwright.plan.types import Plan, RandomNumbers
from meshwright.planner import costed as costed
from meshwright.planner import plan as plan
from meshwright.runtime.comm import Communicator, connect
from meshwright.runtime.compare import Comparison, compare
from meshwright.runtime.job import Compiled, Job
from meshwright.runtime.lockstep import run_lockstep
from meshwright.runtime.reference import Reference
from meshwright.runtime.trainer import OptimizerFactory
from meshwright.runtime.worker import init_process
from meshwright.simulate.step import simulate
from meshwright.simulate.types import Simulation
from meshwright.stepping import predict, tokens_of
from meshwright.task import Task


def predict_again(
    task: Task, plan: Plan, *, profile: Profile | None = None, model: Model | None = None
) -> Plan:
    """The plan with fresh predictions: for a file that was edited, or other measurements."""
    model = model or Model(task)
    program = model.microbatch(plan.microbatches)[0].program
    check_plan(plan, program)
    lowered = _lower_plan(model, plan)
    cluster = parse_cluster(plan.cluster, profile)
    result = simulate(
        lowered, cluster, microbatches=plan.microbatches, optimizer=plan.optimizer,
        pipeline=plan.pipeline, recompute=plan.recompute, memory_curve=False,
    )  # fmt: skip
    return plan.model_copy(
        update={
            "predicted": predict(result, program, plan.microbatches, cluster),
            "origins": origins(lowered, plan.microbatches, table_for(cluster).collective),
            "remarks": remarks(model.microbatch(plan.microbatches)[1], lowered),
        }
    )


def step_breakdown(
    task: Task, plan: Plan, *, profile: Profile | None = None, model: Model | None = None
) -> dict[str, Spent]:
    """The planned step's predicted time by op family and collective; see `cost.breakdown`."""
    lowered = _lower_plan(model or Model(task), plan)
    return breakdown(
        lowered,
        parse_cluster(plan.cluster, profile),
        microbatches=plan.microbatches,
        optimizer=plan.optimizer,
        step_time_s=plan.predicted.step_time_s,
    )


def _lower_plan(model: Model, plan: Plan) -> LoweredProgram:
    analysis = model.microbatch(plan.microbatches)[1]
    mesh = Mesh(tuple(plan.mesh.items()))
    clip = plan.clip_norm is not None
    assignment = assign(analysis, mesh, plan.decisions, plan.parameters, clip)
    return lower(analysis, assignment, mesh.coordinate(0), plan.bucket_bytes)


def simulate_plan(task: Task, plan: Plan, *, profile: Profile | None = None,
                  model: Model | None = None) -> Simulation:  # fmt: skip
    """The planned step simulated in full, with its timeline and memory curve."""
    model = model or Model(task)
    check_plan(plan, model.microbatch(plan.microbatches)[0].program)
    lowered = _lower_plan(model, plan)
    cluster = parse_cluster(plan.cluster, profile)
    return simulate(
        lowered, cluster, microbatches=plan.microbatches, optimizer=plan.optimizer,
        pipeline=plan.pipeline, recompute=plan.recompute,
    )  # fmt: skip


def parallelize(
    task: Task,
    *,
    optimizer: OptimizerFactory,
    plan: Plan | str | Path,
    seed: int = 0,
    communicator: Communicator | None = None,
    model: Model | None = None,
    device: str | None = None,
    rng: RandomNumbers | None = None,
    overlap: bool | None = None,
) -> Job:
    """This process's part of the planned job, ready to step. Call it in every process.

    optimizer: makes a `torch.optim` optimizer from a list of parameters; it
        sees local shards, so it must update each element by itself.
    plan: a Plan, or the path of one.
    seed: of the initial parameters, which are bitwise those of
        `torch.manual_seed(seed); model()` whatever the plan, and of random ops.
    communicator: for runs inside one process; None connects the processes that
        `torchrun` or `meshwright train` started.
    device: `cpu` or `cuda`; None takes CUDA where there is one.
    rng: `exact` or `fast` in place of what the plan says.
    overlap: gather parameters and reduce gradients beside compute; None does so on
        accelerators, which have units of their own for it, and not on CPUs, whose cores it takes
        from the compute.
    """
    resolved = plan if isinstance(plan, Plan) else load_plan(plan)
    if rng is not None:
        resolved = resolved.model_copy(update={"rng": rng})
    check_executable(resolved)
    mesh = Mesh(tuple(resolved.mesh.items()))
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    alone = communicator is None  # in this process; other ranks may be its threads
    if communicator is None:
        process = init_process(place)
        check_devices(resolved, process.world)
        communicator = connect(mesh, place)
    model = model or Model(task)
    coordinate = mesh.coordinate(communicator.rank)
    check_plan(resolved, model.microbatch(resolved.microbatches)[0].program)

    def compile_for(batch: Any) -> Compiled:
        captured, analysis = model.captured(batch)

        def lowered_at(where: Mapping[str, int]) -> LoweredProgram:
            clip = resolved.clip_norm is not None
            assignment = assign(analysis, mesh, resolved.decisions, resolved.parameters, clip)
            return lower(analysis, assignment, where, resolved.bucket_bytes)

        try:
            check_plan(resolved, captured.program)
            lowered = lowered_at(coordinate) if alone else model.lowerings.get(
                (analysis, resolved.decisions, resolved.parameters),
                (mesh, resolved.clip_norm is not None, resolved.bucket_bytes),
                coordinate, lowered_at,
            )  # fmt: skip
        except MeshwrightError as error:
            raise PlanError(
                f"The plan does not hold for a microbatch of {describe_leaves(batch)}: "
                f"{error.message}",
                f"{error.remedy} Or pad batches to the planned shapes, or plan with an example "
                "batch of this shape.".strip(),
            ) from error
        return Compiled(lowered, captured.constants, tokens_of(captured.program), captured.opaque)

    return Job(
        plan=resolved,
        flatten=model.spec.flatten,
        compile_for=compile_for,
        example=task.batch,
        materialize=model.materialize,
        optimizer=optimizer,
        communicator=communicator,
        seed=seed,
        device=torch.device(place, torch.cuda.current_device()) if place == "cuda"
        else torch.device("cpu"),
        overlap=place != "cpu" if overlap is None else overlap,
    )  # fmt: skip


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that verification steps with.

    It is linear in the gradient, so that a difference stays as large as it is.
    Adam divides by the gradient's own size and turns the rounding noise of a
    gradient that should be zero into a full step of either sign.
    """
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)


OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "sgd-momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


def optimizer_by_name(name: str, learning_rate: float) -> OptimizerFactory:
    """The optimizer that a name in a plan or on the command line stands for."""
    if name not in OPTIMIZERS:
        raise UsageError(
            f"There is no optimizer named '{name}'.", f"Use one of {', '.join(OPTIMIZERS)}."
        )
    return functools.partial(OPTIMIZERS[name], lr=learning_rate)


def one_device(
    task: Task, plan: Plan, *, optimizer: OptimizerFactory = sgd, seed: int = 0
) -> Reference:
    """The same training in plain PyTorch on this process alone."""

    def build() -> torch.nn.Module:
        if not isinstance(task.model, torch.nn.Module):
            return task.model()
        return copy_for_real(task.model, weights_on_meta(task.model, seed))

    return Reference(
        build,
        lambda module, batch: run_loss(task, module, batch),
        optimizer,
        batch_spec(task.batch).flatten,
        seed=seed,
        microbatches=plan.microbatches,
        clip_norm=plan.clip_norm,
    )


def check_comparable(plan: Plan, model: Model) -> None:
    """Raises UsageError for a plan whose random numbers are not those of one device."""
    program = model.microbatch(plan.microbatches)[0].program
    drawn = next((op for op in program.ops if op.target in RANDOM), None)
    if plan.rng == "fast" and drawn is not None:
        raise UsageError(
            "The plan draws random numbers by rng=fast, each device for itself, and "
            f"{drawn.source} draws: what one device computes differs from it in every draw.",
            "Verify it with rng=exact; everything else runs the same way.",
        )


_make_plan = plan  # for `verify`, whose argument has the same name


def verify(
    task: Task,
    cluster: str | Cluster = "local:4",
    strategy: str = "auto",
    *,
    steps: int = 3,
    plan: Plan | None = None,
    optimizer: OptimizerFactory = sgd,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    model: Model | None = None,
    microbatches: int | None = None,
    clip_norm: float | None = None,
    rng: RandomNumbers = "exact",
    constraints: Sequence[str] = (),
) -> Comparison:
    """Is the planned step the single-device step? All ranks run in lockstep in this process.

    plan: one to verify instead of the one that the strategy gives.
    batches: global batches to step on; None repeats the example batch `steps` times.
    `meshwright verify` does the same on real processes, and measures time and memory.
    """
    model = model or Model(task)
    made = plan or _make_plan(
        task, cluster, strategy, model=model, microbatches=microbatches, clip_norm=clip_norm,
        rng=rng, constraints=constraints,
    )  # fmt: skip
    check_executable(made)
    check_comparable(made, model)
    given = list(batches) if batches is not None else [task.batch] * steps

    # Built first, since threads of one process share PyTorch's random generator.
    reference = one_device(task, made, optimizer=optimizer, seed=seed)

    def rank(communicator: Communicator) -> Comparison | None:
        job = parallelize(
            task, optimizer=optimizer, plan=made, seed=seed, communicator=communicator,
            model=model, device="cpu",
        )  # fmt: skip
        return compare(job, lambda: reference, given)

    results = run_lockstep(Mesh(tuple(made.mesh.items())), rank)
    assert results[0] is not None
    return results[0]
