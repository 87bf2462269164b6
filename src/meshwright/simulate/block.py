"""What one segment of a lowered program costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from meshwright.program.types import Op

Bytes = tuple[int, int, int]  # activations, gathered parameters, gradients


class Task(NamedTuple):
    """role: `compute`; `sync`, a collective that what follows needs; `gather` of a
    parameter; `arrive`, the wait for one; `reduce` of a gradient. axis, kind, nbytes and itemsize,
    of one element, are of a collective; tensors: how many it is for. key: of a gather that is
    asked for where it stands, and of the wait for it; alike for equal blocks. after: the key of
    the gather before it that it gathers further."""

    role: str
    seconds: float
    axis: str = ""
    kind: str = ""
    nbytes: int = 0
    itemsize: int = 0
    tensors: int = 1
    key: str = ""
    after: str = ""


class Allocation(NamedTuple):
    """Bytes that an op of `reduce` makes, frees, and needs while it runs; its task, where it is
    a collective."""

    made: int
    freed: int
    scratch: int
    task: Task | None


@dataclass(slots=True)
class Work:
    """Tasks of one phase of a segment, in order; neighbours that compute are one task.

    host_s: in which the host issues them, at the same time.
    """

    tasks: list[Task] = field(default_factory=list)
    compute_s: float = 0.0
    communication_s: float = 0.0
    host_s: float = 0.0
    flops: float = 0.0

    def add(self, task: Task, flops: float = 0.0, host_s: float = 0.0) -> None:
        if task.role == "compute":
            self.compute_s += task.seconds
            self.host_s += host_s
            self.flops += flops
            if self.tasks and self.tasks[-1].role == "compute":
                self.tasks[-1] = Task("compute", self.tasks[-1].seconds + task.seconds)
                return
        else:
            self.communication_s += task.seconds
        self.tasks.append(task)


@dataclass(slots=True)
class Footprint:
    """peak: most memory above that at the start. net: memory at the end above the start."""

    peak: Bytes = (0, 0, 0)
    peak_op: Op | None = None
    net: Bytes = (0, 0, 0)


@dataclass(slots=True)
class Block:
    """One segment. `inputs` of the backward lead to other segments' gradients, `weights`
    to parameters' alone. saved: what its forward makes for its own backward alone.
    hidden_s: of the collectives of `inputs` what can run beside `weights`.
    core: the tasks of attention from scores to their weighted sum, core_saved what of
    `saved` lies in there. regathered: what of `saved` others hold too, and could be
    gathered again. accumulated: bytes of gradients that are added up over
    microbatches, and of one element."""

    name: str
    repeated: bool
    forward: Work = field(default_factory=Work)
    inputs: Work = field(default_factory=Work)
    weights: Work = field(default_factory=Work)
    core: Work = field(default_factory=Work)
    hidden_s: float = 0.0
    forward_memory: Footprint = field(default_factory=Footprint)
    backward_memory: Footprint = field(default_factory=Footprint)
    saved: Bytes = (0, 0, 0)
    core_saved: int = 0
    regathered: int = 0
    gathered_bytes: int = 0  # of one parameter after another, all that its forward gathers
    beside_bytes: int = 0  # most that a gather beside compute works with
    accumulated: dict[str, tuple[int, int]] = field(default_factory=dict)
    gather: Work = field(default_factory=Work)  # once a step
    gather_bytes: int = 0
    reduce: Work = field(default_factory=Work)  # once a step
    reduce_allocates: list[Allocation] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)  # of the lowered program's
    buffer_bytes: int = 0
    batch: set[str] = field(default_factory=set)
