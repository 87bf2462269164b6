"""A lowered program: what one device runs for one step under a plan. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meshwright.cluster.mesh import Mesh
from meshwright.layout.types import Layout
from meshwright.program.types import Op, Value

# Sources of collectives that belong to no module.
GATHERING = "parameter gathering"
REDUCTION = "gradient reduction"


@dataclass(frozen=True, slots=True)
class Section:
    """A straight run of ops: the values it takes, the ops, the values it gives."""

    inputs: tuple[str, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """One parameter (or buffer) as this device stores it between steps.

    path: its fully qualified name. shape, dtype: of the whole tensor.
    storage: layout between steps. value: name of the local stored value.
    gradient: name of the value that the `reduce` section outputs for it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    storage: Layout
    value: str
    trainable: bool
    gradient: str | None


@dataclass(frozen=True)
class LoweredProgram:
    """One device's step.

        once a step:        gather      stored parameters -> gathered ones (residency `step`)
        for each microbatch: forward    parameters, batch -> loss, buffers, saved values
                             backward   saved values, tangent -> gradients of this microbatch
        once a step:        reduce      accumulated gradients -> gradients as they are stored
                            clip        reduced gradients -> their global norm (when clipping)
        then the optimizer steps on the stored parameters.

    `values` are local: shapes as this device holds them. `saved` are the
    forward's values that the backward takes. `accumulated` maps a parameter's
    path to the backward output that is summed over microbatches.
    `layouts` tells for every value how it lies on the mesh.

    Each value has collectives of its own in here; what runs is `layout.merge.merge` of it,
    in buckets of `bucket_bytes` (0 merges none). `unshared` names the parameters whose
    gradient nothing else uses before it is reduced, on any device, so that its reduction
    may wait for others. `uniform`: all devices run the same ops, none that a cut leaves
    nothing or whose sizes are only known when the step runs.
    """

    mesh: Mesh
    values: Mapping[str, Value]
    layouts: Mapping[str, Layout]
    parameters: tuple[StoredParameter, ...]
    buffers: tuple[StoredParameter, ...]
    batch: Mapping[str, str]  # batch path -> local value name
    constants: Mapping[str, str]  # constant path -> local value name
    tangent: str | None
    loss: str
    buffer_updates: Mapping[str, str]  # buffer path -> value name
    saved: tuple[str, ...]
    accumulated: Mapping[str, str]
    gather: Section
    forward: Section
    backward: Section
    reduce: Section
    clip: Section
    norm: str | None
    bucket_bytes: int = 0
    unshared: frozenset[str] = frozenset()
    uniform: bool = True
