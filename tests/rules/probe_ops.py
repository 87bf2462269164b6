"""Ops of a user's own, as `torch.library` registers them, that rules must be found for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LIBRARY = "probed"


def _op(name: str, function: object, mutates: tuple[str, ...] = ()) -> None:
    made = torch.library.custom_op(f"{LIBRARY}::{name}", function, mutates_args=mutates)
    made.register_fake(function)


def scale(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.t()


def peak(x: Tensor) -> Tensor:
    return x.amax(-1)


def square(x: Tensor, y: Tensor) -> Tensor:
    return x @ y


def heads(x: Tensor, count: int) -> Tensor:
    parts = x.view(*x.shape[:-1], count, -1)
    return parts.softmax(-1).reshape(x.shape)


def flat(x: Tensor) -> Tensor:
    return torch.tanh(x).reshape(-1, x.shape[-1]).clone()


def table(weight: Tensor, index: Tensor) -> Tensor:
    return weight[index]


def shaped(x: Tensor, size: list[int]) -> Tensor:
    return x.clone().reshape(size)


def widened(x: Tensor, width: int) -> Tensor:
    return x.sum(-1, keepdim=True).expand(*x.shape[:-1], width).clone()


def gated(x: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return F.silu(one) * two


def clipped(x: Tensor) -> Tensor:
    return x / x.norm().clamp(min=50.0)


def sorted_rows(x: Tensor) -> Tensor:
    return x.sort(-1).values.clone()


def tangled(x: Tensor) -> Tensor:
    return torch.fft.fftn(x).real.clone()


def several(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x + y, (x * y).sum(0)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.transpose(-1, -2)) * 0.3).softmax(-1) @ v


def moved(x: Tensor) -> Tensor:
    return x.transpose(0, 1).clone()


def big_only(x: Tensor) -> Tensor:
    if x.shape[-1] % 128:
        raise RuntimeError("the last dim has to be a multiple of 128")
    return x * 2


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv1d(x, weight, padding=1)


def scattered(x: Tensor, index: Tensor, rows: int) -> Tensor:
    return x.new_zeros(rows, x.shape[1]).index_add(0, index, x)


def some(x: Tensor) -> Tensor:
    return (x > 1.5).any(-1)


def gram(x: Tensor) -> Tensor:
    return x @ x.t()


def broken(x: Tensor) -> Tensor:
    raise RuntimeError("no kernel for these sizes")


for _name in (
    "scale", "norm", "product", "peak", "square", "heads", "flat", "table", "shaped", "widened",
    "gated", "clipped", "sorted_rows", "tangled", "several", "attention", "moved", "big_only",
    "broken", "convolved", "scattered", "some", "gram",
):  # fmt: skip
    _op(_name, globals()[_name])

_library = torch.library.Library(LIBRARY, "FRAGMENT")
_library.define("noise(Tensor x) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_library.impl("noise", lambda x: x + torch.randn_like(x), "CompositeExplicitAutograd")
_library.define("unstable(Tensor x) -> Tensor")
_library.impl("unstable", lambda x: x + torch.randn_like(x), "CompositeExplicitAutograd")
