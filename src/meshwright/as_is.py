"""Modules that run as they are: how a user marks one, and what is known of each call of one.

An opaque module's forward is not captured. At run time it is called as it is,
under autograd, with its parameters put in its place; see docs/how-to/opaque-modules.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from meshwright.errors import UsageError
from meshwright.torch_private import TreeSpec

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
MARK = "_meshwright_opaque"
LIKE_INPUT = "like input"

Module = TypeVar("Module", bound=nn.Module)

_LIBRARY = torch.library.Library("mesh", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "opaque(Tensor[] state, Tensor[] inputs, str call, int[] inputs_cut, int[] outputs_cut,"
    " float flops, float bytes, int launches, str draws) -> Tensor[]"
)
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "opaque_backward(Tensor?[] gradients, Tensor kept, Tensor[] state, str call,"
    " int[] gradients_cut, float flops, float bytes, int launches, int[] shapes) -> Tensor[]"
)

FORWARD = torch.ops.mesh.opaque.default
BACKWARD = torch.ops.mesh.opaque_backward.default


@dataclass(frozen=True)
class Mark:
    """What `opaque` was told; it lies on the module as an attribute and is copied with it."""

    batch: bool
    outputs: Callable[..., Any] | str | None


@dataclass(frozen=True)
class Leaf:
    """A tensor among the leaves of a call's arguments or results, by number."""

    number: int


@dataclass(frozen=True)
class OpaqueCall:
    """One call of an opaque module in the captured step.

    path: of the module. skeleton: it, with parameters and buffers that have no
    memory; `state` names them, relative to it, in the order in which they are
    given, and `updates` those among them that the call changes. arguments,
    results: leaves of (args, kwargs) and of what it returns, a Leaf for each
    tensor. tracked: whether gradients are wanted, of each of the state and
    then of the inputs. shapes, dtypes: of the whole results. autocast: the
    dtype of automatic mixed precision around the call.
    """

    path: str
    skeleton: nn.Module
    state: tuple[str, ...]
    updates: tuple[str, ...]
    arguments: tuple[Any, ...]
    arguments_tree: TreeSpec
    results: tuple[Any, ...]
    results_tree: TreeSpec
    tracked: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    batch: bool
    autocast: torch.dtype | None = None

    def bound(self, inputs: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with tensors in place."""
        leaves = [inputs[x.number] if isinstance(x, Leaf) else x for x in self.arguments]
        args, kwargs = self.arguments_tree.unflatten(leaves)
        return args, kwargs


def opaque(
    module: Module, *, batch: bool = True, outputs: Callable[..., Any] | str | None = None
) -> Module:
    """Have a submodule run as it is, uncaptured: for a forward that depends on values.

    Returns the module, marked. It runs whole on every device of each axis, but
    for axes that cut the batch. Its parameters are stored as the plan stores
    others: gathered before use, their gradients reduced. The plan names it.

    batch: dim 0 of its tensor inputs and outputs is the batch and examples do
        not influence each other, so that each device runs its part of the
        batch. This is checked where the module can be run on small inputs.
        False runs it on the whole batch on every device.
    outputs: what it returns, when it is too large to be run once while
        planning: a callable that takes the forward's arguments (without
        memory, on the meta device) and returns tensors of the right shapes and
        dtypes, or `"like input"`.

    Call it in a model's `__init__` or on a submodule of a model that exists.
    Raises UsageError for what is no module.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"opaque() was given {type(module).__name__}.", "Pass a torch.nn.Module.")
    if isinstance(outputs, str) and outputs != LIKE_INPUT:
        raise UsageError(
            f"outputs is '{outputs}'.", "Pass a callable, or 'like input', or leave it out."
        )
    setattr(module, MARK, Mark(batch, outputs))
    return module


def mark_of(module: nn.Module) -> Mark | None:
    found = module.__dict__.get(MARK)
    return found if isinstance(found, Mark) else None


def runnable(skeleton: nn.Module, device: torch.device) -> nn.Module:
    """A copy whose own hooks, which the captured step ran around the call, do not run again."""
    try:
        made = copy.deepcopy(skeleton)
    except Exception:
        made = copy.copy(skeleton)
    for name in _HOOKS:
        hooks = made.__dict__.get(name)
        if hooks is not None:
            made.__dict__[name] = type(hooks)()
    if device.type != "cpu":
        for owner in made.modules():
            for key, item in list(owner.__dict__.items()):
                if isinstance(item, Tensor):
                    owner.__dict__[key] = item.to(device)
    return made
