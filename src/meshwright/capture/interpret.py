"""Runs a Program op by op with PyTorch: slow, plain, and what others are compared with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meshwright.program.types import Argument, Length, Program, Ref, Symbol


def interpret(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All values of a Program, by name, given those of its inputs by value name.

    Random ops draw from PyTorch's default generator.
    """
    values = {item.value: inputs[item.value] for item in program.inputs}
    with torch.no_grad():
        for op in program.ops:
            args = [_real(item, values) for item in op.args]
            kwargs = {key: _real(item, values) for key, item in op.kwargs}
            output = resolve(op.target)(*args, **kwargs)
            results = tuple(output) if op.returns_tuple else (output,)
            for name, result in zip(op.results, results, strict=True):
                if name is not None:
                    values[name] = result
    return values


@functools.cache
def resolve(target: str) -> Any:
    """The PyTorch op of a target such as `aten.mm.default`."""
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _real(argument: Argument, values: Mapping[str, Tensor]) -> Any:
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, Symbol):
        return torch.device(argument.text) if argument.kind == "device" else getattr(
            torch, argument.text
        )  # fmt: skip
    if isinstance(argument, Length):
        return argument.times * values[argument.value].shape[0]
    if isinstance(argument, tuple):
        return [_real(item, values) for item in argument]
    return argument
