"""Average pooling to a single cell, as the mean that it is.

PyTorch's own takes that mean too, and then lays the result out anew in memory,
which its backward undoes through a flat buffer whose one dim can't be cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _pool(rank: int, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pool(input: Tensor, output_size: Any) -> Tensor:
        sizes = (output_size,) * rank if isinstance(output_size, int) else tuple(output_size)
        if any(size != 1 for size in sizes):
            return plain(input, output_size)
        return input.mean(tuple(range(-rank, 0)), keepdim=True)

    return pool


POOLING: Mapping[Callable[..., Any], Callable[..., Any]] = {
    plain: _pool(rank, plain)
    for rank, plain in (
        (1, torch.adaptive_avg_pool1d),
        (2, F.adaptive_avg_pool2d),
        (3, F.adaptive_avg_pool3d),
    )
}
