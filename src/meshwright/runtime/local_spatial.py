"""Local forms of resampling and pooling where spatial dims are cut: what `mesh.*` names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from meshwright.layout.halo import Range
from meshwright.rules.resampling import Resampling, taps

Pass = tuple[int, Sequence[Any], Range, Range]  # dim, map, output rows, input rows there
_HALF = (torch.float16, torch.bfloat16)


def resample(
    x: Tensor, whole: str | None, arguments: Sequence[Any], passes: Sequence[Pass]
) -> Tensor:
    """Map the dims in `passes` by weights, the others by the op `whole` with `arguments`."""
    dtype = x.dtype
    if dtype in _HALF:
        x = x.float()
    for dim, key, rows, there in passes:
        x = _weighted(x, dim, *_columns(key, rows, there, x.device))
    if whole is not None:
        x = _op(whole)(x, *arguments)
    return x.to(dtype)


def resample_backward(
    gradient: Tensor,
    whole: str | None,
    arguments: Sequence[Any],
    passes: Sequence[Pass],
    shape: Sequence[int],
) -> Tensor:
    """The adjoint of `resample` for an input of `shape`."""
    dtype = gradient.dtype
    if dtype in _HALF:
        gradient = gradient.float()
    if whole is not None:
        # Between the two, cut dims have the output's rows and the others the input's.
        between = list(shape)
        for dim, *_ in passes:
            between[dim] = gradient.shape[dim]
        gradient = gradient.contiguous()
        if "upsample" in whole:
            gradient = _op(whole)(gradient, arguments[0], between, *arguments[1:])
        else:
            rest = () if "adaptive" in whole else arguments
            gradient = _op(whole)(gradient, gradient.new_empty(between), *rest)
    for dim, key, rows, there in reversed(passes):
        count = there[1] - there[0]
        gradient = _spread(gradient, dim, count, *_columns(key, rows, there, gradient.device))
    return gradient.to(dtype)


def _op(target: str) -> Any:
    _, name, overload = target.split(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def _columns(
    key: Sequence[Any], rows: Range, there: Range, device: torch.device
) -> tuple[list[Tensor], list[Tensor | None]]:
    kind, size, made, options = key
    return _tables(Resampling(kind, size, made, tuple(options)), tuple(rows), tuple(there), device)


@lru_cache(maxsize=256)
def _tables(
    resampling: Resampling, rows: Range, there: Range, device: torch.device
) -> tuple[list[Tensor], list[Tensor | None]]:
    """For the k-th of each output row's input rows: where it lies among those there, its weight.

    Rows that are not there weigh nothing; None stands for weights that are all 1.
    """
    runs = taps(resampling)[rows[0] : rows[1]]
    places: list[Tensor] = []
    weights: list[Tensor | None] = []
    for k in range(max(len(run) for _, run in runs)):
        index, weight = [], []
        for first, run in runs:
            place = first + k - there[0]
            held = k < len(run) and 0 <= place < there[1] - there[0]
            index.append(place if held else 0)
            weight.append(run[k] if held else 0.0)
        places.append(torch.tensor(index, device=device))
        ones = all(w == 1.0 for w in weight)
        weights.append(None if ones else torch.tensor(weight, device=device))
    return places, weights


def _along(weight: Tensor, x: Tensor, dim: int) -> Tensor:
    return weight.to(x.dtype).view(*(-1 if k == dim else 1 for k in range(x.dim())))


def _weighted(
    x: Tensor, dim: int, places: Sequence[Tensor], weights: Sequence[Tensor | None]
) -> Tensor:
    total: Tensor | None = None
    for place, weight in zip(places, weights, strict=True):
        term = x.index_select(dim, place)
        if weight is not None:
            term.mul_(_along(weight, term, dim))
        total = term if total is None else total.add_(term)
    assert total is not None
    return total


def _spread(
    gradient: Tensor,
    dim: int,
    count: int,
    places: Sequence[Tensor],
    weights: Sequence[Tensor | None],
) -> Tensor:
    shape = (*gradient.shape[:dim], count, *gradient.shape[dim + 1 :])
    made = gradient.new_zeros(shape)
    for place, weight in zip(places, weights, strict=True):
        term = gradient if weight is None else gradient * _along(weight, gradient, dim)
        made.index_add_(dim, place, term)
    return made


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    first: Sequence[int],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """PyTorch's max pooling of rows that begin at `first` of a plane of `sizes`.

    Indices are positions in the whole plane.
    """
    pool = (
        torch.ops.aten.max_pool3d_with_indices
        if len(sizes) == 3
        else torch.ops.aten.max_pool2d_with_indices
    )
    made, index = pool(x, kernel, stride, padding, dilation, ceil_mode)
    return made, _moved(index, x.shape[-len(sizes) :], [0] * len(sizes), first, sizes)


def adaptive_max_pool(
    x: Tensor,
    made: Sequence[int],
    rows: Sequence[Range],
    first: Sequence[int],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Adaptive max pooling: output `rows` of each dim, of `made` in all, from rows from `first` on.

    Output row i covers input rows from floor(i * size / made) to ceil((i + 1) * size / made).
    """
    rank = len(sizes)
    lead = x.shape[: x.dim() - rank]
    counts = tuple(past - start for start, past in rows)
    values = x.new_empty(*lead, *counts)
    indices = torch.empty(values.shape, dtype=torch.int64, device=x.device)
    for place in product(*(range(count) for count in counts)):
        window, starts = x, []
        for k, position in enumerate(place):
            row = rows[k][0] + position
            start = row * sizes[k] // made[k] - first[k]
            past = -(-(row + 1) * sizes[k] // made[k]) - first[k]
            window = window.narrow(len(lead) + k, start, past - start)
            starts.append(start + first[k])
        best, flat = window.flatten(-rank).max(-1)
        where = torch.Size(place)
        values[..., *where] = best
        indices[..., *where] = _moved(flat, window.shape[-rank:], [0] * rank, starts, sizes)
    return values, indices


def max_pool_backward(
    gradient: Tensor,
    indices: Tensor,
    shape: Sequence[int],
    first: Sequence[int],
    sizes: Sequence[int],
) -> Tensor:
    """Gradients put where their maximum was, in rows of `shape` that begin at `first`."""
    rank = len(sizes)
    local = _moved(indices, sizes, first, [0] * rank, shape[-rank:])
    made = gradient.new_zeros(*shape)
    made.flatten(-rank).scatter_add_(-1, local.flatten(-rank), gradient.flatten(-rank))
    return made


def _moved(
    index: Tensor,
    sizes: Sequence[int],
    first: Sequence[int],
    new_first: Sequence[int],
    new_sizes: Sequence[int],
) -> Tensor:
    """Flat positions in a plane of `sizes` counted anew in one of `new_sizes`.

    Position `first` of the one is position `new_first` of the other. A maximum
    of -inf among the rows beyond the border counts as one at the border.
    """
    if list(sizes) == list(new_sizes) and list(first) == list(new_first):
        return index
    result = torch.zeros_like(index)
    for rest, size, begin, new_begin, new_size in _strides(sizes, first, new_first, new_sizes):
        place = index.div(rest, rounding_mode="floor").remainder_(size)
        place.add_(new_begin - begin).clamp_(0, new_size - 1)
        result.mul_(new_size).add_(place)
    return result


def _strides(
    sizes: Sequence[int], first: Sequence[int], new_first: Sequence[int], new_sizes: Sequence[int]
) -> Iterator[tuple[int, int, int, int, int]]:
    rest = 1
    found = []
    for k in reversed(range(len(sizes))):
        found.append((rest, sizes[k], first[k], new_first[k], new_sizes[k]))
        rest *= sizes[k]
    return reversed(found)
