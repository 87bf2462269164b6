"""Weights of a module on the meta device, by its submodules' `reset_parameters`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from meshwright.capture.execution import Keep
from meshwright.draws import generator_seeded
from meshwright.errors import CaptureError


class MetaValues:
    """Makes what a module has on the meta device, one submodule at a time.

    Raises CaptureError at once for a submodule that owns tensors on the meta
    device and can't reset them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._owners: list[tuple[str, nn.Module]] = []
        self._names: dict[int, str] = {}
        self._last: dict[int, nn.Module] = {}  # a tied tensor is what its last owner makes it
        for name, owner in module.named_modules():
            tensors = _own_meta(owner)
            if not tensors:
                continue
            if not callable(getattr(owner, "reset_parameters", None)):
                raise CaptureError(
                    f"{name or 'The top module'} ({type(owner).__name__}) owns "
                    f"{', '.join(tensors)} on the meta device and has no reset_parameters.",
                    "Give the module a reset_parameters method, or pass a callable "
                    "that builds the model on the CPU: nothing is allocated then.",
                )
            self._owners.append((name, owner))
            for key, tensor in tensors.items():
                self._names.setdefault(id(tensor), f"{name}.{key}" if name else key)
                self._last[id(tensor)] = owner

    def materialize(
        self, seed: int, keep: Keep, names: set[str] | frozenset[str] | None
    ) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        if not self._owners:
            return made
        with generator_seeded(seed), torch.no_grad():
            for _, owner in self._owners:
                real = _reset(owner)
                for key, tensor in _own_meta(owner).items():
                    name = self._names[id(tensor)]
                    if self._last[id(tensor)] is owner and (names is None or name in names):
                        made[name] = keep(name, real[key])
        return made


def weights_on_meta(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """What a module has on the meta device, made for real; nothing for one that has its values."""
    return MetaValues(module).materialize(seed, lambda _, tensor: tensor.detach().clone(), None)


def _own_meta(module: nn.Module) -> dict[str, Tensor]:
    own = [*module._parameters.items(), *module._buffers.items()]
    return {key: t for key, t in own if t is not None and t.device.type == "meta"}


def _reset(owner: nn.Module) -> dict[str, Tensor]:
    """The tensors that `reset_parameters` makes, on a copy that alone is given memory."""
    twin = copy.copy(owner)
    twin._parameters = {
        key: nn.Parameter(_memory(p), requires_grad=p.requires_grad) if p is not None else None
        for key, p in owner._parameters.items()
    }
    twin._buffers = {
        key: _memory(buffer) if buffer is not None else None
        for key, buffer in owner._buffers.items()
    }
    twin.reset_parameters()  # type: ignore[operator]
    return {
        key: tensor.detach()
        for key, tensor in [*twin._parameters.items(), *twin._buffers.items()]
        if tensor is not None
    }


def _memory(tensor: Tensor) -> Tensor:
    if tensor.device.type != "meta":
        return tensor.detach().clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
