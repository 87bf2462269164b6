"""Lays candidates out: lowered, simulated, and what is predicted of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from meshwright.cluster.types import Cluster
from meshwright.cost.flops import op_flops
from meshwright.layout.assignment import assign
from meshwright.layout.groups import Analysis
from meshwright.layout.lowered import LoweredProgram
from meshwright.lower.lower import lower
from meshwright.model import Model
from meshwright.plan.types import Pipeline, Prediction
from meshwright.program.rolled import Irregular
from meshwright.program.types import Program
from meshwright.search.types import Candidate, Costs
from meshwright.simulate.step import simulate
from meshwright.simulate.types import Simulation

__all__ = ["Laid", "Stepping", "predict", "tokens_of"]

# What a step waits for by how parameters are stored; see `simulate.types.StageResult.stalls`.
_OF_STORAGE = ("gathers", "gradient reduction", "contention")


@dataclass(frozen=True)
class Laid:
    """A candidate laid out on all blocks of the model."""

    candidate: Candidate
    analysis: Analysis
    lowered: LoweredProgram
    prediction: Prediction
    pipeline: Pipeline | None


@dataclass
class Stepping:
    """Lowers and simulates candidates."""

    model: Model
    cluster: Cluster
    clip: bool
    optimizer: str
    bucket_bytes: int
    _last: tuple[Candidate, Laid] | None = field(init=False, default=None)
    _kept_s: float = field(init=False, default=0.0)  # of what was simulated last

    def predict(self, candidate: Candidate, few: bool) -> Prediction:
        """few: the candidate is of few blocks that stand for all, where the model has such."""
        outline = self.model.outline(candidate.microbatches) if few else None
        if outline is None or not (outline.shortened or outline.derived):
            laid = self.whole(candidate, few)
            assert laid is not None
            return laid.prediction
        lowered = self.lowered(outline.few, candidate)
        result = self._simulate(lowered, candidate, outline.stands_for)
        program, count = outline.few.program, candidate.microbatches
        return predict(result, program, count, self.cluster, outline.flops)

    def costs(self, candidate: Candidate, few: bool) -> Costs:
        """As `predict`, with what of it does not depend on how parameters are stored."""
        said = self.predict(candidate, few)
        return Costs(said, self._kept_s)

    def simulated(self, candidate: Candidate, few: bool) -> Simulation:
        outline = self.model.outline(candidate.microbatches) if few else None
        if outline is None:
            return self._simulate(
                self.lowered(self.model.whole(candidate.microbatches), candidate), candidate
            )
        return self._simulate(self.lowered(outline.few, candidate), candidate, outline.stands_for)

    def whole(self, candidate: Candidate, few: bool) -> Laid | None:
        """The candidate on all blocks of the model; few: it is one of few that stand for all.

        None where these turn out not to.
        """
        if self._last is not None and self._last[0] is candidate:
            return self._last[1]
        count, given = candidate.microbatches, candidate
        if not few:
            analysis = self.model.whole(count)
        else:
            try:
                outline, analysis = self.model.planned(count)
                candidate = outline.expand(candidate)
            except Irregular as error:
                self.model.look_again(str(error))
                return None
        lowered = self.lowered(analysis, candidate)
        result = self._simulate(lowered, candidate)
        prediction = predict(result, analysis.program, count, self.cluster)
        made = Laid(candidate, analysis, lowered, prediction, result.pipeline)
        self._last = given, made
        return made

    def lowered(self, analysis: Analysis, candidate: Candidate) -> LoweredProgram:
        mesh = candidate.mesh
        assignment = assign(analysis, mesh, candidate.decisions, candidate.parameters, self.clip)
        return lower(analysis, assignment, mesh.coordinate(0), self.bucket_bytes)

    def _simulate(
        self,
        lowered: LoweredProgram,
        candidate: Candidate,
        stands_for: Mapping[str, int] = MappingProxyType({}),
    ) -> Simulation:
        found = simulate(
            lowered, self.cluster, microbatches=candidate.microbatches, optimizer=self.optimizer,
            pipeline=candidate.pipeline, recompute=candidate.recompute, stands_for=stands_for,
            memory_curve=False,
        )  # fmt: skip
        stored_s = sum(found.stalls.get(cause, 0.0) for cause in _OF_STORAGE)
        # Clipping and adding up microbatches go over gradients as they are stored.
        known = found.stalls and not self.clip and candidate.microbatches == 1
        self._kept_s = found.step_time_s - found.optimizer_s - stored_s if known else 0.0
        return found


def predict(
    result: Simulation,
    program: Program,
    microbatches: int,
    cluster: Cluster,
    flops: float | None = None,
) -> Prediction:
    """What the simulation says, with rates: tokens (or examples) and model FLOPs per second.

    flops: of one microbatch, where the Program has not all blocks of the model.
    """
    if flops is None:
        flops = sum(op_flops(op, program.values) for op in program.ops)
    flops *= microbatches
    tokens = microbatches * tokens_of(program)
    return Prediction(
        step_time_s=result.step_time_s,
        step_time_interval_s=result.step_time_interval_s,
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
