"""The Plan: a versioned JSON file, keyed by names, that says how a step is run.

Pure data. `mesh`, `decisions`, `parameters`, `microbatches`, `pipeline`,
`recompute` and `clip_norm` decide everything; `predicted`, `origins` and
`alternatives` are what the search saw when it chose.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 1

Residency = Literal["always", "step", "microbatch", "use"]
Schedule = Literal["gpipe", "1f1b", "interleaved", "zb-h1"]
Recompute = Literal["none", "selective", "full"]
"""What the forward does not keep for the backward: nothing, what lies inside of attention (scores
and weights, where no fused kernel does without), or all but the inputs of repeated modules."""

BUCKET_BYTES = 25 << 20
"""Tensors of gradients and parameters share a collective up to so many bytes, as in PyTorch's
DistributedDataParallel; see docs/decisions/0009-buckets-and-overlap.md."""

STAGE = "stage"  # the mesh axis of a pipeline; no value is cut over it


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Count = Annotated[int, Field(ge=0, le=2**62)]
Positive = Annotated[int, Field(ge=1, le=2**31)]


class Decision(Record):
    """Shard the group that holds `dim` of `value` over `axis`.

    `value` is a parameter's or buffer's name, a batch path, or a value's name
    in the Program. The dim is viewed as [outer, extent, minor] and `extent` is
    what is divided; `extent` None means the whole dim, whatever its size, so
    that a plan holds for other batch sizes and sequence lengths.

    beside: cut only what is computed from values that earlier decisions of this
    axis cut, and leave them the ops that they cut.
    owner: the device of the axis that holds all of the dim, the others none of it.
    attention: where the cut is of a sequence, how attention gets its keys and
    values from other devices; None gathers them.
    fixed: what was asked for of `value` itself, before all groups: `cut`, that it lies so;
    `whole`, that it is not cut over the axis, and dim says nothing.
    alone: cut a parameter, its gradient and the ops that use it or make its gradient, and no
    other member of the group.
    only: `value` lies so, an input or what a lowering is asked to make, and no group follows.
    op: one op alone, by a value that it makes, is cut along `dim` of `value`, which it uses or
    makes; `fixed` whole: it is not cut over the axis, and dim says nothing. Ops that no
    decision speaks of follow what they use.
    """

    axis: str
    value: str
    dim: int
    outer: int = 1
    extent: int | None = None
    owner: Annotated[int, Field(ge=0)] | None = None
    beside: bool = False
    attention: Literal["gather", "ring"] | None = None
    fixed: Literal["cut", "whole"] | None = None
    alone: bool = False
    only: bool = False
    op: str | None = None
    why: str = ""

    @property
    def subject(self) -> str:
        """What it speaks of: a value, or an op by what that makes."""
        return self.op or self.value


class ParameterCut(Record):
    """One cut of a parameter as it is stored; see `Decision` for outer, extent and owner."""

    axis: str
    dim: int
    outer: int = 1
    extent: int
    owner: Annotated[int, Field(ge=0)] | None = None


RandomNumbers = Literal["exact", "fast"]
"""How random ops draw: by global position, the same under every plan, or by the device's own
generator, quicker and different under each."""


class ParameterPlan(Record):
    """One parameter: how long its gathered form lives, and which axes its storage is cut over.

    `cuts` says for a reader how it lies between steps; it follows from the
    decisions and `storage_axes`, and is worked out anew wherever the plan is used.
    """

    residency: Residency = "always"
    storage_axes: tuple[str, ...] = ()
    storage_dim: int | None = None
    cuts: tuple[ParameterCut, ...] = ()


class Collective(Record):
    """Collectives of one kind over one axis, per device and step.

    `bytes` is the sum of payloads: the whole tensor for all_reduce, the
    gathered tensor for all_gather, the tensor before it for reduce_scatter,
    the local tensor for all_to_all.
    """

    kind: str
    axis: str
    count: Count
    bytes: Count


class CollectiveOrigin(Collective):
    """Collectives of one part of the step that one module (or block, numbers as *) needs.

    `part` is `gather` or `reduce` or `clip` (once a step), `forward` or `backward`. `seconds`
    is what they take alone, hidden behind compute or not; None in plans that don't say it.
    """

    part: str
    module: str
    seconds: Annotated[float, Field(ge=0)] | None = None


class Pipeline(Record):
    """The model cut into stages by modules, and the order in which they work.

    virtual: pieces of the model that each stage holds; stage s has pieces s,
    s + stages, and so on. cuts: for each piece but the first, the module at whose
    first forward op it begins, in the model's order; without any, pieces are
    chosen so that the slowest is as fast as it can be.
    """

    stages: Positive
    virtual: Positive = 1
    schedule: Schedule = "1f1b"
    cuts: tuple[str, ...] = ()

    @property
    def pieces(self) -> int:
        return self.stages * self.virtual

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.cuts and len(self.cuts) != self.pieces - 1:
            raise ValueError(
                f"{len(self.cuts)} cuts make {len(self.cuts) + 1} pieces, but {self.stages} stages "
                f"of {self.virtual} hold {self.pieces}"
            )
        if (self.schedule == "interleaved") != (self.virtual > 1):
            raise ValueError(
                f"the schedule {self.schedule} with {self.virtual} pieces a stage: interleaved "
                "takes 2 or more, the others 1"
            )
        return self


class Prediction(Record):
    """step_time_interval_s: within which the time lies if the machine's speed wanders as it did
    while it was measured; None where it was not. collectives: as they run. before_merging: what
    they would be if each tensor had one of its own."""

    step_time_s: Annotated[float, Field(ge=0)]
    step_time_interval_s: tuple[float, float] | None = None
    peak_memory_bytes: Count
    tokens_per_s: float | None = None
    mfu: float | None = None
    collectives: tuple[Collective, ...] = ()
    before_merging: tuple[Collective, ...] = ()
    compute_s: float = 0.0
    communication_s: float = 0.0
    memory: dict[str, int] = Field(default_factory=dict)  # what the peak is made of


class Alternative(Prediction):
    strategy: str
    mesh: dict[str, int]
    microbatches: int = 1
    fits: bool = True
    note: str = ""


class Choice(Record):
    """One thing that the search decided, with what it would cost to decide it otherwise.

    subject: what was decided, as in `mesh`, `residency of blocks.*.mlp.*`, `cut of head.weight`.
    second: the next best, with the rest of the plan chosen for it; slower_s: by how much a step
    takes longer with it, None where it does not fit; more_bytes: its further peak memory.
    """

    subject: str
    chosen: str
    second: str | None = None
    slower_s: float | None = None
    more_bytes: int | None = None
    why: str = ""


Stopped = Literal["asked", "proved", "exhausted", "settled", "effort", "budget"]
"""Why a search ended: a named strategy was asked for, nothing better can be left, every candidate
that analysis left was costed, many candidates in a row were no better, or its time was over."""


class Plan(Record):
    """A complete plan; `meshwright.plan.file` reads and writes it."""

    format_version: int = FORMAT_VERSION
    meshwright_version: str
    model: str
    program: str  # fingerprint of the Program that it was made for
    parameters_fingerprint: str  # of parameter names and shapes alone
    cluster: str
    strategy: str
    mesh: dict[str, Positive]  # axis -> size, outermost first
    microbatches: Positive = 1
    global_batch: Positive
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    optimizer: str = "adamw"
    bucket_bytes: Count = BUCKET_BYTES  # collectives of tensors are merged up to it; 0 merges none
    rng: RandomNumbers = "exact"
    decisions: tuple[Decision, ...] = ()
    parameters: dict[str, ParameterPlan] = Field(default_factory=dict)
    pipeline: Pipeline | None = None
    recompute: Recompute = "none"
    predicted: Prediction
    origins: tuple[CollectiveOrigin, ...] = ()
    remarks: tuple[str, ...] = ()  # ops and modules that run by other rules than the known ones
    why: str = ""
    alternatives: tuple[Alternative, ...] = ()
    choices: tuple[Choice, ...] = ()
    constraints: tuple[str, ...] = ()  # as the user wrote them
    lower_bound_s: float | None = None  # no plan of this model on this cluster is faster
    gap: float | None = None  # (predicted step time - lower bound) / lower bound
    stopped: Stopped | None = None
    seed: int = 0
    evaluated: Count = 0  # candidates that were lowered and simulated
    capture_s: float = 0.0
    search_s: float = 0.0
    lower_s: float = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.microbatches > self.global_batch:
            raise ValueError(
                f"{self.microbatches} microbatches of a global batch of {self.global_batch}"
            )
        stages = self.pipeline.stages if self.pipeline else 1
        if self.mesh.get(STAGE, 1) != stages:
            raise ValueError(
                f"a pipeline of {stages} stages on a mesh with {self.mesh.get(STAGE, 1)} of them"
            )
        if STAGE in self.mesh and next(iter(self.mesh)) != STAGE:
            raise ValueError("the axis 'stage' is not the outermost of the mesh")
        cut_over = {item.axis for item in self.decisions}
        cut_over.update(axis for item in self.parameters.values() for axis in item.storage_axes)
        if STAGE in self.mesh and STAGE in cut_over:
            raise ValueError("a value is cut over the axis 'stage', which holds parts of the model")
        return self

    def __str__(self) -> str:
        from meshwright.plan.text import format_plan

        return format_plan(self)
