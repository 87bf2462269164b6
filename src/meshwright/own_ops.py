"""Ops that PyTorch lacks and a Program needs, registered as `torch.ops.mesh.*`.

`mesh.nonzero`, `mesh.take` and `mesh.put` are indexing by positions that are
only known when the step runs. They differ from ATen's in what they say about
themselves: which dim of which mask a list of positions runs along, so that
tensors and lists can be cut alike (docs/decisions/0008-ragged-values.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("mesh", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "nonzero(Tensor mask) -> Tensor[]",
    "take(Tensor x, Tensor?[] indices, int[] mask, int[] dims) -> Tensor",
    "put(Tensor x, Tensor?[] indices, Tensor values, bool accumulate, int[] mask, int[] dims)"
    " -> Tensor",
):
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]


def _nonzero(mask: Tensor) -> list[Tensor]:
    """Positions of what is not zero, one list for each dim of the mask, in row-major order."""
    return list(torch.nonzero(mask, as_tuple=True))


def _take(
    x: Tensor, indices: Sequence[Tensor | None], mask: Sequence[int], dims: Sequence[int]
) -> Tensor:
    """`x[indices]`; index `k` is a list along dim `dims[k]` of a mask of whole shape `mask`."""
    alone = _alone(indices)
    if alone is not None:
        return torch.index_select(x, *alone)
    made: Tensor = torch.ops.aten.index.Tensor(x, list(indices))
    return made


def _put(
    x: Tensor,
    indices: Sequence[Tensor | None],
    values: Tensor,
    accumulate: bool,
    mask: Sequence[int],
    dims: Sequence[int],
) -> Tensor:
    """A copy of `x` with `values` put, or added, where the lists point."""
    alone = _alone(indices)
    if accumulate and alone is not None:
        dim, index = alone
        shape = list(x.shape)
        shape[dim] = index.shape[0]
        return torch.index_add(x, dim, index, values.expand(shape))
    made: Tensor = torch.ops.aten.index_put.default(x, list(indices), values, accumulate)
    return made


def _alone(indices: Sequence[Tensor | None]) -> tuple[int, Tensor] | None:
    """The dim that is indexed and its index, when there is only one and it is a plain list."""
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    return given[0] if len(given) == 1 and given[0][1].dim() == 1 else None


for _name, _function in (("nonzero", _nonzero), ("take", _take), ("put", _put)):
    _LIBRARY.impl(  # type: ignore[no-untyped-call]
        _name, _function, "CompositeExplicitAutograd"
    )

nonzero = torch.ops.mesh.nonzero.default
take = torch.ops.mesh.take.default
put = torch.ops.mesh.put.default
