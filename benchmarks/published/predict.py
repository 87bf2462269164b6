"""Predicts a row with the project's own capture, planner, lowering and simulator."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from benchmarks.published.clusters import cluster_for
from benchmarks.published.models import model_for, stands_for
from benchmarks.published.rows import Row
from benchmarks.published.setting import OPTIMIZER, executor_for, kernels_for, process_bytes
from benchmarks.published.settle import (
    Settled,
    Unpredictable,
    measured_step_s,
    settle,
)
from benchmarks.published.strategies import pipeline_of, strategy_text

from meshwright.cluster.types import Cluster
from meshwright.cost.constants import Constants, default_constants
from meshwright.cost.table import table_for
from meshwright.errors import MeshwrightError
from meshwright.layout.assignment import assign
from meshwright.layout.groups import Analysis
from meshwright.layout.lowered import LoweredProgram
from meshwright.lower.lower import lower
from meshwright.plan.types import Residency
from meshwright.search.named import RESIDENCY, candidate
from meshwright.search.strategy import mesh_for, parse_strategy
from meshwright.simulate.step import simulate
from meshwright.simulate.types import Simulation

_PROGRAMS_KEPT = 512


@dataclass(frozen=True)
class Predicted:
    """A row with what was measured and what is predicted; memory of the fullest device.

    `measured_from` says from which field the measured step time comes.
    """

    row: Row
    settled: Settled
    strategy: str
    measured_s: float | None
    measured_from: str | None
    measured_gib: float | None
    simulation: Simulation

    @property
    def predicted_s(self) -> float:
        return self.simulation.step_time_s

    @property
    def predicted_gib(self) -> float:
        return (self.simulation.peak_memory_bytes + process_bytes(self.settled)) / 2**30

    @property
    def step_error(self) -> float | None:
        """(predicted - measured) / measured."""
        return self.predicted_s / self.measured_s - 1 if self.measured_s else None

    @property
    def memory_error(self) -> float | None:
        return self.predicted_gib / self.measured_gib - 1 if self.measured_gib else None


def predict(row: Row, constants: Constants | None = None) -> Predicted:
    """Raises Unpredictable, with the reason."""
    settled = settle(row)
    step = measured_step_s(row, settled)
    cluster = cluster_for(settled)
    strategy = strategy_text(settled)
    try:
        simulation = _simulate(settled, strategy, cluster, constants or default_constants())
    except MeshwrightError as error:
        raise Unpredictable(str(error).replace("\n", " ")) from error
    except (RuntimeError, ArithmeticError, ValueError, MemoryError) as error:
        # Of sizes that PyTorch can't lay out: one such row is no reason to lose the others.
        text = str(error).strip().split("\n")[0]
        raise Unpredictable(f"{type(error).__name__} with dims of this size: {text}") from error
    return Predicted(
        row, settled, strategy, step[0] if step else None, step[1] if step else None,
        row.peak_mem_gib, simulation,
    )  # fmt: skip


def _simulate(
    settled: Settled, strategy: str, cluster: Cluster, constants: Constants
) -> Simulation:
    return simulate(
        _lowered(settled, strategy),
        cluster,
        microbatches=settled.microbatches,
        optimizer=OPTIMIZER,
        pipeline=pipeline_of(settled),
        recompute=settled.recompute,
        executor=executor_for(settled),
        stands_for=stands_for(settled.dims),
        memory_curve=False,
        costs=table_for(cluster, constants, kernels_for(settled, cluster)),
    )


_programs: OrderedDict[object, LoweredProgram] = OrderedDict()


def _lowered(settled: Settled, strategy: str) -> LoweredProgram:
    """The planned program of one device, remembered: rows often differ in microbatches alone."""
    key = (
        settled.dims, settled.dp, settled.shards, settled.tp, settled.cp, settled.pp,
        settled.sequence, settled.zero, settled.micro_batch,
    )  # fmt: skip
    if key in _programs:
        _programs.move_to_end(key)
        return _programs[key]
    wanted = parse_strategy(strategy)
    model = model_for(settled.dims, settled.micro_batch * settled.dp)
    analysis = model.microbatch(1)[1]
    chosen = candidate(
        analysis, mesh_for(wanted, settled.n_gpus), zero=wanted.zero or 0, microbatches=1,
        sequence=wanted.sequence, attention=wanted.attention, kept=_stored(analysis, settled),
    )  # fmt: skip
    plan = assign(analysis, chosen.mesh, chosen.decisions, chosen.parameters, True)
    found = lower(analysis, plan, chosen.mesh.coordinate(0))
    _programs[key] = found
    while len(_programs) > _PROGRAMS_KEPT:
        _programs.popitem(last=False)
    return found


def _stored(analysis: Analysis, settled: Settled) -> dict[str, tuple[Residency, tuple[str, ...]]]:
    """Beside context parallelism parameters are stored over its axis too, as torchtitan
    (`dp_shard_cp`) and Megatron-Core (`get_data_parallel_group(with_context_parallel=True)`)
    have them."""
    if settled.cp == 1 or not settled.zero:
        return {}
    axes = ("data", "context") if settled.shards > 1 else ("context",)
    paths = (item.path for item in analysis.program.inputs_of("parameter"))
    return dict.fromkeys(paths, (RESIDENCY[settled.zero], axes))
