"""Which rows belong to which: windows and weights against PyTorch, and ranged factors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from meshwright.layout.types import Split
from meshwright.rules.resampling import Resampling, taps
from meshwright.rules.types import Factor, FactorCut, OpRule
from meshwright.rules.windows import Window

SIZES = [(4, 8), (5, 7), (9, 4), (33, 65), (17, 100), (100, 37), (6, 6), (224, 331), (1, 5), (7, 1)]


def weights_of(resampling: Resampling) -> torch.Tensor:
    """[made, size]"""
    found = torch.zeros(resampling.made, resampling.size)
    for row, (first, weights) in enumerate(taps(resampling)):
        for k, weight in enumerate(weights):
            found[row, first + k] += weight
    return found


def by_pytorch(rows: int, **options: Any) -> torch.Tensor:
    """What an interpolation makes of every unit vector: [made, size]."""
    unit = torch.eye(rows)[:, None]
    if options["mode"] == "bicubic":
        made = F.interpolate(unit[..., None], **options)[:, 0, :, 0]
    else:
        made = F.interpolate(unit, **options)[:, 0]
    return made.T


@pytest.mark.parametrize(("size", "made"), SIZES)
@pytest.mark.parametrize(
    ("kind", "mode", "corners"),
    [
        ("nearest", "nearest", None), ("exact", "nearest-exact", None),
        ("linear", "linear", False), ("linear", "linear", True),
        ("cubic", "bicubic", False), ("cubic", "bicubic", True),
    ],
)  # fmt: skip
def test_weights_are_those_of_pytorch(
    size: int, made: int, kind: str, mode: str, corners: bool | None
) -> None:
    options: dict[str, Any] = {} if corners is None else {"align_corners": corners}
    target = (made, 1) if mode == "bicubic" else made
    expected = by_pytorch(size, size=target, mode=mode, **options)
    flags = () if corners is None else (float(corners),)
    found = weights_of(Resampling(kind, size, made, (*flags, 0.0)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("scale", [1.5, 2.0, 0.37, 3.3, 0.75])
@pytest.mark.parametrize("size", [5, 12, 37, 101])
@pytest.mark.parametrize(("kind", "mode"), [("nearest", "nearest"), ("linear", "linear")])
def test_a_scale_that_is_given_decides(scale: float, size: int, kind: str, mode: str) -> None:
    expected = by_pytorch(size, scale_factor=scale, mode=mode)
    flags = (0.0,) if kind == "linear" else ()
    found = weights_of(Resampling(kind, size, expected.shape[0], (*flags, scale)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("size", "made"), SIZES)
def test_adaptive_means(size: int, made: int) -> None:
    expected = F.adaptive_avg_pool1d(torch.eye(size)[:, None], made)[:, 0].T
    torch.testing.assert_close(weights_of(Resampling("mean", size, made)), expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_a_window_reads_what_its_output_depends_on(
    transposed: bool, stride: int, kernel: int, dilation: int, padding: int
) -> None:
    size = 17
    window = Window(size, kernel, stride, padding, dilation, transposed)
    x = torch.zeros(1, 1, size, requires_grad=True)
    weight = torch.ones(1, 1, kernel)
    if transposed:
        y = F.conv_transpose1d(x, weight, None, stride, padding, dilation=dilation)
    else:
        y = F.conv1d(x, weight, None, stride, padding, dilation)
    made = y.shape[-1]
    for first, past in ((0, made), (0, 1), (made - 1, made), (2, 5), (3, 3)):
        (gradient,) = torch.autograd.grad(y[..., first:past].sum(), x, retain_graph=True)
        needed = gradient[0, 0].nonzero()[:, 0]
        low, high = window.reads((first, past))
        if first == past:
            assert low == high
            continue
        inside = range(max(low, 0), min(high, size))
        assert set(needed.tolist()) <= set(inside)
        if needed.numel() and stride <= kernel and dilation == 1:
            assert (inside.start, inside.stop) == (int(needed.min()), int(needed.max()) + 1)


def test_a_ranged_dim_is_cut_where_it_would_be_alone() -> None:
    """33 rows follow 17: one cut of the op, natural parts of each."""
    rule = OpRule(
        (Factor(2), Factor(17, "sum", ranged=1), Factor(33, "sum", ranged=1)),
        (((0,), (2,)),),
        (((0,), (1,)),),
    )  # fmt: skip
    cut = FactorCut(1, 1, 17)
    assert rule.to_factor(rule.operands[0], Split(1, 1, 33)) == cut
    assert rule.to_factor(rule.results[0] or (), Split(1, 1, 17)) == cut
    assert rule.to_split(rule.operands[0], cut) == Split(1, 1, 33)
    assert rule.to_split(rule.results[0] or (), cut) == Split(1, 1, 17)
    assert rule.to_factor(rule.operands[0], Split(1, 3, 11)) is None
    assert rule.to_factor(rule.operands[0], Split(1, 1, 11)) is None
    assert rule.to_factor(rule.operands[0], Split(0, 1, 2)) == FactorCut(0, 1, 2)
    assert not rule.reduces(0, 1)


def test_a_ranged_dim_takes_units_of_rows_that_lie_alike() -> None:
    rule = OpRule((Factor(24, ranged=0),), (((0,),),), (((0,),),))
    assert rule.to_factor(((0,),), Split(0, 1, 12), 4) == FactorCut(0, 1, 24)
    assert rule.to_factor(((0,),), Split(0, 1, 12), 5) is None
    assert rule.to_factor(((0,),), Split(0, 1, 12)) is None
