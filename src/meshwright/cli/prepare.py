"""From a command's words to a task, a cluster, a profile and a plan.

The modules that need PyTorch are imported where they are used, so that a
command's help does not wait for them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from meshwright.cli.output import Output
from meshwright.cli.processes import World, cores_here, torchrun_world
from meshwright.cli.profiles import local_profile
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.profile_file import load_profile
from meshwright.cluster.types import Cluster, Profile
from meshwright.errors import ClusterError, ModelError, PlanError, UsageError
from meshwright.plan.check import check_devices, check_plan
from meshwright.plan.file import load_plan
from meshwright.plan.types import Plan, RandomNumbers

if TYPE_CHECKING:
    from meshwright.api import Model
    from meshwright.task import Task

MOST_PROCESSES_A_CORE = 16
DEFAULT_CLUSTER = "local:4"
LEARNING_RATES = {
    "sgd": 1e-2, "sgd-momentum": 1e-2, "adam": 3e-4, "adamw": 3e-4, "adagrad": 1e-2,
    "rmsprop": 1e-3,
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the user asked for; None where nothing was said.

    begun: when, by `time.perf_counter`: a budget counts from there, loading included.
    """

    model: str
    options: Sequence[str] | None = None
    global_batch: int | None = None
    cluster: str | None = None
    strategy: str | None = None
    microbatches: int | None = None
    clip_norm: float | None = None
    optimizer: str | None = None
    profile: Path | None = None
    no_calibrate: bool = False
    plan: Path | None = None
    rng: str | None = None
    seq_len: int | None = None
    constraints: tuple[str, ...] = ()
    budget_s: float | None = None
    seed: int = 0
    goal: str | None = None
    max_step_time_s: float | None = None
    begun: float = field(default_factory=time.perf_counter, compare=False)


@dataclass(frozen=True)
class Prepared:
    """Ready to plan: the plan file's plan where one was given."""

    request: Request
    options: dict[str, str]
    task: Task
    model: Model
    cluster: Cluster
    profile: Profile | None
    given: Plan | None
    optimizer: str

    @property
    def local(self) -> bool:
        return is_local(self.cluster.text)


def prepare(request: Request, out: Output, *, optimizer: str = "adamw", measure: bool = False,
            fallback: Path | None = None) -> Prepared:  # fmt: skip
    """Load and check everything that can be checked before a search or a run.

    optimizer: where neither the user nor a plan file names one.
    measure: calibrate where no profile of this machine is at hand.
    fallback: where a new profile is kept when the user's cache can't be written.
    """
    world = torchrun_world()
    given = _given_plan(request)
    sizes = {"global_batch": request.global_batch, "seq_len": request.seq_len}
    options = parse_options(request.options or (), sizes)
    cluster = parse_cluster(_cluster_text(request, given, world))
    _check_size(cluster, world)
    if given is not None:
        check_devices(given, cluster.size)
    with out.status("Loading PyTorch and the model"):
        from meshwright.api import OPTIMIZERS, Model
    name = request.optimizer or (given.optimizer if given else optimizer)
    if name not in OPTIMIZERS:
        raise UsageError(
            f"There is no optimizer named '{name}'.", f"Use one of {', '.join(OPTIMIZERS)}."
        )
    if request.profile is not None and not is_local(cluster.text):
        raise UsageError(
            f"A profile says what this machine does, but the cluster is {cluster.text}.",
            "Leave out --profile, or name the profile's file in the cluster: 2x8:FILE.json.",
        )
    with out.status("Loading PyTorch and the model"):
        task = load_model(request.model, options)
        model = Model(task)
    if given is not None:
        _check_batch(given, task.name, model.global_batch)
    profile = load_profile(request.profile) if request.profile else None
    if profile is None and is_local(cluster.text) and not request.no_calibrate and world is None:
        profile = local_profile(cluster.size, out, measure and given is None, fallback)
    return Prepared(request, options, task, model, cluster, profile, given, name)


def make_plan(prepared: Prepared, out: Output, strategy: str | None = None) -> Plan:
    """The plan of the file, checked against the model, or a new one."""
    from meshwright.api import plan, predict_again

    model, request = prepared.model, prepared.request
    if prepared.given is not None:
        with out.status("Capturing the step"):
            program = model.microbatch(prepared.given.microbatches)[0].program
        check_plan(prepared.given, program)
        # The file may have been edited since, or be for another optimizer or measurement.
        stepped = prepared.given.model_copy(update={"optimizer": prepared.optimizer})
        return predict_again(prepared.task, stepped, profile=prepared.profile, model=model)
    with out.status("Capturing the step") as update:
        return plan(
            prepared.task,
            # parse_cluster works a local cluster out from the profile
            prepared.cluster.text if prepared.local else prepared.cluster,
            strategy or request.strategy or "auto",
            microbatches=request.microbatches,
            clip_norm=request.clip_norm,
            optimizer=prepared.optimizer,
            rng=cast(RandomNumbers, request.rng or "exact"),  # `plan` refuses others
            profile=prepared.profile,
            model=model,
            progress=lambda text: update(text[:1].upper() + text[1:]),
            constraints=request.constraints,
            budget_s=request.budget_s,
            seed=request.seed,
            goal=request.goal or "time",
            max_step_time_s=request.max_step_time_s,
            begun=request.begun,
        )


def parse_options(
    words: Sequence[str], sizes: Mapping[str, int | None] = MappingProxyType({})
) -> dict[str, str]:
    """The words of `--option`, with the sizes that have an option of their own."""
    options: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        key = key.strip()
        if not separator or not key:
            raise UsageError(
                f"The option '{word}' is not KEY=VALUE.", "Write it as in --option layers=2."
            )
        if key in options:
            raise UsageError(f"The option {key} is given twice.", "Give it once.")
        options[key] = value
    for key, size in sizes.items():
        if size is None:
            continue
        if key in options:
            raise UsageError(
                f"{key} is given twice, by --{key.replace('_', '-')} and by --option.",
                "Give it once.",
            )
        options[key] = str(size)
    return options


def load_model(reference: str, options: dict[str, str]) -> Task:
    from meshwright.zoo.reference import load_task

    try:
        return load_task(reference, options)
    except SystemExit as error:
        raise ModelError(
            f"Loading {reference} ended the program: it called sys.exit({error.code!r}).",
            "Guard what a script does with if __name__ == '__main__'.",
        ) from error


def learning_rate(asked: float | None, optimizer: str) -> float:
    if asked is None:
        return LEARNING_RATES[optimizer]
    if not asked > 0:
        raise UsageError(f"The learning rate is {asked:g}.", "Give a positive one, such as 1e-3.")
    return asked


def is_local(cluster: str) -> bool:
    return cluster == "local" or cluster.startswith("local:")


def existing_file(path: Path, what: str) -> Path:
    if not path.is_file():
        raise UsageError(f"There is no {what} {path}.", "Check the path.")
    return path


def _given_plan(request: Request) -> Plan | None:
    if request.plan is None:
        return None
    said = {
        "--strategy": request.strategy,
        "--microbatches": request.microbatches,
        "--clip-norm": request.clip_norm,
        "--rng": request.rng,
    }
    said |= {f"--{text.partition(' ')[0]}": text for text in request.constraints}
    both = [name for name, value in said.items() if value is not None]
    if both:
        raise UsageError(
            f"{both[0]} is given beside --plan, which says it already.",
            f"Leave out {both[0]}, or leave out --plan to search for a plan.",
        )
    return load_plan(request.plan)


def _cluster_text(request: Request, given: Plan | None, world: World | None) -> str:
    if request.cluster is not None:
        return request.cluster
    if given is not None:
        return given.cluster
    if world is None:
        return DEFAULT_CLUSTER
    if world.hosts > 1:
        raise UsageError(
            f"torchrun started {world.size} processes on {world.hosts} hosts, but no cluster is "
            "given.",
            "Say what the hosts are, as in --cluster 2x8:h100-sxm.",
        )
    return f"local:{world.size}"


def _check_size(cluster: Cluster, world: World | None) -> None:
    if world is not None and cluster.size != world.size:
        raise UsageError(
            f"The cluster {cluster.text} has {cluster.size} "
            f"device{'s' if cluster.size > 1 else ''}, but torchrun started {world.size} "
            f"process{'es' if world.size > 1 else ''}.",
            f"Start {cluster.size} processes, or give a cluster of {world.size}.",
        )
    _check_cores(cluster)


def local_cluster(text: str) -> Cluster:
    """The cluster `local:N`; raises ClusterError for another kind."""
    cluster = parse_cluster(text)
    if not is_local(text):
        raise ClusterError(f"The cluster {text} is not this machine.", "Give local:N.")
    _check_cores(cluster)
    return cluster


def _check_cores(cluster: Cluster) -> None:
    cores = cores_here()
    if is_local(cluster.text) and cluster.size > MOST_PROCESSES_A_CORE * cores:
        raise UsageError(
            f"The cluster {cluster.text} puts {cluster.size} processes on this machine's {cores} "
            f"core{'s' if cores > 1 else ''}, more than {MOST_PROCESSES_A_CORE} each.",
            f"Ask for at most local:{MOST_PROCESSES_A_CORE * cores}.",
        )


def _check_batch(given: Plan, name: str, global_batch: int) -> None:
    """A cheap look before capture, which checks the parameters as well."""
    if given.global_batch == global_batch:
        return
    raise PlanError(
        f"The plan is for {given.model} with a global batch of {given.global_batch}, and this "
        f"is {name} with {global_batch}.",
        f"Give the model that batch, as in --global-batch {given.global_batch} for one of the zoo, "
        "or make a plan for this model.",
    )
