"""Python that loops over positions, or asks whether there are any, while it is captured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from meshwright.capture.ragged import Ragged
from meshwright.errors import CaptureError
from meshwright.torch_private import from_functional

# A loop over the positions of a mask is captured as a loop over all that could be there.
MOST_CANDIDATES = 4096


class CandidatesForLists(TorchFunctionMode):
    """A loop over positions runs for every position there could be; `if mask.any()` is true.

    Both hold where the body does nothing for a mask that selects nothing, as that of a
    mixture of experts. It is noted as taken for granted.
    """

    def __init__(self, ragged: Ragged) -> None:
        super().__init__()
        self._ragged = ragged

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        ragged = self._ragged
        if (
            func is Tensor.__getitem__
            and args[1] == slice(None)
            and from_functional(args[0]) in ragged
        ):
            return args[0]
        if func in _LOOPS and args and (func not in _UNBINDS or _first_dim(args, kwargs)):
            found = ragged.candidates(from_functional(args[0]))
            if found is not None:
                if len(found) > MOST_CANDIDATES:
                    raise CaptureError(
                        f"The step loops over the positions of a mask that has {len(found)}.",
                        "Work on all of them at once, with the positions as an index.",
                    )
                ragged.note(
                    f"the loop runs for all {len(found)} positions that the mask could select, "
                    "and does nothing for those that it does not"
                )
                matrix = args[0].dim() == 2
                if func is Tensor.tolist:
                    return [list(item) if matrix else item[0] for item in found]
                made = [torch.tensor(list(item) if matrix else item[0]) for item in found]
                return iter(made) if func is Tensor.__iter__ else tuple(made)
        elif func in _TRUTHS and ragged.whether(from_functional(args[0])):
            ragged.note("some position is selected, or the branch does nothing for none")
            return True
        return func(*args, **(kwargs or {}))


_UNBINDS = frozenset({Tensor.unbind, torch.unbind})
_LOOPS = frozenset({Tensor.__iter__, Tensor.tolist}) | _UNBINDS
_TRUTHS = frozenset({Tensor.__bool__, Tensor.item})


def _first_dim(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> bool:
    dim: int = args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)
    return dim == 0
