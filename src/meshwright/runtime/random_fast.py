"""Draws of the device's own generator, for `rng="fast"`: quick, and other numbers for each plan.

The generator is seeded anew for each draw, from the seed, the op, the step, the
microbatch and the part that the device holds. So replicas of a part draw alike,
parts differ, and a draw made again is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meshwright.layout.types import Split

Cuts = Sequence[tuple[Split, int, int, int]]  # as returned by `layout.types.cuts`


def fast_draw(
    kind: str,
    args: Sequence[Any],
    shape: tuple[int, ...],
    cuts: Cuts,
    key: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """One random op of the Program on this device's part of a tensor of `shape`."""
    if args and isinstance(args[0], Tensor):
        device = args[0].device
    generator = torch.Generator(device)
    generator.manual_seed(_seed(key, cuts))
    local = _local(shape, cuts)
    if kind == "native_dropout":
        x, probability, *train = args
        if train and not train[0]:
            return x.clone(), torch.ones_like(x, dtype=torch.bool)
        mask = torch.empty(local, dtype=torch.bool, device=device)
        mask.bernoulli_(1 - probability, generator=generator)
        scale = 0.0 if probability == 1 else 1 / (1 - probability)
        return (x * mask).mul_(scale), mask
    if kind in ("randn_like", "randn"):
        return torch.randn(local, dtype=dtype, device=device, generator=generator)
    if kind in ("rand_like", "rand"):
        return torch.rand(local, dtype=dtype, device=device, generator=generator)
    if kind == "bernoulli_p":
        return torch.empty(local, dtype=dtype, device=device).bernoulli_(
            args[1], generator=generator
        )
    assert kind == "bernoulli", kind
    return torch.bernoulli(args[0], generator=generator).to(dtype)


def _seed(key: tuple[int, ...], cuts: Cuts) -> int:
    part = [(split.dim, split.outer, split.extent, parts, index) for split, parts, index, _ in cuts]
    digest = hashlib.blake2b(repr((key, part)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _local(shape: tuple[int, ...], cuts: Cuts) -> tuple[int, ...]:
    sizes = list(shape)
    for split, parts, index, extent in cuts:
        count = Split(split.dim, split.outer, extent).part(index, parts)[1]
        sizes[split.dim] = sizes[split.dim] // extent * count if extent else 0
    return tuple(sizes)
