"""Puts functional tensors in a module's place for one trace, and takes them out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from meshwright.torch_private import copy_gradient_hooks, forget_value, to_functional

Without = Mapping[str, frozenset[str]]

_TABLES = ("_parameters", "_buffers", "_modules")


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Puts every attribute of the module and its submodules back at the end."""
    before: list[tuple[nn.Module, dict[str, Any], dict[str, dict[str, Any]]]] = [
        (owner, dict(owner.__dict__), {key: dict(owner.__dict__[key]) for key in _TABLES})
        for owner in module.modules()
    ]
    try:
        yield
    finally:
        for owner, attributes, tables in before:
            owner.__dict__.clear()
            owner.__dict__.update(attributes)
            for key, table in tables.items():
                current = owner.__dict__[key]
                current.clear()
                current.update(table)


@contextmanager
def left_out(module: nn.Module, without: Without) -> Iterator[None]:
    """Without some members of module lists, the others numbered anew; put back at the end.

    without: keys of members, by the name of the list.
    """
    before: list[tuple[dict[str, nn.Module | None], dict[str, nn.Module | None]]] = []
    for path, dropped in without.items():
        table = module.get_submodule(path)._modules
        before.append((table, dict(table)))
        kept = [child for key, child in table.items() if key not in dropped]
        table.clear()
        table.update({str(number): child for number, child in enumerate(kept)})
    try:
        yield
    finally:
        for table, members in reversed(before):
            table.clear()
            table.update(members)


def state_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by every name that they have."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for table in (owner._parameters, owner._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    yield f"{prefix}.{key}" if prefix else key, tensor


def make_functional(module: nn.Module) -> dict[str, Tensor]:
    """Replaces all parameters and buffers by functional tensors; returns them by every name."""
    wrapped: dict[int, Tensor] = {}
    held: list[Tensor] = []
    for owner in module.modules():
        for table, wrap in ((owner._parameters, _parameter), (owner._buffers, to_functional)):
            _replace(table, wrap, wrapped, held)
        if isinstance(owner, nn.RNNBase):
            owner._flat_weights = [getattr(owner, name) for name in owner._flat_weights_names]
    return dict(state_tensors(module))


def _replace(
    table: dict[str, Any],
    wrap: Callable[[Tensor], Tensor],
    wrapped: dict[int, Tensor],
    held: list[Tensor],
) -> None:
    for key, tensor in table.items():
        if tensor is None:
            continue
        if id(tensor) not in wrapped:
            held.append(tensor)
            # A buffer built from a literal is known by value, but its value changes from step
            # to step: a branch on it must not be frozen as it was when the model was built.
            forget_value(tensor)
            new = wrap(tensor)
            wrapped[id(tensor)] = wrapped[id(new)] = new
        table[key] = wrapped[id(tensor)]


def _parameter(tensor: Tensor) -> nn.Parameter:
    made = nn.Parameter(to_functional(tensor.detach()), requires_grad=tensor.requires_grad)
    copy_gradient_hooks(tensor, made)
    return made
