"""A planned training job in one process: steps, state, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meshwright.as_is import OpaqueCall
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.types import REPLICATED, Layout
from meshwright.plan.types import Collective, Plan
from meshwright.runtime.comm import Communicator
from meshwright.runtime.executor import Executable
from meshwright.runtime.local_ops import RandomKey
from meshwright.runtime.microbatch import batch_size, microbatches
from meshwright.runtime.place import local_part, relay
from meshwright.runtime.trainer import Microbatch, OptimizerFactory, Trainer

Keep = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Compiled:
    """The local program for microbatches of one shape."""

    lowered: LoweredProgram
    constants: Mapping[str, Tensor]
    tokens: int
    opaque: Mapping[str, OpaqueCall] = field(default_factory=dict)


@dataclass(frozen=True)
class Metrics:
    """What one step gave. `seconds` is this process's time of the whole step."""

    step: int
    loss: float
    gradient_norm: float | None
    seconds: float
    tokens_per_s: float


class Job:
    """Trains by a plan. All processes of the job call the same methods in the same order."""

    def __init__(
        self,
        *,
        plan: Plan,
        flatten: Callable[[Any], Mapping[str, Tensor]],
        compile_for: Callable[[Any], Compiled],
        example: Any,
        materialize: Callable[[int, Keep], Mapping[str, Tensor]],
        optimizer: OptimizerFactory,
        communicator: Communicator,
        seed: int,
        device: torch.device,
        overlap: bool = False,
    ) -> None:
        """overlap: gather parameters and reduce gradients beside compute."""
        self.plan = plan
        self._overlap = overlap
        if overlap:
            communicator.overlap()
        self.comm = communicator
        self.device = device
        self._flatten = flatten
        self._compile_for = compile_for
        self._executables: dict[Hashable, tuple[Executable, Compiled]] = {}
        self._key = RandomKey(seed, fast=plan.rng == "fast", device=device)
        first, _ = next(microbatches(example, self._size(example), plan.microbatches))
        self.lowered = self._executable(first)[1].lowered
        layouts = {s.path: s.storage for s in (*self.lowered.parameters, *self.lowered.buffers)}
        coordinate = self.mesh.coordinate(communicator.rank)

        def keep(path: str, whole: Tensor) -> Tensor:
            layout = layouts.get(path, REPLICATED)
            return local_part(whole, layout, self.mesh, coordinate).clone()

        tensors = materialize(seed, keep)
        # Buffers that the step never reads are part of the model all the same.
        self._idle = {path: tensor for path, tensor in tensors.items() if path not in layouts}
        self.trainer = Trainer(
            self.lowered, tensors, optimizer, communicator, self._key, device, plan.clip_norm
        )

    @property
    def mesh(self) -> Any:
        return self.comm.mesh

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of this process's shards, for learning-rate schedules."""
        return self.trainer.optimizer

    @property
    def step_number(self) -> int:
        """Steps done."""
        return self.trainer.step_number

    def step(self, batch: Any) -> Metrics:
        """One optimizer step on a global batch, which every process passes whole.

        The batch may be smaller than the planned one, as the last of an epoch.
        """
        started = time.perf_counter()
        parts, tokens = self._parts(batch)
        result = self.trainer.step(parts)
        seconds = time.perf_counter() - started
        return Metrics(
            self.trainer.step_number, result.loss, result.gradient_norm, seconds, tokens / seconds
        )

    def evaluate(self, batch: Any) -> float:
        """The loss of a global batch at the present parameters; nothing changes."""
        return self.trainer.evaluate(self._parts(batch)[0])

    def executed(self) -> tuple[Collective, ...]:
        """Collectives that ran in this process since the last `reset_counts`."""
        return self.comm.log.summary()

    def reset_counts(self) -> None:
        self.comm.log.reset()

    def parameter(self, path: str) -> Tensor:
        """A parameter as one device would hold it, on every process."""
        return self._whole(path, self.trainer.parameters[path].detach())

    def gradient(self, path: str) -> Tensor | None:
        """A parameter's gradient of the last step, clipped where the plan clips."""
        gradient = self.trainer.parameters[path].grad
        return None if gradient is None else self._whole(path, gradient)

    def buffer(self, path: str) -> Tensor:
        return self._whole(path, self.trainer.buffers[path])

    def state_dict(self) -> dict[str, Tensor]:
        """All parameters and buffers whole, by name, as `model.load_state_dict` takes them."""
        found = {path: self.parameter(path) for path in self.trainer.parameters}
        found |= {path: self.buffer(path) for path in self.trainer.buffers}
        return found | self._idle

    def text(self, section: str) -> str:
        """The Python that runs for `gather`, `forward`, `backward`, `reduce` or `clip`."""
        return next(iter(self._executables.values()))[0].text[section]

    def save(self, path: str | Path) -> None:
        """Write a checkpoint that any plan of this model can load."""
        from meshwright.runtime.persist import save_job

        save_job(self, Path(path))

    def load(self, path: str | Path) -> None:
        """Take up a checkpoint, whatever plan wrote it."""
        from meshwright.runtime.persist import load_job

        load_job(self, Path(path))

    def storage(self, path: str) -> tuple[tuple[int, ...], Layout]:
        """Whole shape and layout between steps of a parameter or buffer."""
        for stored in (*self.lowered.parameters, *self.lowered.buffers):
            if stored.path == path:
                return stored.shape, stored.storage
        raise KeyError(path)

    def _whole(self, path: str, local: Tensor) -> Tensor:
        shape, layout = self.storage(path)
        return relay(local, shape, layout, REPLICATED, self.comm)

    def _size(self, batch: Any) -> int:
        return batch_size(self._flatten(batch))

    def _parts(self, batch: Any) -> tuple[list[Microbatch], int]:
        whole = self._size(batch)
        coordinate = self.mesh.coordinate(self.comm.rank)
        parts, tokens = [], 0
        for part, size in microbatches(batch, whole, self.plan.microbatches):
            executable, compiled = self._executable(part)
            lowered = compiled.lowered
            local = {
                path: local_part(
                    leaf, lowered.layouts[lowered.batch[path]], self.mesh, coordinate
                ).to(self.device)
                for path, leaf in self._flatten(part).items()
                if lowered.batch.get(path) in lowered.layouts
            }
            parts.append(Microbatch(executable, local, size / whole))
            tokens += compiled.tokens
        return parts, tokens

    def _executable(self, batch: Any) -> tuple[Executable, Compiled]:
        """The compiled program for microbatches shaped like this one; eight shapes are kept."""
        leaves = self._flatten(batch)
        key = tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves.values())
        found = self._executables.get(key)
        if found is None:
            compiled = self._compile_for(batch)
            constants = {
                compiled.lowered.constants[path]: tensor.to(self.device)
                for path, tensor in compiled.constants.items()
                if path in compiled.lowered.constants
            }
            executable = Executable(
                compiled.lowered, constants, self.comm, self._key, self.device, compiled.opaque
            )
            if self._overlap:
                executable.overlap()
            found = self._executables[key] = (executable, compiled)
            while len(self._executables) > 8:
                self._executables.pop(next(k for k in self._executables if k != key))
        return found
