"""Meshwright's own ops as generated code calls them: the functions behind `mesh.*`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meshwright.layout.types import Split
from meshwright.runtime import local_attention, local_indexing, local_moments, local_spatial
from meshwright.runtime.comm import Communicator, Cut
from meshwright.runtime.halo import rows
from meshwright.runtime.random import dropout, normal, uniform
from meshwright.runtime.random_fast import fast_draw

Cuts = list[tuple[Split, int, int, int]]


@dataclass
class RandomKey:
    """What a draw depends on beside the op and the position: set anew for each microbatch."""

    seed: int = 0
    step: int = 0
    microbatch: int = 0
    fast: bool = False  # by the device's own generator instead of by global position
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def stream(self, stream: int) -> tuple[int, ...]:
        return (self.seed, stream, self.step, self.microbatch)


def local_ops(comm: Communicator, key: RandomKey) -> Mapping[str, Callable[..., Any]]:
    """The function of each `mesh.*` target, bound to this device's communicator."""

    def all_to_all(x: Tensor, axis: str, **cut: int) -> Tensor:
        names = ("dim", "outer", "extent", "minor", "shift")
        gather, scatter = (
            tuple(cut.get(f"{prefix}_{name}", 0) for name in names) for prefix in ("gather", "cut")
        )
        return comm.all_to_all(x, axis, gather, scatter)

    def all_reduce(
        x: Tensor | list[Tensor], later: bool = False, **options: Any
    ) -> Tensor | list[Tensor]:
        if isinstance(x, list):
            return comm.all_reduce_many(x, later=later, **options)
        if later:
            return comm.all_reduce_many([x], later=True, **options)[0]
        return comm.all_reduce(x, **options)

    def all_gather(
        x: Tensor | list[Tensor], later: bool = False, **options: Any
    ) -> Tensor | list[Tensor]:
        if isinstance(x, list):
            return comm.all_gather_many(x, later=later, **options)
        if later:
            axis = options.pop("axis")
            return comm.all_gather_many([x], axis, [tuple(Cut(**options))], later=True)[0]
        return comm.all_gather(x, **options)

    def reduce_scatter(
        x: Tensor | list[Tensor], later: bool = False, **options: Any
    ) -> Tensor | list[Tensor]:
        if isinstance(x, list):
            return comm.reduce_scatter_many(x, later=later, **options)
        if later:
            axis, reduce = options.pop("axis"), options.pop("reduce", "sum")
            cut = tuple(Cut(**options))
            return comm.reduce_scatter_many([x], axis, [cut], reduce, later=True)[0]
        return comm.reduce_scatter(x, **options)

    def random(*args: Any, **kwargs: Any) -> Any:
        return draw(key, *args, **kwargs)

    return {
        "mesh.all_reduce": all_reduce,
        "mesh.all_gather": all_gather,
        "mesh.reduce_scatter": reduce_scatter,
        "mesh.settle": comm.settle,
        "mesh.arrive": comm.arrive,
        "mesh.all_to_all": all_to_all,
        "mesh.shard": comm.shard,
        "mesh.halo": comm.halo,
        "mesh.rows": rows,
        "mesh.resample": local_spatial.resample,
        "mesh.resample_backward": local_spatial.resample_backward,
        "mesh.max_pool": local_spatial.max_pool,
        "mesh.adaptive_max_pool": local_spatial.adaptive_max_pool,
        "mesh.max_pool_backward": local_spatial.max_pool_backward,
        "mesh.ring_shift": comm.ring_shift,
        "mesh.ring_pack": local_attention.ring_pack,
        "mesh.ring_unpack": local_attention.ring_unpack,
        "mesh.attention": local_attention.attention,
        "mesh.attention_backward": local_attention.attention_backward,
        "mesh.attention_step": local_attention.attention_step,
        "mesh.attention_step_backward": local_attention.attention_step_backward,
        "mesh.random": random,
        "mesh.sum_of_squares": sum_of_squares,
        "mesh.local_index": local_index,
        "mesh.embedding_rows": embedding_rows,
        "mesh.nll_loss": nll_loss,
        "mesh.nll_loss_backward": nll_loss_backward,
        "mesh.amax": amax,
        "mesh.length": length,
        "mesh.term": term,
        "mesh.batch_norm_apply": batch_norm_apply,
        **local_indexing.OPS,
        **local_moments.OPS,
    }


def draw(
    key: RandomKey,
    *args: Any,
    kind: str,
    stream: int,
    shape: Sequence[int],
    cuts: Sequence[Sequence[int]],
    dtype: torch.dtype | str,
) -> Any:
    """One random op of the Program on this device's part of a tensor of `shape`.

    `cuts` are (dim, outer, extent, parts, index, remaining), as the layout gives them.
    """
    here: Cuts = [
        (Split(dim, outer, extent), parts, index, remaining)
        for dim, outer, extent, parts, index, remaining in cuts
    ]
    whole, stream_key = tuple(shape), key.stream(stream)
    kind_dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if key.fast:
        return fast_draw(kind, args, whole, here, stream_key, kind_dtype, key.device)
    if kind == "native_dropout":
        x, probability, *train = args
        if train and not train[0]:
            return x.clone(), torch.ones_like(x, dtype=torch.bool)
        return dropout(x, probability, whole, here, stream_key)
    if kind == "randn_like" or kind == "randn":
        return normal(whole, here, stream_key, kind_dtype)
    drawn = uniform(whole, here, stream_key, kind_dtype)
    if kind in ("rand_like", "rand"):
        return drawn
    if kind == "bernoulli_p":
        return (drawn < args[1]).to(kind_dtype)
    assert kind == "bernoulli", kind
    return (drawn < args[0]).to(kind_dtype)


def sum_of_squares(*tensors: Tensor) -> Tensor:
    """Sum of the squares of all elements, in fp32."""
    norms = torch.stack([torch.linalg.vector_norm(x, dtype=torch.float32) for x in tensors])
    return torch.dot(norms, norms)


def local_index(index: Tensor, start: int, count: int, ignore: int, other: int) -> Tensor:
    """Indices counted from `start`; `other` where they are ignored or not in the `count` held."""
    local = index - start
    return local.masked_fill_((local < 0) | (local >= count) | (index == ignore), other)


def embedding_rows(weight: Tensor, index: Tensor, start: int, count: int) -> Tensor:
    """Rows of the table's part held here, zeros where the index points to another part."""
    local = index - start
    missing = (local < 0) | (local >= count)
    if count == 0:
        return weight.new_zeros(*index.shape, weight.shape[1])
    found = torch.embedding(weight, local.masked_fill_(missing, 0))
    return found.masked_fill_(missing.unsqueeze(-1), 0)


def nll_loss(
    scores: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore: int
) -> Tensor:
    """[sum of losses, sum of weights] of the targets held here; reduction 0: each one's loss.

    Zeros where there is nothing to sum, and no check that some target counts.
    """
    spatial = scores.dim() == 4
    op = torch.ops.aten.nll_loss2d_forward if spatial else torch.ops.aten.nll_loss_forward
    if scores.numel() == 0 or target.numel() == 0:
        return scores.new_zeros(target.shape if reduction == 0 else (2,))
    loss, total = op(scores, target, weight, reduction, ignore)
    return loss if reduction == 0 else torch.stack((loss, total))


def nll_loss_backward(
    gradient: Tensor,
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore: int,
    total: Tensor,
) -> Tensor:
    """As PyTorch's, for scores of any strides."""
    spatial = scores.dim() == 4
    op = torch.ops.aten.nll_loss2d_backward if spatial else torch.ops.aten.nll_loss_backward
    made: Tensor = op(gradient, scores.contiguous(), target, weight, reduction, ignore, total)
    return made


def length(positions: Tensor, times: int) -> int:
    """`times` the number of positions in a list."""
    return times * positions.shape[0]


def term(x: Tensor) -> Tensor:
    """A value as one of the terms of a sum, the others being zeros."""
    return x


def amax(x: Tensor, dim: int) -> Tensor:
    """The maximum along `dim`, which is kept; -inf where this device holds nothing of it."""
    if x.shape[dim]:
        return x.amax(dim, keepdim=True)
    shape = list(x.shape)
    shape[dim] = 1
    return x.new_full(shape, -torch.inf)


def batch_norm_apply(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Tensor:
    """Normalise by given statistics, in one pass."""
    result = torch.ops.aten.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)
    output: Tensor = result[0]
    return output
