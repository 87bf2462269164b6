"""Cases of ops whose spatial dims are cut with the rows that windows reach.

Sizes are uneven on purpose: parts of unlike size, parts that are empty, windows
that reach beyond the next device, dims of one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rules.rule_cases import aten, case, computed, normal, t


@dataclass(frozen=True)
class Shape:
    """A convolution: sizes of the input, then the numbers of each spatial dim."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    more: int = 0
    groups: int = 1
    bias: bool = True

    def numbers(self, given: int | tuple[int, ...]) -> list[int]:
        return [given] * len(self.size) if isinstance(given, int) else list(given)


def convolution(it: Shape, transposed: bool) -> tuple[Any, ...]:
    data, made = 2 * it.groups, 3 * it.groups
    kernel = (data, 3) if transposed else (made, 2)
    return (
        normal(2, data, *it.size), normal(*kernel, *it.kernel), normal(made) if it.bias else None,
        it.numbers(it.stride), it.numbers(it.padding), it.numbers(it.dilation), transposed,
        it.numbers(it.more), it.groups,
    )  # fmt: skip


def convolution_backward(it: Shape, transposed: bool) -> tuple[Any, ...]:
    x, weight, bias, *rest = convolution(it, transposed)
    out = aten.convolution(x, weight, bias, *rest)
    sizes = [out.shape[1]] if it.bias else None
    return normal(*out.shape), x, weight, sizes, *rest, [True, True, it.bias]


CONVOLUTIONS = {
    "1d": Shape((7,), (3,), padding=1),
    "1d far": Shape((9,), (3,), padding=4, dilation=4),
    "1d even kernel": Shape((8,), (4,), padding=2, bias=False),
    "1d wide": Shape((5,), (7,), padding=3),
    "2d strided": Shape((9, 8), (3, 3), stride=2, padding=1),
    "2d asymmetric": Shape((5, 7), (2, 3), stride=(2, 1), padding=(0, 2)),
    "2d groups": Shape((6, 5), (3, 3), padding=1, groups=2),
    "2d patches": Shape((8, 12), (4, 4), stride=4),
    "2d rows left out": Shape((8, 7), (2, 1), stride=3),
    "2d points": Shape((5, 4), (1, 1)),
    "2d few rows": Shape((5, 9), (3, 3), stride=2, bias=False),
    "2d one row": Shape((3, 6), (3, 3), padding=(0, 1)),
    "3d": Shape((5, 4, 6), (3, 3, 3), stride=(2, 1, 2), padding=1),
}
TRANSPOSED = {
    "1d": Shape((5,), (2,), stride=2),
    "1d gaps": Shape((4,), (1,), stride=3, more=2),
    "2d": Shape((4, 5), (4, 4), stride=2, padding=1),
    "2d more": Shape((4, 3), (3, 3), stride=2, padding=1, more=1, bias=False),
    "2d groups": Shape((3, 4), (3, 2), stride=(1, 2), padding=(1, 0), groups=2),
    "2d far": Shape((5, 6), (3, 3), padding=2, dilation=3),
    "3d": Shape((3, 4, 2), (2, 2, 2), stride=2),
}
for transposed, shapes in ((False, CONVOLUTIONS), (True, TRANSPOSED)):
    for name, it in shapes.items():
        note = f"spatial {name}{' transposed' if transposed else ''}"
        computed("convolution.default", lambda it=it, tr=transposed: convolution(it, tr), note)
        computed(
            "convolution_backward.default",
            lambda it=it, tr=transposed: convolution_backward(it, tr),
            note,
        )  # fmt: skip
computed(
    "convolution_backward.default",
    lambda: (
        *convolution_backward(Shape((5, 6), (3, 3), padding=1), False)[:-1],
        [False, True, True],
    ),
    "spatial without the input",
)

# (sizes, kernel, stride, padding, dilation, ceil mode)
MAX_POOLS: dict[str, tuple[Any, ...]] = {
    "2d": ((8, 6), [2, 2], [2, 2], [0, 0], [1, 1], False),
    "2d overlapping": ((9, 7), [3, 3], [2, 2], [1, 1], [1, 1], False),
    "2d dilated": ((9, 8), [2, 3], [1, 2], [0, 1], [3, 2], False),
    "2d ceil": ((8, 7), [3, 3], [2, 2], [0, 0], [1, 1], True),
    "2d flat": ((1, 9), [1, 2], [1, 2], [0, 0], [1, 1], False),
    "3d": ((5, 4, 6), [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], True),
}


def max_pool_backward(size: Sequence[int], *rest: Any) -> tuple[Any, ...]:
    x = normal(2, 3, *size)
    pool = getattr(aten, f"max_pool{len(size)}d_with_indices")
    out, indices = pool(x, *rest)
    return normal(*out.shape), x, *rest, indices


for name, (size, *rest) in MAX_POOLS.items():
    target = f"max_pool{len(size)}d_with_indices"
    case(f"{target}.default", t(2, 3, *size), *rest, note=f"spatial {name}")
    computed(
        f"{target}_backward.default",
        lambda size=size, rest=rest: max_pool_backward(size, *rest),
        f"spatial {name}",
    )
case("max_pool2d_with_indices.default", t(3, 6, 4), [2, 2], note="without batch")

AVERAGE_POOLS: dict[str, tuple[Any, ...]] = {
    "2d": ((8, 6), [2, 2], [2, 2], [0, 0], False, True, None),
    "2d padded": ((9, 7), [3, 3], [2, 2], [1, 1], False, True, None),
    "2d without padding": ((9, 7), [3, 3], [2, 2], [1, 1], True, False, None),
    "2d ceil": ((8, 7), [3, 2], [2, 3], [1, 0], True, True, None),
    "2d divisor": ((8, 7), [3, 3], [1, 1], [1, 1], False, True, 5),
    "2d global": ((6, 5), [6, 5], [1, 1], [0, 0], False, True, None),
    "3d": ((5, 4, 6), [2, 2, 2], [2, 2, 2], [0, 0, 0], False, True, None),
}
for name, (size, *rest) in AVERAGE_POOLS.items():
    target = f"avg_pool{len(size)}d"
    made = getattr(aten, target)(torch.zeros(2, 3, *size), *rest).shape
    case(f"{target}.default", t(2, 3, *size), *rest, note=f"spatial {name}")
    case(f"{target}_backward.default", t(*made), t(2, 3, *size), *rest, note=f"spatial {name}")

for size, made in (((7, 5), [3, 2]), ((4, 9), [6, 3]), ((6, 5), [1, 5]), ((5, 4, 6), [2, 3, 4])):
    target, note = f"adaptive_avg_pool{len(size)}d", f"spatial {size}"
    case(f"_{target}.default", t(2, 3, *size), made, note=note)
    case(f"_{target}_backward.default", t(2, 3, *made), t(2, 3, *size), note=note)


def adaptive_max_pool_backward(size: Sequence[int], made: list[int]) -> tuple[Any, ...]:
    x = normal(2, 3, *size)
    out, indices = getattr(aten, f"adaptive_max_pool{len(size)}d")(x, made)
    return normal(*out.shape), x, indices


for size, made in (((7, 5), [3, 2]), ((4, 9), [6, 3]), ((6, 5), [1, 4]), ((5, 4, 6), [2, 3, 4])):
    target, note = f"adaptive_max_pool{len(size)}d", f"spatial {size}"
    case(f"{target}.default", t(2, 3, *size), made, note=note)
    computed(
        f"{target}_backward.default",
        lambda size=size, made=made: adaptive_max_pool_backward(size, made),
        note,
    )

UPSAMPLES = {
    "upsample_nearest": (1, 2, 3),
    "_upsample_nearest_exact": (1, 2, 3),
    "upsample_linear": (1,),
    "upsample_bilinear": (2,),
    "upsample_bicubic": (2,),
    "upsample_trilinear": (3,),
}
SIZES = {
    "uneven": ((5, 3, 4), (7, 8, 9)),
    "smaller": ((9, 7, 5), (4, 3, 2)),
    "from one": ((1, 5, 1), (6, 7, 3)),
    "to one": ((6, 5, 3), (1, 4, 1)),
}
for target, ranks in UPSAMPLES.items():
    for rank in ranks:
        for name, (small, large) in SIZES.items():
            aligned = (False, True) if name in ("uneven", "to one") else (False,)
            for corners in (None,) if "nearest" in target else aligned:
                flags = [] if corners is None else [corners]
                scales = [None] * rank
                note = f"spatial {name}{' corners' if corners else ''}"
                size, made = list(small[:rank]), list(large[:rank])
                case(f"{target}{rank}d.default", t(2, 3, *size), made, *flags, *scales, note=note)
                case(
                    f"{target}{rank}d_backward.default", t(2, 3, *made), made, [2, 3, *size],
                    *flags, *scales, note=note,
                )  # fmt: skip
for target, flags in (("upsample_nearest2d", []), ("upsample_bilinear2d", [False])):
    case(f"{target}.default", t(2, 3, 5, 6), [7, 9], *flags, 1.5, 1.5, note="spatial scaled")
    case(
        f"{target}_backward.default", t(2, 3, 7, 9), [7, 9], [2, 3, 5, 6], *flags, 1.5, 1.5,
        note="spatial scaled",
    )  # fmt: skip

for kind in ("reflection", "replication"):
    for rank, amounts in ((1, [2, 1]), (2, [1, 2, 3, 0]), (3, [1, 1, 2, 1, 0, 2])):
        size = (5, 6, 4)[:rank]
        made = [n + sum(amounts[2 * (rank - 1 - k) :][:2]) for k, n in enumerate(size)]
        target = f"{kind}_pad{rank}d"
        case(f"{target}.default", t(2, 3, *size), amounts, note="spatial")
        case(f"{target}_backward.default", t(2, 3, *made), t(2, 3, *size), amounts, note="spatial")

for amounts, note in (
    ([1, 2], "last"), ([0, 0, 2, 1], "rows"), ([1, 1, 3, 0], "both"), ([-1, -2, -1, 2], "crop"),
    ([1, -1], "shift"),
):  # fmt: skip
    case("constant_pad_nd.default", t(2, 3, 5, 6), amounts, 0.5, note=f"spatial {note}")
case("constant_pad_nd.default", t(2, 3, 7), [2, 0], note="spatial 1d")

case("slice.Tensor", t(2, 3, 9, 4), 2, 1, 8, note="spatial crop")
case("slice.Tensor", t(2, 3, 9, 4), 2, 1, 9223372036854775807, 2, note="spatial every other")
case("slice.Tensor", t(2, 3, 9), 2, 0, 8, note="spatial signal")
case("slice_backward.default", t(2, 3, 8), [2, 3, 9], 2, 0, 8, 1, note="spatial signal")
case("slice_backward.default", t(2, 3, 7, 4), [2, 3, 9, 4], 2, 1, 8, 1, note="spatial crop")
case("slice_backward.default", t(2, 3, 4, 4), [2, 3, 9, 4], 2, 1, 9, 2, note="spatial every other")


def group_norm(size: tuple[int, ...], groups: int, affine: bool) -> tuple[Any, ...]:
    n, channels, *rest = size
    vectors = (normal(channels), normal(channels)) if affine else (None, None)
    return normal(*size), *vectors, n, channels, math.prod(rest), groups, 1e-5


def group_norm_backward(size: tuple[int, ...], groups: int, affine: bool) -> tuple[Any, ...]:
    x, weight, bias, *numbers = group_norm(size, groups, affine)
    _, mean, rstd = aten.native_group_norm(x, weight, bias, *numbers)
    return normal(*x.shape), x, mean, rstd, weight, *numbers[:-1], [True, affine, affine]


def layer_norm(size: tuple[int, ...], dims: int, affine: bool) -> tuple[Any, ...]:
    tail = size[-dims:]
    vectors = (normal(*tail), normal(*tail)) if affine else (None, None)
    return normal(*size), list(tail), *vectors, 1e-5


def layer_norm_backward(size: tuple[int, ...], dims: int, affine: bool) -> tuple[Any, ...]:
    x, tail, weight, bias, eps = layer_norm(size, dims, affine)
    _, mean, rstd = aten.native_layer_norm(x, tail, weight, bias, eps)
    return normal(*x.shape), x, tail, mean, rstd, weight, bias, [True, affine, affine]


for size, count, affine in (
    ((2, 6, 5, 3), 3, True),
    ((3, 4, 5), 4, False),
    ((2, 4, 3, 2, 3), 2, True),
):
    note = f"spatial {size}"
    for target, make in (("", group_norm), ("_backward", group_norm_backward)):
        computed(
            f"native_group_norm{target}.default",
            lambda size=size, count=count, affine=affine, make=make: make(size, count, affine),
            note,
        )
for size, count, affine in (((2, 3, 5, 4), 3, True), ((4, 3, 5), 2, False), ((3, 5), 2, True)):
    note = f"spatial {size}"
    for target, make in (("", layer_norm), ("_backward", layer_norm_backward)):
        computed(
            f"native_layer_norm{target}.default",
            lambda size=size, count=count, affine=affine, make=make: make(size, count, affine),
            note,
        )
