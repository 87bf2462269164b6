"""Pointwise ops: every dim passes through, sizes of 1 broadcast."""

from __future__ import annotations

from meshwright.rules.build import broadcast
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule

_UNARY = (
    "abs bitwise_not ceil clone contiguous cos elu erf exp expm1 floor gelu hardswish hardtanh "
    "isnan leaky_relu log log1p log2 logical_not reciprocal relu round rsqrt sigmoid sign silu "
    "sin softplus sqrt tanh zeros_like ones_like mish hardsigmoid isinf isfinite tan square erfinv "
    "sgn log10 erfc sinh cosh asin acos atan asinh acosh atanh lgamma digamma nan_to_num frac "
    "trunc hardshrink softshrink signbit sinc logit positive angle exp2 i0 isneginf isposinf "
    "deg2rad rad2deg celu threshold zero polygamma mvlgamma log_sigmoid_forward "
    "special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 "
    "special_entr special_erfcx special_i0e special_i1 special_i1e special_log_ndtr "
    "special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0 "
    "special_modified_bessel_k1 special_ndtri special_scaled_modified_bessel_k0 "
    "special_scaled_modified_bessel_k1 special_spherical_bessel_j0"
)
_BINARY_TENSOR = (
    "mul div xlogy fmod copysign eq ne lt le gt ge bitwise_and bitwise_or bitwise_xor remainder "
    "clamp clamp_min clamp_max ldexp bitwise_left_shift bitwise_right_shift __lshift__ __rshift__"
)
_BINARY_PLAIN = (
    "maximum minimum logical_and logical_or atan2 gelu_backward sigmoid_backward tanh_backward "
    "threshold_backward silu_backward leaky_relu_backward elu_backward hardtanh_backward "
    "hardswish_backward softplus_backward native_dropout_backward mish_backward "
    "addcmul addcdiv hardsigmoid_backward "
    "logaddexp hypot heaviside hardshrink_backward softshrink_backward logit_backward "
    "fmax fmin logaddexp2 logical_xor nextafter gcd lcm igamma igammac special_xlog1py "
    "special_zeta complex polar floor_divide log_sigmoid_backward rrelu_with_noise_backward"
)
_SCALAR = (
    "eq ne lt le gt ge remainder bitwise_and bitwise_or bitwise_xor rsub fmod fill __lshift__ "
    "__rshift__"
)


def _names(text: str, overload: str) -> tuple[str, ...]:
    return tuple(f"aten.{name}.{overload}" for name in text.split())


@rule(
    *_names(_UNARY, "default"),
    *_names(_BINARY_TENSOR, "Tensor"),
    *_names(_BINARY_PLAIN, "default"),
    *_names(_SCALAR, "Scalar"),
    "aten._to_copy.default",
    "aten.clamp.default",
    "aten.clamp_min.default",
    "aten.clamp_max.default",
    "aten.div.Tensor_mode",
    "aten.pow.Tensor_Scalar",
    "aten.pow.Tensor_Tensor",
    "aten.pow.Scalar",
    "aten.where.self",
    "aten.where.ScalarSelf",
    "aten.where.ScalarOther",
    "aten.where.Scalar",
    "aten.masked_fill.Scalar",
    "aten.masked_fill.Tensor",
    "aten.lerp.Scalar",
    "aten.lerp.Tensor",
    "aten.full_like.default",
    "aten.empty_like.default",
    "aten.copy.default",
    "aten.fill.Tensor",
    "aten.round.decimals",
    "aten.to.dtype",
    "aten.isin.Tensor_Scalar",
    "aten.xlogy.Scalar_Other",
    "aten.xlogy.Scalar_Self",
    "aten.div.Scalar_mode",
    "aten.bitwise_left_shift.Tensor_Scalar",
    "aten.bitwise_right_shift.Tensor_Scalar",
    "aten.special_xlog1py.self_scalar",
    "aten.special_xlog1py.other_scalar",
    "aten._prelu_kernel.default",
    "aten._prelu_kernel_backward.default",
)
def pointwise(call: Call) -> OpRule:
    return broadcast(call.shapes, call.results)


@rule("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Tensor")
def add(call: Call) -> OpRule:
    return broadcast(call.shapes, call.results, linear="joint" if len(call.shapes) > 1 else "none")


@rule("aten.add.Scalar", "aten.sub.Scalar")
def add_scalar(call: Call) -> OpRule:
    return broadcast(call.shapes, call.results)


@rule("aten.neg.default", "aten.mul.Scalar", "aten.div.Scalar")
def scale(call: Call) -> OpRule:
    return broadcast(call.shapes, call.results, linear="unary")


@rule("aten.bucketize.Tensor")
def bucketize(call: Call) -> OpRule:
    """(input, boundaries): every device has all boundaries."""
    made = broadcast(call.shapes[:1], call.results)
    return OpRule(made.factors, (*made.operands, ((),)), made.results)


@rule("aten.isin.Tensor_Tensor")
def isin(call: Call) -> OpRule:
    """(elements, test elements): every device has all that is tested for."""
    made = broadcast(call.shapes[:1], call.results)
    return OpRule(made.factors, (*made.operands, ((),) * len(call.shapes[1])), made.results)
