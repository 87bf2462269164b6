"""The flow, top to bottom: capture, plan, lower, run. The one module that sees every stage."""

from __future__ import annotations

import functools
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from meshwright._version import __version__
from meshwright.capture.batch import BatchSpec, batch_spec, describe_leaves
from meshwright.capture.blueprint import Blueprint, blueprint
from meshwright.capture.copying import copy_for_real
from meshwright.capture.loss import run_loss
from meshwright.capture.meta import weights_on_meta
from meshwright.capture.trace import Captured, capture
from meshwright.cluster.mesh import Mesh
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster, Profile
from meshwright.cost.breakdown import Spent, breakdown
from meshwright.cost.flops import op_flops
from meshwright.cost.interval import step_interval
from meshwright.cost.memory import optimizer_cost
from meshwright.errors import MeshwrightError, PlanError, UsageError
from meshwright.layout.assignment import assign
from meshwright.layout.groups import Analysis
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.origins import origins
from meshwright.layout.remarks import remarks
from meshwright.lower.lower import lower
from meshwright.lower.probing import Probing, probing
from meshwright.lower.special_random import RANDOM
from meshwright.lower.user_rules import register_rule as register_rule
from meshwright.plan.check import check_devices, check_executable, check_plan
from meshwright.plan.file import load_plan
from meshwright.plan.types import Alternative, Pipeline, Plan, Prediction, RandomNumbers
from meshwright.program.fingerprint import fingerprint, parameters_fingerprint
from meshwright.program.types import Program
from meshwright.runtime.comm import Communicator, connect
from meshwright.runtime.compare import Comparison, compare
from meshwright.runtime.job import Compiled, Job
from meshwright.runtime.lockstep import run_lockstep
from meshwright.runtime.microbatch import batch_size, microbatch_of
from meshwright.runtime.reference import Reference
from meshwright.runtime.trainer import OptimizerFactory
from meshwright.runtime.worker import init_process
from meshwright.search.search import search
from meshwright.search.strategy import parse_strategy
from meshwright.search.types import Candidate, Evaluated
from meshwright.simulate.step import simulate
from meshwright.simulate.types import Simulation
from meshwright.task import Task

Progress = Callable[[str], None]

SHAPES_KEPT = 8  # programs of so many microbatch shapes are kept


@dataclass
class Model:
    """A task with what capture learned of it: the Program of each microbatch shape, once.

    Ranks that are threads of one process share a Model, hence the lock.
    """

    task: Task
    capture_s: float = 0.0
    blueprint: Blueprint = field(init=False)
    prober: Probing = field(init=False)
    captures: int = field(init=False, default=0)
    _captured: dict[Hashable, tuple[Captured, Analysis]] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        started = time.perf_counter()
        self.blueprint = blueprint(self.task.model)
        self.prober = probing()
        self.capture_s += time.perf_counter() - started

    @property
    def global_batch(self) -> int:
        return batch_size(self.spec.flatten(self.task.batch))

    @property
    def spec(self) -> BatchSpec:
        return batch_spec(self.task.batch)

    def captured(self, batch: Any) -> tuple[Captured, Analysis]:
        """The Program for batches shaped like `batch`; the eight shapes used last are kept.

        Warns from the ninth capture on: a shape that was dropped is captured again.
        """
        leaves = self.spec.flatten(batch)
        key = tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves.values())
        with self._lock:
            found = self._captured.pop(key, None)
            if found is None:
                made = capture(self.task, batch=batch, blueprint=self.blueprint)
                self.capture_s += made.seconds
                self.captures += 1
                found = (made, Analysis(made.program, self.prober))
                if self.captures > SHAPES_KEPT:
                    warnings.warn(
                        f"This is capture {self.captures}, for {describe_leaves(batch)}; it took "
                        f"{made.seconds:.1f} s, and the programs of {SHAPES_KEPT} shapes are kept. "
                        "Pad batches to a few shapes, or bucket them by length.",
                        stacklevel=2,
                    )
            self._captured[key] = found
            while len(self._captured) > SHAPES_KEPT:
                self._captured.pop(next(iter(self._captured)))
            return found

    def materialize(self, seed: int, keep: Callable[[str, Tensor], Tensor]) -> Mapping[str, Tensor]:
        """Initial parameters and buffers, each handed whole to `keep`, which cuts its part."""
        with self._lock:
            return self.blueprint.materialize(seed, keep)

    def microbatch(self, count: int) -> tuple[Captured, Analysis]:
        """The Program of one of `count` microbatches of the example batch."""
        return self.captured(microbatch_of(self.task.batch, self.global_batch // count))


def plan(
    task: Task,
    cluster: str | Cluster = "local:4",
    strategy: str = "auto",
    *,
    microbatches: int | None = None,
    clip_norm: float | None = None,
    optimizer: str = "adamw",
    rng: RandomNumbers = "exact",
    profile: Profile | None = None,
    model: Model | None = None,
    progress: Progress | None = None,
) -> Plan:
    """A plan for one training step of `task` on `cluster`. Needs no process group and no weights.

    cluster: as in `local:4` or `16x8:h100-sxm`, or a Cluster.
    strategy: `auto`, or a composition such as `data=2,tensor=2,zero=1`.
    microbatches: into how many the global batch is cut; None leaves it to the strategy.
    clip_norm: bound on the global norm of the gradients; None clips nothing.
    optimizer: whose state and time are counted, by name as in `adamw` or `sgd`.
    rng: how random ops draw. `exact` draws by global position, the same numbers under every
        plan; `fast` by each device's own generator, where replicas of a part draw alike.
    profile: what `calibrate` measured on this machine, for a `local` cluster.

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
    optimizer_cost(optimizer)
    if rng not in get_args(RandomNumbers):
        raise UsageError(
            f"rng is '{rng}'.", "Give exact (the same numbers under every plan) or fast."
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
        lowered = _lower(model, candidate, clip_norm is not None)
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
    )
    search_s = time.perf_counter() - started - (model.capture_s - captured_before)
    best = found.best.candidate
    started = time.perf_counter()
    lowered = _lower(model, best, clip_norm is not None)
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
        rng=rng,
        decisions=best.decisions,
        parameters=best.parameters,
        pipeline=cut[best.name],
        recompute=best.recompute,
        predicted=found.best.prediction,
        origins=origins(lowered, best.microbatches),
        remarks=remarks(model.microbatch(best.microbatches)[1], lowered),
        why=found.why,
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


def _lower(model: Model, candidate: Candidate, clip: bool) -> LoweredProgram:
    analysis = model.microbatch(candidate.microbatches)[1]
    assignment = assign(analysis, candidate.mesh, candidate.decisions, candidate.parameters, clip)
    return lower(analysis, assignment, candidate.mesh.coordinate(0))


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
            "origins": origins(lowered, plan.microbatches),
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
    return lower(analysis, assignment, mesh.coordinate(0))


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
    """
    resolved = plan if isinstance(plan, Plan) else load_plan(plan)
    if rng is not None:
        resolved = resolved.model_copy(update={"rng": rng})
    check_executable(resolved)
    mesh = Mesh(tuple(resolved.mesh.items()))
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if communicator is None:
        process = init_process(place)
        check_devices(resolved, process.world)
        communicator = connect(mesh, place)
    model = model or Model(task)
    coordinate = mesh.coordinate(communicator.rank)
    check_plan(resolved, model.microbatch(resolved.microbatches)[0].program)

    def compile_for(batch: Any) -> Compiled:
        captured, analysis = model.captured(batch)
        try:
            check_plan(resolved, captured.program)
            assignment = assign(
                analysis, mesh, resolved.decisions, resolved.parameters,
                resolved.clip_norm is not None,
            )  # fmt: skip
            lowered = lower(analysis, assignment, coordinate)
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
) -> Comparison:
    """Is the planned step the single-device step? All ranks run in lockstep in this process.

    plan: one to verify instead of the one that the strategy gives.
    batches: global batches to step on; None repeats the example batch `steps` times.
    `meshwright verify` does the same on real processes, and measures time and memory.
    """
    model = model or Model(task)
    made = plan or _make_plan(
        task, cluster, strategy, model=model, microbatches=microbatches, clip_norm=clip_norm,
        rng=rng,
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
