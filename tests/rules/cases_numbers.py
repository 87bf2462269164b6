"""Cases of pointwise ops, reductions, order statistics, losses and matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rules.rule_cases import aten, case, computed, flags, n, normal, positive, t, unit, words

for name in words("""exp2 i0 isneginf isposinf deg2rad rad2deg zero special_entr special_erfcx
    special_i0e special_i1 special_i1e special_log_ndtr special_modified_bessel_i0
    special_modified_bessel_i1 special_bessel_j0 special_bessel_j1 special_spherical_bessel_j0
    special_airy_ai celu log_sigmoid_forward"""):
    case(f"{name}.default", t(6, 5))
for name in words("""special_bessel_y0 special_bessel_y1 special_modified_bessel_k0
    special_modified_bessel_k1 special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1 special_ndtri"""):
    case(f"{name}.default", t(6, 5, of=unit))
case("threshold.default", t(6, 5), 0.1, 2.0)
case("polygamma.default", 1, t(6, 5, of=positive))
case("mvlgamma.default", lambda: positive(6, 5) + 2, 2)
case("to.dtype", t(6, 5), torch.float64)
case("round.decimals", t(6, 5), decimals=1)
case("fill.Scalar", t(6, 5), 2.0)
case("fill.Tensor", t(6, 5), lambda: torch.tensor(2.0))
for name in words("fmax fmin logaddexp2 logical_xor nextafter complex"):
    case(f"{name}.default", t(6, 5), t(6, 5))
for name in words("igamma igammac polar floor_divide special_xlog1py"):
    case(f"{name}.default", t(6, 5, of=positive), t(6, 5, of=positive))
case("special_zeta.default", lambda: positive(6, 5) + 1.5, t(5, of=positive))
for name in words("gcd lcm"):
    case(f"{name}.default", lambda: torch.randint(1, 9, (6, 5)), lambda: torch.randint(1, 9, (5,)))
for name in words("clamp_min clamp_max ldexp"):
    case(f"{name}.Tensor", t(6, 5), t(5))
case("clamp.Tensor", t(6, 5), t(5), t(6, 1))
case("clamp.Tensor", t(6, 5), None, t(6, 1), note="from above")
for name in words("bitwise_left_shift bitwise_right_shift __lshift__ __rshift__"):
    case(f"{name}.Tensor", n(9, 6, 5), n(3, 5))
for name in words("__lshift__ __rshift__ bitwise_xor"):
    case(f"{name}.Scalar", n(9, 6, 5), 2)
for name in words("bitwise_left_shift bitwise_right_shift"):
    case(f"{name}.Tensor_Scalar", n(9, 6, 5), 2)
case("fmod.Scalar", t(6, 5), 0.7)
case("div.Scalar_mode", t(6, 5), 0.7, rounding_mode="floor")
case("xlogy.Scalar_Other", t(6, 5), 2.0)
case("xlogy.Scalar_Self", 2.0, t(6, 5, of=positive))
case("special_xlog1py.other_scalar", t(6, 5), 2.0)
case("special_xlog1py.self_scalar", 2.0, t(6, 5, of=positive))
case("isin.Tensor_Scalar", n(4, 6, 5), 2)
case("isin.Tensor_Tensor", n(4, 6, 5), lambda: torch.tensor([1, 3, 5]))
case("bucketize.Tensor", t(6, 5), lambda: torch.linspace(-1, 1, 4))
case("log_sigmoid_backward.default", t(6, 5), t(6, 5), t(6, 5))
case("rrelu_with_noise_backward.default", t(6, 5), t(6, 5), t(6, 5, of=unit), 0.1, 0.3, True, False)

# Reductions, over cut dims too.
for name in words("var std var_mean std_mean"):
    case(f"{name}.correction", t(6, 5, 4), [0, 2], correction=0, note="two dims")
    case(f"{name}.correction", t(6, 5), note="all dims")
case("std_mean.correction", t(4, 6), [1], correction=1, keepdim=True)
for order in (1.0, 3.0, 0.0, float("inf"), float("-inf")):
    case("linalg_vector_norm.default", t(5, 6), order, [0], True, note=f"order {order}")
case("norm.Scalar", t(6, 5), 3)
case("norm.ScalarOpt_dim", t(6, 5), 2, [0])
case("norm.ScalarOpt_dtype", t(6, 5), 2, dtype=torch.float64)
case("norm.ScalarOpt_dim_dtype", t(6, 5), 1, [1], True, dtype=torch.float64)
case("logsumexp.default", t(6, 5, 4), [0, 1], True, note="two dims")


def _endless() -> tuple[Any, ...]:
    x = normal(6, 5)
    x[2] = float("-inf")
    return x, [1]


computed("logsumexp.default", _endless, note="a row of nothing")


def _ties(*shape: int) -> Tensor:
    return torch.randint(3, shape).float()


for name in words("max min"):
    case(f"{name}.dim", lambda: _ties(6, 5), 0, note="ties")
    case(f"{name}.dim", n(9, 6, 5), -1, True, note="whole numbers")
for name in words("argmax argmin"):
    case(f"{name}.default", lambda: _ties(5, 6), 0, True, note="ties")
for name in words("sum mean prod amax"):
    case(f"{name}.default", t(), note="one number")
case("nansum.default", t(6, 5), [0], True)
case("nansum.default", t(6, 5), note="all dims")
case("count_nonzero.default", n(2, 6, 5))
case("count_nonzero.dim_IntList", n(2, 6, 5), [1])
case("all.dims", t(6, 5, 4, of=flags), [0, 2])
case("aminmax.default", t(6, 5), dim=1, keepdim=True)
case("aminmax.default", t(6, 5), note="all dims")
case("dist.default", t(6, 5), t(5), 2)
case("renorm.default", t(6, 5, 4), 2, 1, 1.0)
for name in words("cumsum cumprod logcumsumexp"):
    case(f"{name}.default", t(5, 6), 0, note="first dim")
    case(f"{name}.default", t(7), -1, note="vector")
case("cumsum.default", n(5, 6, 5), 1, note="whole numbers")
case("cumsum.default", t(6, 5), 0, dtype=torch.float64, note="in double")
for name in words("cummax cummin"):
    case(f"{name}.default", t(6, 5), 1)

# Order statistics.
case("sort.stable", t(6, 5), stable=True, dim=0)
case("argsort.default", t(6, 5), 0)
case("argsort.stable", t(6, 5), stable=True, dim=1)
case("kthvalue.default", t(6, 5), 2, 0)
case("kthvalue.default", t(6, 5), 2, 1, True, note="keepdim")
for name in words("median nanmedian"):
    case(f"{name}.default", t(6, 5))
    case(f"{name}.dim", t(6, 5), 1)
case("mode.default", n(3, 6, 5), 0, True)
case("searchsorted.Tensor", lambda: torch.linspace(-1, 1, 4), t(6, 5))
case("searchsorted.Tensor", lambda: normal(6, 4).sort(-1).values, t(6, 5), right=True,
     note="rows")  # fmt: skip
case("histc.default", t(6, 5), 4, -1, 1)
case("histc.default", t(6, 5), 4, note="bounds of the data")

# Matrix products and what is built of them.
case("addmv.default", t(6), t(6, 4), t(4), beta=0.5, alpha=2.0)
case("addr.default", t(6, 5), t(6), t(5))
case("addbmm.default", t(3, 5), t(6, 3, 4), t(6, 4, 5), beta=0.5, alpha=2.0)
case("_trilinear.default", t(6, 4), t(3, 4, 5), t(6, 5), [1, 3], [0], [1, 2], [2, 3])
for name in words("_cdist_forward _euclidean_dist"):
    mode = () if name == "_euclidean_dist" else (2.0, None)
    case(f"{name}.default", t(2, 6, 4), t(2, 5, 4), *mode)


def _cdist_backward() -> tuple[Any, ...]:
    x, y = normal(2, 6, 4), normal(2, 5, 4)
    made = aten._cdist_forward(x, y, 2.0, None)
    return torch.randn_like(made), x, y, 2.0, made


computed("_cdist_backward.default", _cdist_backward)


case("_pdist_forward.default", t(6, 4), 2.0)


def _pdist_backward() -> tuple[Any, ...]:
    x = normal(6, 4)
    made = aten._pdist_forward(x, 2.0)
    return torch.randn_like(made), x, 2.0, made


computed("_pdist_backward.default", _pdist_backward)


# Losses.
for reduction in (0, 1, 2):
    note = ("none", "mean", "sum")[reduction]
    grad = t(6) if reduction == 0 else t()
    case("multi_margin_loss.default", t(6, 5), n(5, 6), 1, 1.0, None, reduction, note=note)
    case("multi_margin_loss.default", t(6, 5), n(5, 6), 2, 1.0, t(5, of=positive), reduction,
         note=f"{note} weighted")  # fmt: skip
    case("multi_margin_loss_backward.default", grad, t(6, 5), n(5, 6), 1, 1.0, None, reduction,
         note=note)  # fmt: skip

    def _labels() -> Tensor:
        return torch.tensor([[1, 2, -1, 0, 0]] * 6)

    def _multilabel(reduction: int = reduction) -> tuple[Any, ...]:
        x = normal(6, 5)
        loss, found = aten.multilabel_margin_loss_forward(x, _labels(), reduction)
        return torch.randn_like(loss), x, _labels(), reduction, found

    case("multilabel_margin_loss_forward.default", t(6, 5), _labels, reduction, note=note)
    computed("multilabel_margin_loss_backward.default", _multilabel, note)
