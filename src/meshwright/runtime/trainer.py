"""The step loop: microbatches, accumulation, reduction, clipping, optimizer.

Forward and backward of a microbatch are entries of the loop, with the saved
values between them explicit, so that schedules, recomputation and swapping are
further entries and not another loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meshwright.errors import UsageError
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.overlap import TOTAL
from meshwright.runtime.comm import Communicator
from meshwright.runtime.executor import Executable
from meshwright.runtime.local_ops import RandomKey

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

# Optimizers whose update of an element depends on that element alone, so that a local
# shard is updated as the whole tensor would be.
ELEMENTWISE = frozenset(
    {"SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta", "ASGD"}
)


@dataclass(frozen=True)
class Microbatch:
    """One microbatch as this device sees it: its program, its batch leaves, its weight.

    `batch` maps batch paths to local tensors. `weight` is the microbatch's
    share of the global batch: the gradient of the step's loss by its loss.
    """

    executable: Executable
    batch: Mapping[str, Tensor]
    weight: float


@dataclass(frozen=True)
class StepResult:
    loss: float
    gradient_norm: float | None


class Trainer:
    """Holds the stored parameters, buffers and optimizer state of one device, and steps them."""

    def __init__(
        self,
        lowered: LoweredProgram,
        tensors: Mapping[str, Tensor],
        optimizer: OptimizerFactory,
        comm: Communicator,
        key: RandomKey,
        device: torch.device,
        clip_norm: float | None = None,
    ) -> None:
        """`tensors` are the local parts of parameters and buffers by path."""
        self.comm = comm
        self.key = key
        self.device = device
        self.clip_norm = clip_norm
        self.step_number = 0
        self.parameters: dict[str, nn.Parameter] = {}
        for stored in lowered.parameters:
            self.parameters[stored.path] = nn.Parameter(
                tensors[stored.path].to(device), requires_grad=stored.trainable
            )
        self.buffers = {b.path: tensors[b.path].to(device) for b in lowered.buffers}
        self.trainable = [s.path for s in lowered.parameters if s.trainable]
        self.optimizer = optimizer([self.parameters[path] for path in self.trainable])
        kind = type(self.optimizer).__name__
        if kind not in ELEMENTWISE:
            raise UsageError(
                f"The optimizer {kind} looks at more of a tensor than one element at a time, "
                "so it can't step on shards.",
                f"Use one of {', '.join(sorted(ELEMENTWISE))}.",
            )

    def step(self, microbatches: Sequence[Microbatch]) -> StepResult:
        """One optimizer step over all microbatches of a global batch.

        The gradients of the step before are dropped here and not after it, so
        that they can be read in between.
        """
        self.drop_gradients()
        first = microbatches[0].executable
        state = self._state(first.lowered)
        gathered = first.run("gather", state)
        state.update(gathered)
        loss = torch.zeros((), device=self.device)
        self.key.step = self.step_number
        # Microbatches of one size share a program and its accumulated gradients. A smaller
        # last one has its own, whose layouts may differ, so each program reduces its own.
        totals: dict[Executable, dict[str, Tensor]] = {}
        last = len(microbatches) - 1
        for index, microbatch in enumerate(microbatches):
            self.key.microbatch = index
            executable = microbatch.executable
            if index == last and executable.overlaps:
                for name in gathered:
                    del state[name]
                own = totals.pop(executable, {})
                more, reduced = self._end(microbatch, state, gathered, own)
                loss += more
                self._add_gradients(executable.lowered, reduced)
                break
            loss += self._forward_backward(microbatch, state, totals.setdefault(executable, {}))
        for name in gathered:
            state.pop(name, None)
        del gathered
        for executable in list(totals):
            reduced = executable.run("reduce", state, totals.pop(executable))
            self._add_gradients(executable.lowered, reduced)
        norm = self._clip(first)
        self.optimizer.step()
        self.step_number += 1
        return StepResult(float(loss), norm)

    def evaluate(self, microbatches: Sequence[Microbatch]) -> float:
        """The loss alone; parameters, buffers and step number stay as they are."""
        state = self._state(microbatches[0].executable.lowered)
        state.update(microbatches[0].executable.run("gather", state))
        loss = 0.0
        self.key.step = self.step_number
        for index, microbatch in enumerate(microbatches):
            self.key.microbatch = index
            lowered = microbatch.executable.lowered
            batch = {lowered.batch[path]: x for path, x in microbatch.batch.items()}
            outputs = microbatch.executable.run("forward", {**state, **batch})
            self.comm.settle()
            loss += float(outputs[lowered.loss]) * microbatch.weight
        return loss

    def _state(self, lowered: LoweredProgram) -> dict[str, Tensor]:
        state = {s.value: self.parameters[s.path].data for s in lowered.parameters}
        state.update({b.value: self.buffers[b.path] for b in lowered.buffers})
        return state

    @torch.no_grad()
    def _forward_backward(
        self, microbatch: Microbatch, state: dict[str, Tensor], totals: dict[str, Tensor]
    ) -> Tensor:
        lowered = microbatch.executable.lowered
        loss, kept, saved = self._forward(microbatch, state)
        gradients = microbatch.executable.run("backward", kept, saved)
        self.comm.settle()
        for buffer in lowered.buffers:
            state[buffer.value] = self.buffers[buffer.path]
        held = {id(value) for value in kept.values()}
        for name in dict.fromkeys(lowered.accumulated.values()):
            gradient = gradients.pop(name)
            if name in totals:
                totals[name] += gradient
            else:
                totals[name] = gradient.clone() if id(gradient) in held else gradient
        return loss

    def _forward(
        self, microbatch: Microbatch, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The microbatch's share of the loss, what the backward may read, what it takes."""
        executable = microbatch.executable
        lowered = executable.lowered
        inputs = {lowered.batch[path]: x for path, x in microbatch.batch.items()}
        kept = {**state, **inputs}
        outputs = executable.run("forward", kept)
        loss = outputs[lowered.loss] * microbatch.weight
        for path, name in lowered.buffer_updates.items():
            self.buffers[path] = outputs[name]
        saved = {name: outputs[name] for name in lowered.saved}
        if lowered.tangent is not None:
            kept[lowered.tangent] = torch.tensor(
                microbatch.weight, dtype=loss.dtype, device=self.device
            )
        return loss, kept, saved

    @torch.no_grad()
    def _end(
        self,
        microbatch: Microbatch,
        state: Mapping[str, Tensor],
        gathered: dict[str, Tensor],
        totals: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The last microbatch, its gradients reduced beside its backward: loss and gradients.

        `gathered` and `totals` are gone after their last use.
        """
        executable = microbatch.executable
        loss, kept, taken = self._forward(microbatch, {**state, **gathered})
        held = {id(value) for value in kept.values()}
        for name in list(gathered):
            kept.pop(name)
            taken[name] = gathered.pop(name)
        name = executable.end(adds=bool(totals))
        while totals:
            path, total = totals.popitem()
            taken[path + TOTAL] = total
            del total
        reduced = executable.run(name, kept, taken)
        self.comm.settle()
        names = dict(zip(reduced, executable.lowered.reduce.outputs, strict=True))
        return loss, {
            names[key]: value.clone() if id(value) in held else value
            for key, value in reduced.items()
        }

    @torch.no_grad()
    def _add_gradients(self, lowered: LoweredProgram, reduced: dict[str, Tensor]) -> None:
        """Give the reduced gradients to their parameters, or add to what they have."""
        given: set[str] = set()
        for stored in lowered.parameters:
            if stored.gradient is None:
                continue
            parameter, gradient = self.parameters[stored.path], reduced[stored.gradient]
            if parameter.grad is not None:
                parameter.grad += gradient
            elif stored.gradient in given:
                parameter.grad = gradient.clone()
            else:
                parameter.grad = gradient
            given.add(stored.gradient)

    @torch.no_grad()
    def _clip(self, executable: Executable) -> float | None:
        lowered = executable.lowered
        if self.clip_norm is None or lowered.norm is None:
            return None
        gradients = {
            stored.gradient: self.parameters[stored.path].grad
            for stored in lowered.parameters
            if stored.gradient is not None
        }
        norm = executable.run("clip", {k: g for k, g in gradients.items() if g is not None})[
            lowered.norm
        ]
        scale = torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0)
        for path in self.trainable:
            gradient = self.parameters[path].grad
            if gradient is not None:
                gradient.mul_(scale)
        return float(norm)

    def drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def gradients(self) -> dict[str, Tensor | None]:
        """Gradients of the last step, local parts by path."""
        return {path: self.parameters[path].grad for path in self.trainable}
