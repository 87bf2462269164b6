"""Opaque modules in a captured step: one op for the forward, one for the backward.

While the step is traced an opaque module's forward is another function, which
records `mesh.opaque` with its inputs, parameters and buffers. A trial run tells
what it returns. The op's gradient is `mesh.opaque_backward`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from meshwright.as_is import BACKWARD, FORWARD, Leaf, Mark, OpaqueCall, mark_of
from meshwright.capture.blueprint import Blueprint
from meshwright.capture.copying import _shallow
from meshwright.capture.recorder import Recorder
from meshwright.capture.trial import CUT, SUMMED, WHOLE, Trial, tried
from meshwright.errors import CaptureError
from meshwright.torch_private import FakeTensor, flatten, from_functional

_TABLES = ("_parameters", "_buffers", "_modules")
# What trials found, by the model that they are of.
_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[int, Trial]]] = WeakKeyDictionary()
_DRAWS = {False: "", True: "random"}


class Opaques:
    """The opaque modules of one trace and the calls that were met, by name."""

    def __init__(self, blueprint: Blueprint, recorder: Recorder) -> None:
        self.calls: dict[str, OpaqueCall] = {}
        self._blueprint = blueprint
        self._recorder = recorder
        self.gradient_dtypes: dict[str, list[torch.dtype]] = {}
        self._trials: dict[str, Trial] = {}
        self._buffers: dict[str, dict[str, Tensor]] = {}  # fakes, as the model was built
        self._found: dict[str, tuple[Mark, nn.Module]] = {}
        for path, module in blueprint.module.named_modules():
            mark = mark_of(module)
            if mark is not None:
                self._found[path] = mark, self._skeleton(module)
                self._buffers[path] = dict(module.named_buffers())
        if self._found:
            recorder.handlers[FORWARD] = self._record_forward
            recorder.handlers[BACKWARD] = self._record_backward

    def replace_forwards(self) -> None:
        """From here on, calls of opaque modules are recorded and not traced."""
        for path in self._found:
            module = self._blueprint.module.get_submodule(path)
            module.forward = self._forward(path, module)

    def _skeleton(self, module: nn.Module) -> nn.Module:
        """A copy with parameters and buffers that have no memory; other tensors have values."""
        memo: dict[int, Any] = {}
        for owner in module.modules():
            for parameter in owner._parameters.values():
                if parameter is not None and id(parameter) not in memo:
                    memo[id(parameter)] = nn.Parameter(
                        _blank(parameter), requires_grad=parameter.requires_grad
                    )
            for buffer in owner._buffers.values():
                if buffer is not None and id(buffer) not in memo:
                    memo[id(buffer)] = _blank(buffer)
            for key, item in owner.__dict__.items():
                if key in _TABLES:
                    continue
                for tensor in _fakes_in(item):
                    if id(tensor) not in memo:
                        memo[id(tensor)] = self._blueprint.constant(tensor)
        try:
            made: nn.Module = copy.deepcopy(module, dict(memo))
        except Exception:
            made = _shallow(module, memo, {})
        return made

    def _forward(self, path: str, module: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves, tree = flatten((args, kwargs))
            inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            numbers = iter(range(len(inputs)))
            arguments = tuple(
                Leaf(next(numbers)) if isinstance(leaf, Tensor) else leaf for leaf in leaves
            )
            state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            tracked = tuple(
                torch.is_grad_enabled() and x.requires_grad for x in (*state.values(), *inputs)
            )
            _refuse_lengths(path, inputs)
            autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            mark, skeleton = self._found[path]
            call = OpaqueCall(
                path, skeleton, tuple(state), (), arguments, tree, (), tree, tracked, (), (),
                mark.batch, autocast,
            )  # fmt: skip
            known = _KNOWN.setdefault(self._blueprint.module, {})
            trial = tried(call, mark, inputs, lambda: self._values(path, module), known)
            name = self._name(path, trial)
            outputs = _Call.apply(self, name, *state.values(), *inputs)  # type: ignore[no-untyped-call]
            return self._returned(name, module, outputs)

        return forward

    def _name(self, path: str, trial: Trial) -> str:
        """Calls are told apart by number where a module is called more than once."""
        name = path or "model"
        number = 1
        while name in self.calls:
            name = f"{path or 'model'}#{number}"
            number += 1
        self.calls[name] = trial.call
        self._trials[name] = trial
        return name

    def _returned(self, name: str, module: nn.Module, outputs: tuple[Tensor, ...]) -> Any:
        call = self.calls[name]
        count = len(call.shapes)
        for key, tensor in zip(call.updates, outputs[count:], strict=True):
            owner, _, own = key.rpartition(".")
            module.get_submodule(owner)._buffers[own] = tensor
        leaves = [outputs[x.number] if isinstance(x, Leaf) else x for x in call.results]
        return call.results_tree.unflatten(leaves)

    def _values(self, path: str, module: nn.Module) -> dict[str, Tensor]:
        """Values for a trial: real ones where they are at hand, else drawn ones for parameters."""
        generator = torch.Generator().manual_seed(10)
        made: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            scale = max(1, parameter.shape[-1] if parameter.dim() else 1) ** -0.5
            drawn = torch.randn(tuple(parameter.shape), generator=generator) * scale
            made[name] = drawn.to(parameter.dtype)
        for name, fake in self._buffers[path].items():
            try:
                made[name] = self._blueprint.constant(fake)
            except CaptureError:  # a random one, or that of a module that exists
                full = f"{path}.{name}" if path else name
                made[name] = self._held(full, fake)
        return made

    def _held(self, name: str, fake: Tensor) -> Tensor:
        """A buffer's value when the step begins; it may be known under another name first."""
        module = self._blueprint.module
        names = [full for full, _ in module.named_buffers(remove_duplicate=False)]
        target = module.get_buffer(name)
        alike = frozenset(full for full in names if module.get_buffer(full) is target)
        found = self._blueprint.materialize(0, lambda _, tensor: tensor.clone(), alike)
        if not found:
            return torch.zeros(tuple(fake.shape), dtype=fake.dtype)
        return next(iter(found.values()))

    def record_call(self, name: str, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """Run the forward's op on tensors of the trace: what autograd keeps, then the rest."""
        call, trial = self.calls[name], self._trials[name]
        count = len(call.state)
        made: list[Tensor] = FORWARD(
            list(tensors[:count]), list(tensors[count:]), name, list(trial.inputs),
            list(trial.outputs), trial.flops, trial.moved, trial.launches, _DRAWS[trial.random],
        )  # fmt: skip
        return made

    def record_gradients(
        self, name: str, gradients: tuple[Tensor | None, ...], kept: Tensor,
        tensors: tuple[Tensor, ...],
    ) -> list[Tensor]:  # fmt: skip
        """Run the backward's op: gradients of what is tracked, in order."""
        call, trial = self.calls[name], self._trials[name]
        count = len(call.state)
        kinds = [k for k, g in zip(trial.outputs, gradients, strict=True) if g is not None]
        whole = (*[WHOLE] * count, *trial.inputs)
        wanted = [
            (x, CUT if kind == CUT else SUMMED)
            for x, kind, track in zip(tensors, whole, call.tracked, strict=True) if track
        ]  # fmt: skip
        made: list[Tensor] = BACKWARD(
            list(gradients), kept, list(tensors[:count]), name,
            [*kinds, *(kind for _, kind in wanted)],
            2 * trial.flops, 2 * trial.moved, 2 * trial.launches,
            _encoded([x.shape for x, _ in wanted]),
        )  # fmt: skip
        return made

    def differentiable(self, name: str) -> tuple[bool, ...]:
        return self._trials[name].differentiable

    def _record_forward(self, args: tuple[Any, ...]) -> list[Tensor]:
        state, _, name = args[:3]
        call, trial = self.calls[name], self._trials[name]
        batch = next(
            (call_shape[0] for call_shape, kind in zip(
                [x.shape for x in args[1]], trial.inputs, strict=True) if kind == CUT), 1
        )  # fmt: skip
        made = [torch.empty((int(batch), trial.kept), dtype=torch.uint8)]
        made += [
            torch.empty(shape, dtype=dtype)
            for shape, dtype in zip(call.shapes, call.dtypes, strict=True)
        ]
        held = dict(zip(call.state, state, strict=True))
        made += [torch.empty(held[key].shape, dtype=held[key].dtype) for key in call.updates]
        self._recorder.record(FORWARD, args, {}, made)
        return made

    def _record_backward(self, args: tuple[Any, ...]) -> list[Tensor]:
        name, shapes = args[3], _decoded(args[8])
        call = self.calls[name]
        tracked = [x for x in call.tracked if x]
        assert len(shapes) == len(tracked)
        dtypes = self.gradient_dtypes[name]
        made = [
            torch.empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        self._recorder.record(BACKWARD, args, {}, made)
        return made


class _Call(torch.autograd.Function):
    """A call of an opaque module, to autograd."""

    @staticmethod
    def forward(ctx: Any, opaques: Opaques, name: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        kept, *outputs = opaques.record_call(name, tensors)
        ctx.opaques, ctx.name, ctx.kept, ctx.tensors = opaques, name, kept, tensors
        ctx.set_materialize_grads(False)
        flags = opaques.differentiable(name)
        ctx.count = len(flags)
        plain = [x for k, x in enumerate(outputs) if k >= len(flags) or not flags[k]]
        ctx.mark_non_differentiable(*plain)
        opaques.gradient_dtypes[name] = [
            x.dtype for x, track in zip(tensors, opaques.calls[name].tracked, strict=True) if track
        ]
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        given = gradients[: ctx.count]
        tracked = ctx.opaques.calls[ctx.name].tracked
        if all(gradient is None for gradient in given):
            return (None, None, *[None] * len(tracked))
        made = iter(ctx.opaques.record_gradients(ctx.name, given, ctx.kept, ctx.tensors))
        return (None, None, *(next(made) if track else None for track in tracked))


def _blank(tensor: Tensor) -> Tensor:
    return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="meta")


def _fakes_in(item: Any) -> list[Tensor]:
    """Fakes in an attribute, inside lists, tuples, sets and dicts as well."""
    if isinstance(item, FakeTensor):
        return [item]
    if isinstance(item, dict):
        return [fake for part in item.values() for fake in _fakes_in(part)]
    if isinstance(item, (list, tuple, set)):
        return [fake for part in item for fake in _fakes_in(part)]
    return []


def _refuse_lengths(path: str, inputs: list[Tensor]) -> None:
    for x in inputs:
        if not all(isinstance(n, int) for n in from_functional(x).shape):
            raise CaptureError(
                f"The opaque module {path} is given a tensor whose size depends on values.",
                "Mark the module that makes it as opaque as well, or one around both.",
            )


def _encoded(shapes: list[Any]) -> list[int]:
    return [n for shape in shapes for n in (len(shape), *map(int, shape))]


def _decoded(numbers: list[int]) -> list[tuple[int, ...]]:
    shapes, at = [], 0
    while at < len(numbers):
        rank = numbers[at]
        shapes.append(tuple(numbers[at + 1 : at + 1 + rank]))
        at += 1 + rank
    return shapes
