"""Embedding bags as embeddings and sums.

PyTorch's own op also returns where each index went, in tensors whose sizes depend on
the device and the mode; cut over devices, its offsets would have to be counted anew.
In parts, each step has a sharding rule: a table cut by rows leaves a pending sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from meshwright.errors import CaptureError


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """As `torch.nn.functional.embedding_bag`: input [B, H], or [N] with offsets [B]. -> [B, D].

    The gradient is dense also where `sparse` asks otherwise: the numbers are the same.
    """
    if max_norm is not None:
        raise CaptureError(
            "An embedding bag with max_norm writes to its table in the forward, which the "
            "optimizer writes to as well.",
            "Leave max_norm out, or scale the table's rows between steps.",
        )
    if scale_grad_by_freq:
        # PyTorch's kernel for CPU divides by the counts of other rows.
        raise CaptureError(
            "An embedding bag with scale_grad_by_freq has other gradients on each kind of device.",
            "Leave scale_grad_by_freq out, or use nn.Embedding with it and a sum.",
        )
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.size(0)
    rows = F.embedding(input, weight, padding_idx)
    counted = None if padding_idx is None else input != padding_idx
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if input.dim() == 2:
        return _even(rows, counted, mode)
    if offsets is None:
        raise CaptureError(
            "embedding_bag got indices of one dim and no offsets.",
            "Give offsets, or indices of two dims.",
        )
    starts = offsets[:-1] if include_last_offset else offsets
    place = torch.arange(input.size(0), dtype=offsets.dtype)
    bag = torch.bucketize(place, starts, right=True) - 1
    return _uneven(rows, bag, starts.size(0), counted, mode)


def _even(rows: Tensor, counted: Tensor | None, mode: str) -> Tensor:
    """Bags of one length: rows [B, H, D], counted [B, H]."""
    if mode == "max":
        if counted is None:
            return rows.amax(dim=1) if rows.size(1) == 1 else rows.max(dim=1).values
        none = ~counted.any(dim=1, keepdim=True)
        kept = rows.masked_fill(~counted.unsqueeze(-1), float("-inf"))
        return kept.max(dim=1).values.masked_fill(none, 0.0)
    if counted is not None:
        rows = rows * counted.unsqueeze(-1).to(rows.dtype)
    total = rows.sum(dim=1)
    if mode == "sum":
        return total
    if counted is None:
        return total / rows.size(1)
    return total / counted.sum(dim=1, keepdim=True).clamp(min=1).to(rows.dtype)


def _uneven(rows: Tensor, bag: Tensor, bags: int, counted: Tensor | None, mode: str) -> Tensor:
    """Bags of any length: rows [N, D], the bag of each [N], counted [N]."""
    out = rows.new_zeros(bags, rows.size(1))
    if mode == "max":
        if counted is not None:
            # What doesn't count goes to a bag of its own.
            bag = torch.where(counted, bag, bags)
            out = rows.new_zeros(bags + 1, rows.size(1))
        index = bag.unsqueeze(-1).expand_as(rows)
        return out.scatter_reduce(0, index, rows, "amax", include_self=False)[:bags]
    ones = rows.new_ones(rows.size(0)) if counted is None else counted.to(rows.dtype)
    if counted is not None:
        rows = rows * ones.unsqueeze(-1)
    total = out.index_add(0, bag, rows)
    if mode == "sum":
        return total
    count = rows.new_zeros(bags).index_add(0, bag, ones)
    return total / count.clamp(min=1).unsqueeze(-1)
