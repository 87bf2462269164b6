"""Captures a training step: runs it once on fakes and records what it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.as_is import OpaqueCall
from meshwright.capture.assemble import InputSpec, Outputs, assemble
from meshwright.capture.batch import BatchSpec, batch_spec, fake_leaf
from meshwright.capture.blueprint import Blueprint
from meshwright.capture.blueprint import blueprint as make_blueprint
from meshwright.capture.bounds import KnownComparisons
from meshwright.capture.failures import MOVE_IT_OUT, explained
from meshwright.capture.frozen import PythonState, carried, warn_of
from meshwright.capture.graph import Graph, HooksNoted, graph_of
from meshwright.capture.location import RunningModules
from meshwright.capture.loss import run_loss
from meshwright.capture.opaque import Opaques
from meshwright.capture.ragged_loops import CandidatesForLists
from meshwright.capture.recorder import Recorder
from meshwright.capture.state import Without, left_out, make_functional, restored, state_tensors
from meshwright.capture.substitutes import Substitutes, without_values
from meshwright.capture.values import KnownValuesOnly, NeedsValues
from meshwright.errors import CaptureError
from meshwright.program.types import Program
from meshwright.task import Task
from meshwright.torch_private import (
    checkpoints_may_accumulate,
    compiling,
    flatten_with_paths,
    from_functional,
    functionalization,
    is_functional,
    to_functional,
    unchecked_distributions,
    unfused_recurrence,
)


@dataclass(frozen=True)
class Captured:
    """A captured step.

    constants: real tensors that the step closes over, by the path of their input.
    batch: names the batch's leaves and flattens further batches alike.
    seconds: how long the capture took.
    opaque: calls of modules that run as they are, by the name that their ops give.
    sequences, graph: where asked for, autograd's graph and where the ops lie in it.
    """

    program: Program
    constants: Mapping[str, Tensor]
    blueprint: Blueprint
    batch: BatchSpec
    seconds: float
    opaque: Mapping[str, OpaqueCall] = field(default_factory=dict)
    sequences: tuple[int, ...] = ()
    graph: Graph | None = None

    @property
    def batch_paths(self) -> tuple[str, ...]:
        return self.batch.paths


def capture(
    task: Task,
    *,
    batch: Any = None,
    blueprint: Blueprint | None = None,
    without: Without = MappingProxyType({}),
    graph: bool = False,
    backward: bool = True,
) -> Captured:
    """Captures the step of one microbatch: forward, loss and gradients of what is trainable.

    batch: the microbatch to capture for, the task's example batch when None;
        only shapes and dtypes count. blueprint: the model's, when already made.
    without: members of module lists that are left out, by the list's name.
    graph: note autograd's graph as well. backward: False stops after the loss.

    The model runs as it is, in training or evaluation mode. Raises CaptureError
    with the module and source line when the step can't be captured.
    """
    started = time.perf_counter()
    batch = task.batch if batch is None else batch
    plan = make_blueprint(task.model) if blueprint is None else blueprint
    spec = batch_spec(batch)

    def traced(announced: AbstractContextManager[None]) -> _Trace:
        tracer = _Trace(task, batch, plan, without)
        tracer.graph = Graph(()) if graph else None
        return _traced(tracer, plan, announced, backward)

    try:
        tracer = traced(nullcontext())
    except NeedsValues as error:
        # Libraries that look at values to find a shorter way (is the mask all
        # ones?) go the long way when they are told that they can't.
        try:
            tracer = traced(compiling())
        except CaptureError:
            raise error from error.__cause__
    program, constants, sequences = assemble(
        tracer.recorder.recording, tracer.inputs, tracer.outputs(), tracer.recorder.ragged
    )
    return Captured(
        program, constants, plan, spec, time.perf_counter() - started, tracer.opaques.calls,
        sequences, tracer.graph,
    )  # fmt: skip


def _traced(
    tracer: _Trace, blueprint: Blueprint, announced: AbstractContextManager[None], backward: bool
) -> _Trace:
    state = PythonState(blueprint.module)
    try:
        with restored(blueprint.module), announced:
            tracer.run(backward)
            depends = tracer.recorder.depends
            warn_of([*state.changes(), *carried(state, depends, tracer.recorder.uses)])
    finally:
        state.restore()
        tracer.recorder.ragged.close()
    return tracer


def _user_code(run: Callable[[], Tensor]) -> Tensor:
    """Marks on the stack where the user's code begins."""
    return run()


class _Trace:
    """One run of the step on fakes, and what is known of its inputs and outputs."""

    def __init__(self, task: Task, batch: Any, blueprint: Blueprint, without: Without) -> None:
        self.inputs: list[InputSpec] = []
        self.graph: Graph | None = None
        self._without = without
        self._task = task
        self._batch = batch
        self._blueprint = blueprint
        self._modules = RunningModules(blueprint.module)
        self.recorder = Recorder(
            blueprint.fake_mode, self._modules, _user_code.__code__, blueprint.constant
        )
        self.opaques = Opaques(blueprint, self.recorder)
        self._loss = -1
        self._gradients: dict[str, int | None] = {}
        self._buffers: dict[str, int] = {}

    def outputs(self) -> Outputs:
        return Outputs(self._loss, self._gradients, self._buffers)

    def run(self, backward: bool = True) -> None:
        module, mode = self._blueprint.module, self._blueprint.fake_mode
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            mode,
            self.recorder.random.draws.marked(),
        ):
            tensors = make_functional(module)
            without_values(module)
            self.opaques.replace_forwards()
            with left_out(module, self._without):
                trainable = self._add_state(tensors, module)
                batch = self._fake_batch()
                hooks = HooksNoted()
                with self._recording(), hooks:
                    loss = self._explained("forward", lambda: run_loss(self._task, module, batch))
                tangent = self._add_tangent(loss)
                if self.graph is not None:
                    self.graph = graph_of(loss, trainable, hooks.met)
                if backward:
                    with self._recording(), checkpoints_may_accumulate():
                        self._backward(loss, tangent, trainable)
            with self._recording():
                # Checkpointed parts run again in the backward and may write once more.
                self._note_changes(module)
        del loss
        self.recorder.random.check_generators()

    @contextmanager
    def _recording(self) -> Iterator[None]:
        with (
            self.recorder,
            functionalization(),
            self._modules.watch(),
            unfused_recurrence(),
            torch.compiler.set_stance("force_eager"),
            unchecked_distributions(),
            KnownValuesOnly(MOVE_IT_OUT, self.recorder.value_of),
            KnownComparisons(),
            Substitutes(self.recorder.random.note),
            CandidatesForLists(self.recorder.ragged),
        ):
            yield

    def _explained(self, phase: str, run: Callable[[], Any]) -> Any:
        try:
            return _user_code(run)
        except Exception as error:
            raise explained(
                error, phase, self._modules, _user_code.__code__, self._batch
            ) from error

    def _add_state(self, tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
        """Declares parameters and buffers that `module` has; gives what is trainable."""
        names: dict[int, list[str]] = {}
        present = {id(tensor) for _, tensor in state_tensors(module)} if self._without else None
        for name, tensor in tensors.items():
            if present is None or id(tensor) in present:
                names.setdefault(id(tensor), []).append(name)
        trainable: dict[str, Tensor] = {}
        for path, aliases in ((group[0], tuple(group[1:])) for group in names.values()):
            tensor = tensors[path]
            number = self.recorder.add_input(from_functional(tensor))
            if isinstance(tensor, nn.Parameter):
                item = InputSpec(number, "parameter", path, tensor.requires_grad, aliases)
                if tensor.requires_grad:
                    trainable[path] = tensor
            else:
                item = InputSpec(number, "buffer", path, aliases=aliases)
            self.inputs.append(item)
        if not trainable:
            raise CaptureError(
                "The model has no parameter that requires a gradient.",
                "Set requires_grad on the parameters to train.",
            )
        return trainable

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

    def _note_changes(self, module: nn.Module) -> None:
        """Buffers that were changed by now, by writing to them or by assignment.

        A parameter that isn't trained and is written to (a moving average of
        another) is held as buffers are.
        """
        after = dict(state_tensors(module))
        for index, item in enumerate(self.inputs):
            if item.kind not in ("parameter", "buffer") or item.path not in after:
                continue
            now = self.recorder.number_of(from_functional(after[item.path]))
            if now is None or now == item.number:
                continue
            if item.trainable:
                raise CaptureError(
                    f"The step writes to the parameter {item.path}, which the optimizer "
                    f"updates as well, in {self.recorder.made_in(now)}",
                    "Compute with a changed copy of it (torch.clamp, a parametrization), or "
                    "change it between steps.",
                )
            self.inputs[index] = replace(item, kind="buffer")
            self._buffers[item.path] = now

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
        for (path, parameter), gradient in zip(trainable.items(), gradients, strict=True):
            # What a backward inside the backward (reentrant checkpoints) left there.
            more = parameter.grad
            if more is not None:
                gradient = more if gradient is None else gradient + more
            self._gradients[path] = (
                None if gradient is None else self.recorder.number_of(from_functional(gradient))
            )
