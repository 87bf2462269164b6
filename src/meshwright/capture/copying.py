"""A copy of a module's structure with fake parameters and buffers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.torch_private import FakeTensor, FakeTensorMode


def copy_with_fakes(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A module like `module`, whose tensors are fakes on the CPU; ties and views are kept.

    What can't be deep-copied (a lock, a non-leaf tensor) is shared instead.
    """
    memo: dict[int, Any] = {}
    for owner in module.modules():
        for parameter in owner._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                with mode:
                    memo[id(parameter)] = nn.Parameter(
                        _fake(parameter, mode), requires_grad=parameter.requires_grad
                    )
        for buffer in owner._buffers.values():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = _fake(buffer, mode)
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
