"""Attention over a cut sequence, block by block: the functions behind `mesh.attention*`.

Queries stay where they are; keys and values are either all here (gathered), or
come as one block at a time (a ring; Liu et al., "Ring attention with blockwise
transformers", 2023). A block's output is joined to what was there by the
logarithms of the sums of exponentials (Milakov and Gimelshein, "Online
normalizer calculation for softmax", 2018). Given the global output and
logarithm, the backward of a block gives its terms of the gradients.

Which keys a causal query may see is found from positions, so that any cut is
right. Two are fast: contiguous parts, where blocks are seen whole, up to the
diagonal or not at all, and stripes (position i on device i mod n), where every
block is a square on or just below the diagonal, which is the same work for all
(Brandon et al., "Striped attention", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Cuts = tuple[tuple[int, int, int, int], ...]
"""(outer, extent, parts, index) of each cut of the sequence, in the order they apply."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Block(NamedTuple):
    """Some keys, and which of them queries see.

    kind: all of them; `diagonal`: query i sees keys up to i; `below`: keys before i;
    `masked`: as `mask` [queries, keys] says.
    keys: where they stand in the whole sequence, as (start, stop, step) where that will do.
    """

    kind: Literal["whole", "diagonal", "below", "masked"]
    keys: tuple[int, int, int] | Tensor
    mask: Tensor | None = None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    size: int,
    cuts: Sequence[Sequence[int]],
    scale: float | None,
    is_causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """Causal attention of the queries [B, H, s, D] held here to all keys [B, H, S, D].

    size: S. cuts: which positions the queries have. Gives the output and the
    logarithms of the sums of exponentials [B, H, s].
    """
    out, lse = _nothing(query, value)
    for block in _blocks(size, _frozen(cuts)):
        made = _forward(query, _pick(key, block), _pick(value, block), block, None, scale)
        out, lse = _joined(out, lse, *made)
    return out.to(query.dtype), lse


def attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    size: int,
    cuts: Sequence[Sequence[int]],
    scale: float | None,
    is_causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the queries, and this device's terms of those of all keys and values."""
    grads = [torch.zeros_like(x, dtype=lse.dtype) for x in (query, key, value)]
    for block in _blocks(size, _frozen(cuts)):
        terms = _backward(
            gradient, query, _pick(key, block), _pick(value, block), out, lse, block, None, scale
        )
        grads[0] += terms[0]
        for whole, term in zip(grads[1:], terms[1:], strict=True):
            if isinstance(block.keys, Tensor):
                whole.index_add_(2, block.keys.to(whole.device), term.to(whole.dtype))
            else:
                _pick(whole, block).add_(term)
    return grads[0].to(query.dtype), grads[1].to(key.dtype), grads[2].to(value.dtype)


def ring_pack(key: Tensor, value: Tensor, count: int) -> Tensor:
    """[B, H, s, D], [B, H, s, E] -> [B, H, count, D + E]: one message, padded to one size."""
    return _padded(torch.cat((key, value), -1), count)


def ring_unpack(packed: Tensor, count: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inverse of `ring_pack` for `count` keys of `width`."""
    here = packed[:, :, :count].to(dtype)
    return here[..., :width].contiguous(), here[..., width:].contiguous()


def attention_step(
    query: Tensor,
    packed: Tensor,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    *,
    size: int,
    mine: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
    scale: float | None,
    is_causal: bool,
    last: bool,
) -> tuple[Tensor, Tensor]:
    """One block of a ring joined to what earlier ones gave (in the precision of `lse`).

    mask: rows of the queries held here, all columns (or one that stands for all).
    last: whether no block follows; rows that have seen no key then get the logarithm
    0, as PyTorch gives them.
    """
    width = query.shape[-1]
    key, value = packed[..., :width], packed[..., width:]
    block = _block(size, _frozen(mine), _frozen(theirs), is_causal)
    if out is None or lse is None:
        out, lse = _nothing(query, value)
    if block is not None:
        theirs_at = positions(size, _frozen(theirs))
        key, value = key[:, :, : theirs_at.numel()], value[:, :, : theirs_at.numel()]
        here = _columns(mask, theirs_at)
        out, lse = _joined(out, lse, *_forward(query, key, value, block, here, scale))
    return out, lse.masked_fill(lse == -torch.inf, 0) if last else lse


def attention_step_backward(
    gradient: Tensor,
    query: Tensor,
    packed: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None = None,
    grad_query: Tensor | None = None,
    grad_packed: Tensor | None = None,
    *,
    size: int,
    mine: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
    scale: float | None,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """The terms of one block added to the gradients so far, those of the block packed alike."""
    if grad_query is None:
        grad_query = torch.zeros_like(query, dtype=lse.dtype)
    if grad_packed is None:
        grad_packed = torch.zeros_like(packed, dtype=lse.dtype)
    block = _block(size, _frozen(mine), _frozen(theirs), is_causal)
    if block is None:
        return grad_query, grad_packed
    width = query.shape[-1]
    key, value = packed[..., :width], packed[..., width:]
    theirs_at = positions(size, _frozen(theirs))
    key, value = key[:, :, : theirs_at.numel()], value[:, :, : theirs_at.numel()]
    here = _columns(mask, theirs_at)
    terms = _backward(gradient, query, key, value, out, lse, block, here, scale)
    packed_terms = _padded(torch.cat(terms[1:], -1), packed.shape[2])
    return grad_query + terms[0], grad_packed + packed_terms


@lru_cache(maxsize=4096)
def positions(size: int, cuts: Cuts) -> Tensor:
    """Positions in a sequence of `size` of what a device holds, in its own order."""
    held = torch.arange(size)
    left: dict[tuple[int, int], int] = {}
    for outer, extent, parts, index in cuts:
        remaining = left.get((outer, extent), extent)
        step = -(-remaining // parts)
        start = min(index * step, remaining)
        count = min(step, remaining - start)
        left[outer, extent] = count
        held = held.view(outer, remaining, -1)[:, start : start + count].reshape(-1)
    return held


def _frozen(cuts: Sequence[Sequence[int]]) -> Cuts:
    return tuple((outer, extent, parts, index) for outer, extent, parts, index in cuts)


@lru_cache(maxsize=4096)
def _blocks(size: int, cuts: Cuts) -> tuple[Block, ...]:
    """All keys as blocks: one a device, those that every query sees whole joined."""
    found: list[Block] = []
    for indices in product(*(range(parts) for _, _, parts, _ in cuts)):
        theirs = tuple(
            (outer, extent, parts, index)
            for (outer, extent, parts, _), index in zip(cuts, indices, strict=True)
        )
        block = _block(size, cuts, theirs, True)
        if block is None:
            continue
        last = found[-1] if found else None
        if (
            last is not None
            and last.kind == block.kind == "whole"
            and not isinstance(last.keys, Tensor)
            and not isinstance(block.keys, Tensor)
            and last.keys[2] == block.keys[2] == 1
            and last.keys[1] == block.keys[0]
        ):
            found[-1] = Block("whole", (last.keys[0], block.keys[1], 1))
        else:
            found.append(block)
    return tuple(found)


@lru_cache(maxsize=4096)
def _block(size: int, mine: Cuts, theirs: Cuts, is_causal: bool) -> Block | None:
    """What queries at `mine` see of the keys at `theirs`; None for nothing."""
    rows, columns = positions(size, mine), positions(size, theirs)
    if not rows.numel() or not columns.numel():
        return None
    keys = _as_slice(columns)
    if not is_causal or int(columns.max()) <= int(rows.min()):
        return Block("whole", keys)
    if int(columns.min()) > int(rows.max()):
        return None
    seen = rows[:, None] >= columns[None, :]
    if rows.numel() == columns.numel():
        square = torch.ones_like(seen)
        if torch.equal(seen, square.tril()):
            return Block("diagonal", keys)
        if torch.equal(seen, square.tril(-1)):
            return Block("below", keys)
    return Block("masked", keys, seen)


def _as_slice(at: Tensor) -> tuple[int, int, int] | Tensor:
    if at.numel() == 1:
        return int(at[0]), int(at[0]) + 1, 1
    steps = at.diff()
    step = int(steps[0])
    if step > 0 and bool((steps == step).all()):
        return int(at[0]), int(at[-1]) + 1, step
    return at


def _pick(x: Tensor, block: Block) -> Tensor:
    """The keys of a block out of all of them; a view where it can be."""
    if isinstance(block.keys, Tensor):
        return x.index_select(2, block.keys.to(x.device))
    start, stop, step = block.keys
    return x[:, :, start:stop:step]


def _columns(mask: Tensor | None, at: Tensor) -> Tensor | None:
    if mask is None or mask.shape[-1] == 1:
        return mask
    return mask.index_select(-1, at.to(mask.device))


def _nothing(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output and logarithm of no keys at all."""
    dtype = torch.float64 if query.dtype is torch.float64 else torch.float32
    lse = query.new_full(query.shape[:3], -torch.inf, dtype=dtype)
    return query.new_zeros(*query.shape[:3], value.shape[-1], dtype=dtype), lse


def _joined(out: Tensor, lse: Tensor, more: Tensor, its: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.logaddexp(lse, its)
    about = both.masked_fill(both == -torch.inf, 0)  # a row that no key has been seen by yet
    first, second = torch.exp(lse - about), torch.exp(its - about)
    return out * first[..., None] + more * second[..., None], both


def _forward(
    query: Tensor, key: Tensor, value: Tensor, block: Block, mask: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and logarithm of one block; -inf for rows that see none of its keys."""
    if block.kind == "below":
        out, lse = _nothing(query, value)
        if query.shape[2] > 1 and query.numel():
            some, its = _flash(
                query[:, :, 1:], key[:, :, :-1], value[:, :, :-1], 0.0, True, scale=scale
            )
            out[:, :, 1:], lse[:, :, 1:] = some, its
        return out, lse
    if not query.numel() or not key.numel():
        return _nothing(query, value)
    if block.kind == "diagonal" and mask is None:
        made: tuple[Tensor, Tensor] = _flash(query, key, value, 0.0, True, scale=scale)
        return made
    mask = _with_seen(mask, block, query)
    out, lse = _flash(query, key, value, 0.0, False, attn_mask=mask, scale=scale)
    if mask is not None:
        blind = (mask == -torch.inf).all(-1)
        lse = lse.masked_fill(blind.view(*(1,) * (3 - blind.dim()), *blind.shape), -torch.inf)
    return out, lse


def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    block: Block, mask: Tensor | None, scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One block's terms of the gradients, from the global output and logarithm."""
    if not query.numel() or not key.numel() or (block.kind == "below" and query.shape[2] == 1):
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    if block.kind == "below":
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        below = _flash_backward(
            gradient[:, :, 1:], query[:, :, 1:], key[:, :, :-1], value[:, :, :-1], out[:, :, 1:],
            lse[:, :, 1:], 0.0, True, scale=scale,
        )  # fmt: skip
        grads[0][:, :, 1:], grads[1][:, :, :-1], grads[2][:, :, :-1] = below
        return grads[0], grads[1], grads[2]
    causal = block.kind == "diagonal" and mask is None
    made: tuple[Tensor, Tensor, Tensor] = _flash_backward(
        gradient, query, key, value, out, lse, 0.0, causal,
        attn_mask=None if causal else _with_seen(mask, block, query), scale=scale,
    )  # fmt: skip
    return made


def _with_seen(mask: Tensor | None, block: Block, query: Tensor) -> Tensor | None:
    """The given mask and the block's own as one that is added to the scores."""
    seen = block.mask
    if block.kind == "diagonal":
        count = query.shape[2]
        seen = torch.ones(count, count, dtype=torch.bool).tril_()
    if seen is None:
        return mask
    own = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
    own.masked_fill_(~seen.to(query.device), -torch.inf)
    return own if mask is None else mask + own


def _padded(x: Tensor, count: int) -> Tensor:
    """[B, H, s, D] -> [B, H, count, D], zeros at the end."""
    if x.shape[2] == count:
        return x.contiguous()
    result = x.new_zeros(*x.shape[:2], count, x.shape[3])
    result[:, :, : x.shape[2]] = x
    return result
