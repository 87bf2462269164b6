"""Local terms of group and layer normalisation over cut dims: what `mesh.*` names.

A group's channels and rows, or the dims that layer normalisation takes
together, are opened as dims of their own, summed over and closed again.
Statistics are in fp32 where the data is in half precision, as PyTorch has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _opened(x: Tensor, groups: int) -> Tensor:
    """[N, C, …] -> [N, groups, C / groups, …]."""
    return x.reshape(x.shape[0], groups, x.shape[1] // max(groups, 1), *x.shape[2:])


def _vector(weight: Tensor, groups: int, rank: int) -> Tensor:
    """[C] -> [1, groups, C / groups, 1, …]."""
    return weight.reshape(1, groups, -1 if groups else 0, *[1] * (rank - 2))


def _beside(statistic: Tensor, rank: int) -> Tensor:
    return statistic.reshape(*statistic.shape, *[1] * (rank - statistic.dim()))


def group_sum(x: Tensor, groups: int) -> Tensor:
    opened = _opened(x, groups)
    return opened.sum(tuple(range(2, opened.dim())), dtype=_wide(x))


def group_squares(x: Tensor, mean: Tensor, groups: int) -> Tensor:
    opened = _opened(x, groups)
    centred = opened - _beside(mean, opened.dim())
    return centred.square_().sum(tuple(range(2, opened.dim())))


def group_apply(
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
) -> Tensor:
    opened = _opened(x, groups)
    rank = opened.dim()
    made = (opened - _beside(mean, rank)) * _beside(inverse, rank)
    if weight is not None:
        made = made * _vector(weight, groups, x.dim())
    if bias is not None:
        made = made + _vector(bias, groups, x.dim())
    return made.reshape(x.shape).to(x.dtype)


def group_terms(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """[2, N, groups] sums for the input's gradient; gradients of weight and bias if wanted."""
    opened, given = _opened(x, groups), _opened(gradient, groups)
    rank = opened.dim()
    hat = (opened - _beside(mean, rank)) * _beside(inverse, rank)
    products = given * hat
    others = (0, *range(3, rank))
    found = [
        terms.sum(others).reshape(x.shape[1]).to(x.dtype)
        for terms, asked in ((products, wanted[0]), (given, wanted[1]))
        if asked
    ]
    if weight is not None:
        scale = _vector(weight, groups, x.dim())
        given, products = given * scale, products * scale
    inner = tuple(range(2, rank))
    sums = torch.stack((given.sum(inner, dtype=mean.dtype), products.sum(inner, dtype=mean.dtype)))
    return (sums, *found)


def group_gradient(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    means: Tensor,
    groups: int,
) -> Tensor:
    """The input's gradient; `means` are the sums of `group_terms` over what a group counts."""
    opened, given = _opened(x, groups), _opened(gradient, groups)
    rank = opened.dim()
    hat = (opened - _beside(mean, rank)) * _beside(inverse, rank)
    if weight is not None:
        given = given * _vector(weight, groups, x.dim())
    inner = given - _beside(means[0], rank) - hat * _beside(means[1], rank)
    return (inner * _beside(inverse, rank)).reshape(x.shape).to(x.dtype)


def _tail(x: Tensor, dims: int) -> tuple[int, ...]:
    return tuple(range(x.dim() - dims, x.dim()))


def layer_sum(x: Tensor, dims: int) -> Tensor:
    return x.sum(_tail(x, dims), keepdim=True, dtype=_wide(x))


def layer_squares(x: Tensor, mean: Tensor, dims: int) -> Tensor:
    return (x - mean).square_().sum(_tail(x, dims), keepdim=True)


def layer_apply(
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
) -> Tensor:
    made = (x - mean) * inverse
    if weight is not None:
        made = made * weight
    if bias is not None:
        made = made + bias
    return made.to(x.dtype)


def layer_terms(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    dims: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """[2, …, 1, …] sums for the input's gradient; gradients of weight and bias if wanted."""
    products = gradient * ((x - mean) * inverse)
    lead = tuple(range(x.dim() - dims))
    found = [
        (terms.sum(lead) if lead else terms.clone()).to(x.dtype)
        for terms, asked in ((products, wanted[0]), (gradient, wanted[1]))
        if asked
    ]
    given = gradient if weight is None else gradient * weight
    products = products if weight is None else products * weight
    sums = torch.stack(
        [terms.sum(_tail(x, dims), keepdim=True, dtype=mean.dtype) for terms in (given, products)]
    )
    return (sums, *found)


def layer_gradient(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    means: Tensor,
    dims: int,
) -> Tensor:
    """The input's gradient; `means` are the sums of `layer_terms` over what is normalised."""
    given = gradient if weight is None else gradient * weight
    made = (given - means[0] - (x - mean) * inverse * means[1]) * inverse
    return made.to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


OPS = {
    f"mesh.{function.__name__}": function
    for function in (
        group_sum, group_squares, group_apply, group_terms, group_gradient,
        layer_sum, layer_squares, layer_apply, layer_terms, layer_gradient,
    )
}  # fmt: skip
