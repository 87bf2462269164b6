"""What the search passes around: candidates, and what an evaluation says of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meshwright.cluster.mesh import Mesh
from meshwright.layout.groups import Analysis
from meshwright.plan.types import Decision, ParameterPlan, Pipeline, Prediction, Recompute


@dataclass(frozen=True)
class Candidate:
    """Everything that decides how a step runs, before it is costed."""

    name: str
    mesh: Mesh
    zero: int
    microbatches: int
    decisions: tuple[Decision, ...]
    parameters: dict[str, ParameterPlan]
    pipeline: Pipeline | None = None
    recompute: Recompute = "none"


@dataclass(frozen=True)
class Evaluated:
    candidate: Candidate
    prediction: Prediction
    fits: bool


@dataclass(frozen=True)
class Costs:
    """What an evaluation says of a candidate.

    kept_s: what of the step is there however the parameters are stored: all of it but the
    optimizer and what gathers, reductions of gradients and slower compute beside them take.
    0 where it is not known.
    """

    prediction: Prediction
    kept_s: float = 0.0


AnalysisFor = Callable[[int], Analysis]
"""The analysed Program of one microbatch when the global batch is cut into so many."""

Evaluate = Callable[[Candidate], Prediction]
"""Lowers and simulates a candidate."""

Cost = Callable[[Candidate], Prediction | Costs]
"""The same, with what it says of others."""
