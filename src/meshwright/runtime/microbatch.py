"""Cutting a global batch into microbatches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from meshwright.errors import ModelError
from meshwright.torch_private import tree_map


def batch_size(leaves: Mapping[str, Tensor]) -> int:
    """Examples in a batch: the first dim of its first leaf that has dims."""
    for leaf in leaves.values():
        if leaf.dim():
            if not leaf.shape[0]:
                raise ModelError(
                    "The batch holds no example: its first dim is 0.", "Give at least one example."
                )
            return leaf.shape[0]
    return 1


def microbatch_of(batch: Any, size: int, start: int = 0) -> Any:
    """Examples `start` to `start + size`, in the batch's own structure.

    Leaves whose first dim is not the batch's stay whole.
    """
    whole: list[int] = []

    def first_dim(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim():
            whole.append(leaf.shape[0])
        return leaf

    tree_map(first_dim, batch)
    if not whole:
        return batch

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == whole[0]:
            return leaf[start : start + size]
        return leaf

    return tree_map(cut, batch)


def microbatches(batch: Any, size: int, count: int) -> Iterator[tuple[Any, int]]:
    """`count` microbatches of a batch of `size` examples with the size of each.

    As `torch.chunk`: equal parts, the last one smaller or, where there are
    fewer examples than microbatches, missing.
    """
    step = -(-size // count)
    for start in range(0, size, step):
        held = min(step, size - start)
        yield microbatch_of(batch, held, start), held
