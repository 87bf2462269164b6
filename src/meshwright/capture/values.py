"""Refuses what would read the values of tensors that have none.

Most reads reach the dispatcher, where fakes refuse them. These go straight for
the memory, which on a tensor without any gives garbage instead of an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from meshwright.errors import CaptureError
from meshwright.torch_private import FakeTensor, from_functional, without_modes

_READS = {
    Tensor.numpy: "numpy()",
    Tensor.tolist: "tolist()",
    Tensor.__array__: "NumPy",
    Tensor.__dlpack__: "DLPack",
}


class NeedsValues(CaptureError):
    """The user's code reads values that aren't known while capturing."""


class KnownValuesOnly(TorchFunctionMode):
    """Within it, a tensor is only read when its values are constants, known from the start.

    remedy: what a user can do who meets the refusal. known: the values of a fake
    whose values follow from constants, None for another.
    """

    def __init__(self, remedy: str, known: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self._remedy = remedy
        self._known = known

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _READS:
            fake = from_functional(args[0])
            if isinstance(fake, FakeTensor):
                value = self._known(fake) if fake.constant is None else fake.constant
                if value is None:
                    raise NeedsValues(
                        f"The values of a tensor are read, by {_READS[func]}.", self._remedy
                    )
                with without_modes():
                    return func(from_functional(value.detach().clone()), *args[1:], **kwargs)
        return func(*args, **kwargs)


class FakesCanBeCopied(TorchFunctionMode):
    """Deep copies of fakes, which PyTorch would make with their mode and all."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and type(args[0]) is FakeTensor:
            fake, memo = args
            if id(fake) not in memo:
                memo[id(fake)] = fake.detach().clone().requires_grad_(fake.requires_grad)
            return memo[id(fake)]
        return func(*args, **(kwargs or {}))
