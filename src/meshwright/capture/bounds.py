"""Comparisons of uniform draws that come out the same whatever is drawn.

Stochastic depth is often written `if torch.rand([]) < p: skip`, with p zero unless
someone asks for it. A uniform draw lies in [0, 1), so that the answer is known.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# For each way to compare a draw with a number: the numbers for which it is always
# true, and those for which it never is.
_Always = Callable[[float], bool]
_COMPARISONS: Mapping[Any, tuple[_Always, _Always]] = {
    func: (always, never)
    for funcs, always, never in (
        ((Tensor.lt, Tensor.__lt__, torch.lt), lambda x: x >= 1, lambda x: x <= 0),
        ((Tensor.le, Tensor.__le__, torch.le), lambda x: x >= 1, lambda x: x < 0),
        ((Tensor.ge, Tensor.__ge__, torch.ge), lambda x: x <= 0, lambda x: x >= 1),
        ((Tensor.gt, Tensor.__gt__, torch.gt), lambda x: x < 0, lambda x: x >= 1),
    )
    for func in funcs
}


class KnownComparisons(TorchFunctionMode):
    """Within it, such a comparison of a single draw gives a constant."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # id -> draw, its version

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.rand:
            made = func(*args, **kwargs)
            if made.dim() == 0:
                self._drawn[id(made)] = weakref.ref(made), made._version
            return made
        if func in _COMPARISONS and len(args) == 2 and self._is_draw(args[0]):
            always, never = _COMPARISONS[func]
            if isinstance(args[1], (int, float)) and (always(args[1]) or never(args[1])):
                return torch.tensor(always(args[1]))
        return func(*args, **kwargs)

    def _is_draw(self, item: Any) -> bool:
        known = self._drawn.get(id(item))
        return known is not None and known[1] == item._version and known[0]() is item
