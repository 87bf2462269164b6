"""Runs modules as they are inside of a generated step, and their backward.

What autograd keeps of a call goes from forward to backward as an attribute of
a tensor without elements, so that it is freed with the step's saved values.
Of parameters autograd keeps nothing: it is told which one and which part, and
finds the one that is gathered when the backward runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from meshwright.as_is import Leaf, OpaqueCall, runnable
from meshwright.errors import RunError
from meshwright.torch_private import flatten, storage_key

_KEPT = "_meshwright_kept"


@dataclass
class _Kept:
    """outputs: None for one without a gradient. leaves: whose gradients are wanted."""

    outputs: list[GradientEdge | None]
    leaves: list[Tensor]
    shapes: list[torch.Size]
    state: list[Tensor] = field(default_factory=list)  # while forward or backward runs


@dataclass(frozen=True)
class _Part:
    """A part of the state, as autograd saves a parameter or a view of one."""

    number: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class OpaqueRuns:
    """The opaque modules of one executable, each with a copy of its own."""

    def __init__(self, calls: Mapping[str, OpaqueCall], device: torch.device) -> None:
        self._calls = calls
        self._device = device
        self._modules = {name: runnable(call.skeleton, device) for name, call in calls.items()}

    def functions(self) -> dict[str, Callable[..., Any]]:
        """What generated code calls, by target."""
        return {
            "mesh.opaque.default": self.forward,
            "mesh.opaque_backward.default": self.backward,
        }

    def forward(
        self, state: Sequence[Tensor], inputs: Sequence[Tensor], name: str, *counted: Any
    ) -> list[Tensor]:
        """What autograd keeps, the module's tensors, and its updated buffers."""
        call = self._calls[name]
        count = len(state)
        track = any(call.tracked)
        held = [
            x.clone() if key in call.updates else x.detach()
            for key, x in zip(call.state, state, strict=True)
        ]
        held += [x.detach() for x in inputs]
        for x, tracked in zip(held, call.tracked, strict=True):
            x.requires_grad_(tracked)
        versions = {key: x._version for key, x in zip(call.state, held, strict=False)}
        kept = _Kept([], [x for x in held if x.requires_grad], [])
        kept.shapes = [x.shape for x in kept.leaves]
        kept.state = list(state)
        named = dict(zip(call.state, held[:count], strict=True))
        before = dict(named)
        args, kwargs = call.bound(held[count:])
        with torch.set_grad_enabled(track), self._autocast(call), _parts_of_state(kept):
            output = torch.func.functional_call(self._modules[name], named, args, kwargs)
        leaves, _ = flatten(output)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._check(call, leaves, tensors, inputs)
        changed = [
            n for n, x in named.items()
            if n not in call.updates and (x is not before[n] or x._version != versions[n])
        ]  # fmt: skip
        if changed:
            raise RunError(
                f"The opaque module {call.path} changed {', '.join(changed)}, which it did not "
                "do when it was captured.",
                "Make it change its buffers in every step, or in none.",
            )
        if track:
            kept.outputs = [get_gradient_edge(x) if x.requires_grad else None for x in tensors]
        kept.state = []
        given = [x.detach() for x in (*tensors, *(named[n] for n in call.updates))]
        for x in kept.leaves:
            # Autograd holds on to its leaves: shapes are all that it still needs of them.
            x.data = x.new_empty(1).expand(x.shape) if x.numel() else x.data
        token = torch.empty(0, dtype=torch.uint8, device=self._device)
        setattr(token, _KEPT, kept)
        return [token, *given]

    def backward(
        self,
        gradients: Sequence[Tensor | None],
        token: Tensor,
        state: Sequence[Tensor],
        name: str,
        *counted: Any,
    ) -> list[Tensor]:
        """Gradients of what is tracked, zeros of what the outputs did not depend on."""
        kept: _Kept | None = getattr(token, _KEPT, None)
        if kept is None:
            raise RunError(
                f"What autograd kept of the opaque module {self._calls[name].path} is not on this "
                "device any more.",
                "Leave what opaque modules keep where it is: do not offload or move it.",
            )
        pairs = [
            (edge, gradient)
            for edge, gradient in zip(kept.outputs, gradients, strict=True)
            if edge is not None and gradient is not None
        ]
        kept.state = list(state)
        found: Sequence[Tensor | None] = [None] * len(kept.leaves)
        if pairs:
            found = torch.autograd.grad(
                [edge for edge, _ in pairs],
                kept.leaves,
                [gradient for _, gradient in pairs],
                allow_unused=True,
            )
        kept.state = []
        delattr(token, _KEPT)
        return [
            torch.zeros(shape, dtype=x.dtype, device=x.device) if gradient is None else gradient
            for x, shape, gradient in zip(kept.leaves, kept.shapes, found, strict=True)
        ]

    def _autocast(self, call: OpaqueCall) -> AbstractContextManager[Any]:
        if call.autocast is None:
            return nullcontext()
        return torch.autocast(self._device.type, call.autocast)

    def _check(
        self,
        call: OpaqueCall,
        leaves: Sequence[Any],
        tensors: Sequence[Tensor],
        inputs: Sequence[Tensor],
    ) -> None:
        expected = sum(isinstance(leaf, Leaf) for leaf in call.results)
        fits = len(tensors) == expected and len(leaves) == len(call.results)
        for x, shape, dtype in zip(tensors, call.shapes, call.dtypes, strict=False):
            first = 1 if call.batch and x.dim() else 0
            fits &= x.dim() == len(shape) and tuple(x.shape[first:]) == shape[first:]
            fits &= x.dtype == dtype
        if not fits:
            got = ", ".join(f"{x.dtype} {list(x.shape)}" for x in tensors)
            wanted = ", ".join(
                f"{dtype} {list(shape)}"
                for shape, dtype in zip(call.shapes, call.dtypes, strict=True)
            )
            raise RunError(
                f"The opaque module {call.path} returned {got or 'no tensors'}; when it was "
                f"captured it returned {wanted}.",
                "Its outputs must have the same shapes and dtypes in every step.",
            )


def _parts_of_state(kept: _Kept) -> AbstractContextManager[Any]:
    """Autograd notes parts of the state by number, and asks for them when it needs them."""
    numbers = {storage_key(x): k for k, x in enumerate(kept.state)}

    def pack(x: Tensor) -> Tensor | _Part:
        number = numbers.get(storage_key(x))
        if number is None or x.dtype != kept.state[number].dtype:
            return x
        start = kept.state[number].storage_offset()
        return _Part(number, x.shape, x.stride(), int(x.storage_offset() - start))

    def unpack(held: Tensor | _Part) -> Tensor:
        if isinstance(held, Tensor):
            return held
        x = kept.state[held.number]
        return x.as_strided(held.size, held.stride, x.storage_offset() + held.offset)

    return saved_tensors_hooks(pack, unpack)
