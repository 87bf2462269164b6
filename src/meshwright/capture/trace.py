"""Captures a training step: runs it once on fakes and records what it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.capture.assemble import InputSpec, Outputs, assemble
from meshwright.capture.batch import BatchSpec, batch_spec, fake_leaf
from meshwright.capture.blueprint import Blueprint
from meshwright.capture.blueprint import blueprint as make_blueprint
from meshwright.capture.failures import MOVE_IT_OUT, explained
from meshwright.capture.location import RunningModules
from meshwright.capture.loss import run_loss
from meshwright.capture.recorder import LEAVE_RECOMPUTATION, Recorder
from meshwright.capture.state import make_functional, restored
from meshwright.capture.values import KnownValuesOnly, NeedsValues
from meshwright.errors import CaptureError
from meshwright.program.types import Program
from meshwright.task import Task
from meshwright.torch_private import (
    compiling,
    flatten_with_paths,
    from_functional,
    functionalization,
    is_functional,
    to_functional,
    unfused_recurrence,
)


@dataclass(frozen=True)
class Captured:
    """A captured step.

    constants: real tensors that the step closes over, by the path of their input.
    batch: names the batch's leaves and flattens further batches alike.
    seconds: how long the capture took.
    """

    program: Program
    constants: Mapping[str, Tensor]
    blueprint: Blueprint
    batch: BatchSpec
    seconds: float

    @property
    def batch_paths(self) -> tuple[str, ...]:
        return self.batch.paths


def capture(task: Task, *, batch: Any = None, blueprint: Blueprint | None = None) -> Captured:
    """Captures the step of one microbatch: forward, loss and gradients of what is trainable.

    batch: the microbatch to capture for, the task's example batch when None;
        only shapes and dtypes count. blueprint: the model's, when already made.

    The model runs as it is, in training or evaluation mode. Raises CaptureError
    with the module and source line when the step can't be captured.
    """
    started = time.perf_counter()
    batch = task.batch if batch is None else batch
    plan = make_blueprint(task.model) if blueprint is None else blueprint
    spec = batch_spec(batch)
    try:
        tracer = _traced(task, batch, plan, nullcontext())
    except NeedsValues as error:
        # Libraries that look at values to find a shorter way (is the mask all
        # ones?) go the long way when they are told that they can't.
        try:
            tracer = _traced(task, batch, plan, compiling())
        except CaptureError:
            raise error from error.__cause__
    program, constants = assemble(tracer.recorder.recording, tracer.inputs, tracer.outputs())
    return Captured(program, constants, plan, spec, time.perf_counter() - started)


def _traced(
    task: Task, batch: Any, blueprint: Blueprint, announced: AbstractContextManager[None]
) -> _Trace:
    tracer = _Trace(task, batch, blueprint)
    with restored(blueprint.module), announced:
        tracer.run()
    return tracer


def _user_code(run: Callable[[], Tensor]) -> Tensor:
    """Marks on the stack where the user's code begins."""
    return run()


class _Trace:
    """One run of the step on fakes, and what is known of its inputs and outputs."""

    def __init__(self, task: Task, batch: Any, blueprint: Blueprint) -> None:
        self.inputs: list[InputSpec] = []
        self._task = task
        self._batch = batch
        self._blueprint = blueprint
        self._modules = RunningModules(blueprint.module)
        self.recorder = Recorder(
            blueprint.fake_mode, self._modules, _user_code.__code__, blueprint.constant
        )
        self._loss = -1
        self._gradients: dict[str, int | None] = {}
        self._buffers: dict[str, int] = {}

    def outputs(self) -> Outputs:
        return Outputs(self._loss, self._gradients, self._buffers)

    def run(self) -> None:
        module, mode = self._blueprint.module, self._blueprint.fake_mode
        with torch.inference_mode(False), torch.enable_grad(), mode:
            tensors = make_functional(module)
            trainable, buffers = self._add_state(module, tensors)
            batch = self._fake_batch()
            with (
                self.recorder,
                functionalization(),
                self._modules.watch(),
                unfused_recurrence(),
                KnownValuesOnly(MOVE_IT_OUT),
            ):
                loss = self._explained("forward", lambda: run_loss(self._task, module, batch))
                self._buffers = self._changed(module, buffers)
            tangent = self._add_tangent(loss)
            with self.recorder, functionalization(), self._modules.watch():
                self._backward(loss, tangent, trainable)
                for path, number in self._changed(module, buffers).items():
                    if self._buffers.get(path) != number:
                        raise CaptureError(
                            f"The backward runs modules again and so updates {path} twice.",
                            LEAVE_RECOMPUTATION,
                        )

    def _explained(self, phase: str, run: Callable[[], Any]) -> Any:
        try:
            return _user_code(run)
        except Exception as error:
            raise explained(
                error, phase, self._modules, _user_code.__code__, self._batch
            ) from error

    def _add_state(
        self, module: nn.Module, tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Declares parameters and buffers; gives what is trainable, and the buffers' numbers."""
        names: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            names.setdefault(id(tensor), []).append(name)
        trainable: dict[str, Tensor] = {}
        buffers: dict[str, int] = {}
        for path, aliases in ((group[0], tuple(group[1:])) for group in names.values()):
            tensor = tensors[path]
            number = self.recorder.add_input(from_functional(tensor))
            if isinstance(tensor, nn.Parameter):
                item = InputSpec(number, "parameter", path, tensor.requires_grad, aliases)
                if tensor.requires_grad:
                    trainable[path] = tensor
            else:
                item = InputSpec(number, "buffer", path, aliases=aliases)
                buffers[path] = number
            self.inputs.append(item)
        if not trainable:
            raise CaptureError(
                "The model has no parameter that requires a gradient.",
                "Set requires_grad on the parameters to train.",
            )
        return trainable, buffers

    def _fake_batch(self) -> Any:
        leaves, tree = flatten_with_paths(self._batch, "batch")
        replaced: list[Any] = []
        for path, leaf in leaves:
            if isinstance(leaf, Tensor):
                fake = fake_leaf(leaf, self._blueprint.fake_mode)
                number = self.recorder.add_input(fake)
                self.inputs.append(InputSpec(number, "batch", path))
                leaf = to_functional(fake)
            replaced.append(leaf)
        return tree.unflatten(replaced)

    def _changed(self, module: nn.Module, before: Mapping[str, int]) -> dict[str, int]:
        """The buffers that were changed by now, by writing to them or by assignment."""
        changed: dict[str, int] = {}
        after = dict(module.named_buffers())
        for path, number in before.items():
            tensor = after.get(path)
            if tensor is None:
                continue
            now = self.recorder.number_of(from_functional(tensor))
            if now is not None and now != number:
                changed[path] = now
        return changed

    def _add_tangent(self, loss: Tensor) -> Tensor:
        number = self.recorder.number_of(from_functional(loss))
        if not is_functional(loss) or not loss.requires_grad or number is None:
            raise CaptureError(
                "The loss does not depend on any trainable parameter.",
                "Check for a detach() or no_grad() between the parameters and the loss.",
            )
        self._loss = number
        fake = fake_leaf(loss, self._blueprint.fake_mode)
        self.inputs.append(InputSpec(self.recorder.add_input(fake), "tangent", "tangent"))
        return to_functional(fake)

    def _backward(self, loss: Tensor, tangent: Tensor, trainable: Mapping[str, Tensor]) -> None:
        self.recorder.phase = "backward"
        parameters = list(trainable.values())
        gradients = self._explained(
            "backward",
            lambda: torch.autograd.grad([loss], parameters, [tangent], allow_unused=True),
        )
        for path, gradient in zip(trainable, gradients, strict=True):
            self._gradients[path] = (
                None if gradient is None else self.recorder.number_of(from_functional(gradient))
            )
