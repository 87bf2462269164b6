"""Copies of a module: its structure with fake parameters and buffers, or with real ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.torch_private import FakeTensor, FakeTensorMode, copy_gradient_hooks


def copy_with_fakes(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A module like `module`, whose tensors are fakes on the CPU; ties and views are kept.

    What can't be deep-copied (a lock, a non-leaf tensor) is shared instead.
    """
    return _copied(module, lambda tensor: _fake(tensor, mode), mode)


def copy_for_real(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A module like `module` with tensors of its own, those in `values` filled with these."""
    known = {id(tensor): values[name] for name, tensor in _named(module) if name in values}

    def real(tensor: Tensor) -> Tensor:
        return known.get(id(tensor), tensor).detach().clone()

    return _copied(module, real, nullcontext())


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _copied(
    module: nn.Module, make: Callable[[Tensor], Tensor], mode: AbstractContextManager[Any]
) -> nn.Module:
    memo: dict[int, Any] = {}
    for owner in module.modules():
        for parameter in owner._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                with mode:
                    memo[id(parameter)] = nn.Parameter(
                        make(parameter), requires_grad=parameter.requires_grad
                    )
                copy_gradient_hooks(parameter, memo[id(parameter)])
        for buffer in owner._buffers.values():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = make(buffer)
    try:
        copied: nn.Module = copy.deepcopy(module, dict(memo))
    except Exception:
        copied = _shallow(module, memo, {})
    return copied


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    tensor = tensor.detach()
    if isinstance(tensor, FakeTensor) and tensor.device.type == "cpu" and tensor.fake_mode is mode:
        return tensor
    if tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor):
        return mode.from_tensor(tensor)
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def _shallow(
    module: nn.Module, tensors: dict[int, Any], modules: dict[int, nn.Module]
) -> nn.Module:
    """A copy that shares everything but the tree of modules and its tensors."""
    if id(module) in modules:
        return modules[id(module)]
    copied = module.__class__.__new__(module.__class__)
    modules[id(module)] = copied
    state = dict(module.__dict__)
    for key in ("_parameters", "_buffers"):
        state[key] = {
            name: None if tensor is None else tensors[id(tensor)]
            for name, tensor in module.__dict__[key].items()
        }
    state["_modules"] = {
        name: None if child is None else _shallow(child, tensors, modules)
        for name, child in module.__dict__["_modules"].items()
    }
    copied.__dict__.update(state)
    return copied
