"""At least one concrete call of every op that has a rule: arguments as PyTorch takes them.

Sizes are chosen so that dims divide by 2 and by 3, by one of them, or by neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """One call of `target`; `linear` says that its first operands may be split into terms."""

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return f"{self.target}{f' {self.note}' if self.note else ''}"


def words(text: str) -> list[str]:
    return text.split()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape) + 0.1


def unit(*shape: int) -> Tensor:
    return torch.rand(shape) * 0.8 + 0.1


def whole_numbers(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape)


def flags(*shape: int) -> Tensor:
    return torch.rand(shape) < 0.5


CASES: dict[str, list[Callable[[], Case]]] = {}


def case(target: str, *make: Any, note: str = "", **kwargs: Any) -> None:
    """Register a call; an argument that is a function makes its tensor when the case is made."""

    def build() -> Case:
        torch.manual_seed(len(target))
        return Case(target, tuple(_made(item) for item in make), kwargs, note)

    CASES.setdefault(f"aten.{target}", []).append(build)


def computed(target: str, make: Callable[[], tuple[Any, ...]], note: str = "") -> None:
    """Register a call whose arguments depend on each other."""

    def build() -> Case:
        torch.manual_seed(len(target))
        return Case(target, make(), {}, note)

    CASES.setdefault(f"aten.{target}", []).append(build)


def _made(item: Any) -> Any:
    if callable(item) and not isinstance(item, torch.dtype):
        return item()
    return [_made(part) for part in item] if isinstance(item, list) else item


def t(*shape: int, of: Callable[..., Tensor] = normal) -> Callable[[], Tensor]:
    return lambda: of(*shape)


def n(high: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: whole_numbers(high, *shape)


# Pointwise ops of one tensor.
UNARY = """abs ceil clone cos elu erf exp expm1 floor gelu hardswish hardtanh isnan leaky_relu
    logical_not neg relu round sigmoid sign silu sin softplus tanh zeros_like ones_like mish
    hardsigmoid isinf isfinite tan square alias detach lift_fresh_copy contiguous sgn atan
    asinh cosh sinh erfc frac trunc hardshrink softshrink signbit sinc positive angle
    nan_to_num digamma lgamma"""
for name in words(UNARY):
    case(f"{name}.default", t(6, 5))
for name in words("log log1p log2 log10 reciprocal rsqrt sqrt erfinv acos asin atanh logit"):
    case(f"{name}.default", t(6, 5, of=unit))
case("acosh.default", lambda: positive(6, 5) + 1)
case("bitwise_not.default", n(9, 6, 5))
case("empty_like.default", t(6, 5))
case("full_like.default", t(6, 5), 2.5)
case("gelu.default", t(4, 6), approximate="tanh", note="tanh")
case("_to_copy.default", t(6, 5), dtype=torch.float64)
case("clamp.default", t(6, 5), -0.5, 0.5)
case("clamp_min.default", t(6, 5), -0.5)
case("clamp_max.default", t(6, 5), 0.5)
case("native_dropout.default", t(6, 5), 0.3, True)
case("native_dropout.default", t(6, 5), 0.3, False, note="evaluation")
case("bernoulli.p", t(6, 5), 0.3)
case("bernoulli.default", t(6, 5, of=unit))
case("rand_like.default", t(6, 5))
case("randn_like.default", t(6, 5))

# Pointwise ops of several tensors, with broadcasting.
for name in words("mul div eq ne lt le gt ge remainder fmod xlogy copysign"):
    case(f"{name}.Tensor", t(6, 5), t(6, 5, of=positive))
    case(f"{name}.Tensor", t(4, 6, 5), t(6, 1, of=positive), note="broadcast")
for name in words("add sub rsub"):
    case(f"{name}.Tensor", t(6, 5), t(6, 5), alpha=2)
    case(f"{name}.Tensor", t(4, 6, 5), t(5), note="broadcast")
case("add.Tensor", t(6, 5), 1.5, note="number")
for name in words("bitwise_and bitwise_or bitwise_xor"):
    case(f"{name}.Tensor", n(9, 6, 5), n(9, 6, 5))
for name in words("maximum minimum logical_and logical_or atan2 logaddexp hypot heaviside"):
    case(f"{name}.default", t(6, 5), t(1, 5))
for name in words("add sub mul div eq ne lt le gt ge remainder rsub"):
    case(f"{name}.Scalar", t(6, 5), 1.5)
for name in words("bitwise_and bitwise_or"):
    case(f"{name}.Scalar", n(9, 6, 5), 3)
case("div.Tensor_mode", t(6, 5), t(6, 5, of=positive), rounding_mode="floor")
case("pow.Tensor_Scalar", t(6, 5), 2)
case("pow.Tensor_Tensor", t(6, 5, of=positive), t(6, 5))
case("pow.Scalar", 2.0, t(6, 5))
case("where.self", t(6, 5, of=flags), t(6, 5), t(5))
case("where.ScalarSelf", t(6, 5, of=flags), 1.0, t(6, 5))
case("where.ScalarOther", t(6, 5, of=flags), t(6, 5), 1.0)
case("where.Scalar", t(6, 5, of=flags), 1.0, 2.0)
case("masked_fill.Scalar", t(6, 5), t(5, of=flags), 2.0)
case("masked_fill.Tensor", t(6, 5), t(6, 1, of=flags), lambda: torch.tensor(2.0))
case("lerp.Scalar", t(6, 5), t(6, 5), 0.3)
case("lerp.Tensor", t(6, 5), t(6, 5), t(5))
case("addcmul.default", t(6, 5), t(6, 5), t(5), value=0.5)
case("addcdiv.default", t(6, 5), t(6, 5), t(5, of=positive))
case("copy.default", t(6, 5), t(5))
for kernel in ("_prelu_kernel.default",):
    case(kernel, t(4, 6, 5), t(1, 6, 1))
case("_prelu_kernel_backward.default", t(4, 6, 5), t(4, 6, 5), t(1, 6, 1))

# Their gradients.
for name in words("gelu silu mish hardswish hardsigmoid"):
    case(f"{name}_backward.default", t(6, 5), t(6, 5))
for name in words("sigmoid tanh"):
    case(f"{name}_backward.default", t(6, 5), t(6, 5, of=unit))
for name in words("hardshrink softshrink"):
    case(f"{name}_backward.default", t(6, 5), t(6, 5), 0.5)
case("logit_backward.default", t(6, 5), t(6, 5, of=unit))
case("threshold_backward.default", t(6, 5), t(6, 5), 0)
case("leaky_relu_backward.default", t(6, 5), t(6, 5), 0.1, False)
case("elu_backward.default", t(6, 5), 1.0, 1.0, 1.0, False, t(6, 5))
case("hardtanh_backward.default", t(6, 5), t(6, 5), -1.0, 1.0)
case("softplus_backward.default", t(6, 5), t(6, 5), 1.0, 20.0)
case("native_dropout_backward.default", t(6, 5), t(6, 5, of=flags), 1.5)

# Matrix products.
case("mm.default", t(6, 4), t(4, 5))
case("bmm.default", t(6, 3, 4), t(6, 4, 5))
case("mv.default", t(6, 4), t(4))
case("dot.default", t(6), t(6))
case("vdot.default", t(6), t(6))
case("addmm.default", t(5), t(6, 4), t(4, 5))
case("addmm.default", t(6, 5), t(6, 4), t(4, 5), alpha=0.5, beta=2.0, note="scaled")
case("baddbmm.default", t(6, 3, 5), t(6, 3, 4), t(6, 4, 5))
case("baddbmm.default", t(6, 1, 5), t(6, 3, 4), t(6, 4, 5), note="broadcast")

# Views and copies.
for name in words("view _unsafe_view reshape"):
    case(f"{name}.default", t(4, 6, 5), [24, 5], note="merge")
    case(f"{name}.default", t(24, 5), [4, 6, 5], note="divide")
    case(f"{name}.default", t(4, 6, 5), [2, 12, 5], note="regroup")
    case(f"{name}.default", t(6, 4, 5), [4, 6, 5], note="irregular")
case("t.default", t(6, 5))
case("t.default", t(6), note="vector")
case("transpose.int", t(4, 6, 5), 1, -1)
case("permute.default", t(4, 6, 5), [2, 0, -2])
case("unsqueeze.default", t(6, 5), -2)
case("squeeze.default", t(1, 6, 1, 2))
case("squeeze.dim", t(6, 1, 5), 1)
case("squeeze.dim", t(2, 5), 0, note="not of size 1")
case("squeeze.dims", t(1, 6, 1), [0, -1])
case("squeeze.dims", t(2, 6, 1), [0, 2], note="one not of size 1")
case("expand.default", t(1, 6, 1), [4, 6, 5])
case("expand.default", t(6, 1), [4, -1, 5], note="new dim")
case("split.Tensor", t(12, 5), 4)
case("split.Tensor", t(5, 12), 2, -1, note="last dim")
case("split.Tensor", t(7, 6), 3, note="uneven parts")
case("split.Tensor", t(3, 6), 1, note="parts of one")
case("unsafe_split.Tensor", t(5, 12), 3, 1)
case("unsafe_split_with_sizes.default", t(12, 6), [6, 6])
case("chunk.default", t(12, 5), 3)
case("split_with_sizes.default", t(12, 6), [4, 4, 4])
case("split_with_sizes.default", t(12, 6), [3, 9], note="uneven parts")
case("split_with_sizes.default", t(6, 12), [6, 6], -1, note="last dim")
case("cat.default", [t(4, 6), t(4, 6), t(4, 6)])
case("cat.default", [t(4, 6), t(4, 3)], 1, note="uneven parts")
case("cat.default", [t(1, 6), t(1, 6)], note="parts of one")
case("stack.default", [t(4, 6), t(4, 6)], -1)
case("unbind.int", t(4, 6), 1)
case("select.int", t(4, 6, 5), 1, -2)
case("select_backward.default", t(4, 5), [4, 6, 5], 1, 2)
case("slice.Tensor", t(12, 5), 0, 4, 8)
case("slice.Tensor", t(12, 5), 0, -6, 9223372036854775807, note="from the end")
case("slice.Tensor", t(12, 6), 0, 3, 8, note="not at a part")
case("slice.Tensor", t(12, 6), 0, 0, 12, 2, note="steps")
case("slice.Tensor", t(12, 6), 1, 0, 9223372036854775807, note="all of it")
case("slice_backward.default", t(4, 5), [12, 5], 0, 4, 8, 1)
case("slice_backward.default", t(5, 6), [12, 6], 0, 3, 8, 1, note="not at a part")
case("slice_backward.default", t(6, 6), [12, 6], 0, 0, 12, 2, note="steps")
case("repeat.default", t(6, 1, 4), [2, 1, 3, 1])
case("flip.default", t(6, 4), [0])
case("constant_pad_nd.default", t(4, 6), [1, 2], 0.5)
case("constant_pad_nd.default", t(4, 6), [0, 0, 1, 2], note="first dim")

# Tensors from nothing, or from a tensor's dtype.
for name in words("zeros ones"):
    case(f"{name}.default", [6, 5])
case("full.default", [6, 5], 2.5)
case("empty.memory_format", [6, 5])
case("rand.default", [6, 5])
case("randn.default", [6, 5])
case("arange.default", 6)
case("arange.start", 2, 8)
case("arange.start_step", 2, 14, 2)
case("linspace.default", 0.0, 1.0, 6)
case("eye.default", 6)
case("scalar_tensor.default", 2.0)
for name in words("zeros ones empty"):
    case(f"new_{name}.default", t(6, 5), [6, 5])
    case(f"new_{name}.default", t(4), [6, 5], note="another shape")
case("new_full.default", t(6, 5), [6, 5], 2.0)
case("triu.default", t(4, 6, 5), 1)
case("tril.default", t(4, 6, 5))

# Reductions.
for name in words("sum mean amax amin any all prod"):
    case(f"{name}.default", t(6, 5, of=flags) if name in ("any", "all") else t(6, 5))
for name in words("amax amin"):
    case(f"{name}.default", t(4, 6, 5), [1, -1], True, note="dims")
for name in words("max min"):
    case(f"{name}.default", t(6, 5))
    case(f"{name}.dim", t(4, 6), 1)
case("sum.dim_IntList", t(4, 6, 5), [0, -1])
case("sum.dim_IntList", t(4, 6, 5), [1], True, note="keepdim")
case("sum.dim_IntList", t(4, 6), None, note="all dims")
case("prod.dim_int", t(4, 6), 1, True)
case("mean.dim", t(4, 6, 5), [0, 2])
case("mean.dim", t(4, 6, 5), [-1], True, note="keepdim")
case("any.dim", t(6, 5, of=flags), 1)
case("any.dims", t(6, 5, 4, of=flags), [0, 2])
case("all.dim", t(6, 5, of=flags), 1, True)
for name in words("var std var_mean"):
    case(f"{name}.correction", t(4, 6), [1], correction=1, keepdim=True)
for name in words("argmax argmin"):
    case(f"{name}.default", t(4, 6), 1)
case("argmax.default", t(4, 6), note="all dims")
case("logsumexp.default", t(4, 6), [1])
case("linalg_vector_norm.default", t(4, 6), 2, [1])
case("linalg_vector_norm.default", t(4, 6), note="all dims")
for name in words("cumsum cumprod logcumsumexp"):
    case(f"{name}.default", t(4, 6, 3), 1)
case("sort.default", t(4, 6), 0)
for name in words("_softmax _log_softmax"):
    case(f"{name}.default", t(4, 6, 5), 1, False)
    case(f"{name}_backward_data.default", t(4, 6), t(4, 6, of=unit), -1, torch.float32)
case("_safe_softmax.default", t(4, 6), -1)


# Normalisation.
def _layer_norm(rank: int) -> tuple[Any, ...]:
    shape = (4, 6, 5)[:rank]
    return normal(*shape), [shape[-1]], positive(shape[-1]), normal(shape[-1]), 1e-5


def _layer_norm_backward() -> tuple[Any, ...]:
    x, normed, weight, bias, eps = _layer_norm(3)
    _, mean, rstd = aten.native_layer_norm(x, normed, weight, bias, eps)
    return normal(*x.shape), x, normed, mean, rstd, weight, bias, [True, True, True]


computed("native_layer_norm.default", lambda: _layer_norm(3))
computed("native_layer_norm.default", lambda: (normal(6, 5), [5], None, None, 1e-5), note="bare")
computed("native_layer_norm_backward.default", _layer_norm_backward)


def _group_norm() -> tuple[Any, ...]:
    return normal(4, 6, 3, 3), positive(6), normal(6), 4, 6, 9, 2, 1e-5


def _group_norm_backward() -> tuple[Any, ...]:
    x, weight, bias, *numbers = _group_norm()
    _, mean, rstd = aten.native_group_norm(x, weight, bias, *numbers)
    return normal(*x.shape), x, mean, rstd, weight, *numbers[:-1], [True, True, True]


computed("native_group_norm.default", _group_norm)
computed("native_group_norm_backward.default", _group_norm_backward)


def _batch_norm(train: bool, rank: int = 4) -> tuple[Any, ...]:
    shape = (4, 6, 3, 3)[:rank]
    return (
        normal(*shape), positive(6), normal(6), normal(6), positive(6), train, 0.1, 1e-5,
    )  # fmt: skip


def _batch_norm_backward(train: bool) -> tuple[Any, ...]:
    x, weight, bias, mean, var, *_ = _batch_norm(train)
    _, save_mean, save_rstd = aten.native_batch_norm(
        x, weight, bias, mean.clone(), var.clone(), train, 0.1, 1e-5
    )
    if not train:
        save_mean, save_rstd = mean, (var + 1e-5).rsqrt()
    masks = [True, True, True]
    return normal(*x.shape), x, weight, mean, var, save_mean, save_rstd, train, 1e-5, masks


computed("native_batch_norm.default", lambda: _batch_norm(False), note="evaluation")
computed("native_batch_norm.default", lambda: _batch_norm(True))
computed("_native_batch_norm_legit.default", lambda: _batch_norm(False), note="evaluation")
computed("_native_batch_norm_legit_functional.default", lambda: _batch_norm(True))
computed("_native_batch_norm_legit_functional.default", lambda: _batch_norm(True, 2), note="flat")
computed(
    "_native_batch_norm_legit.no_stats",
    lambda: (normal(4, 6, 3), positive(6), None, True, 0.1, 1e-5),
)
computed(
    "_native_batch_norm_legit_no_training.default",
    lambda: (normal(4, 6, 3), positive(6), normal(6), normal(6), positive(6), 0.1, 1e-5),
)
computed("native_batch_norm_backward.default", lambda: _batch_norm_backward(True))
computed("native_batch_norm_backward.default", lambda: _batch_norm_backward(False), "evaluation")


case("_weight_norm_interface.default", t(6, 4), t(6, 1), 0)
case(
    "_weight_norm_interface_backward.default",
    t(6, 4), t(6, 4), t(6, 1, of=positive), t(6, 1, of=positive), 0,
)  # fmt: skip


# Convolution and pooling.
def _convolution(groups: int, bias: bool, transposed: bool = False, n: int = 4) -> tuple[Any, ...]:
    channels_in, channels_out = 6, 4 * groups if not transposed else 6
    shape = (channels_in, channels_out // groups) if transposed else (channels_out, 6 // groups)
    return (
        normal(n, channels_in, 6, 6), normal(*shape, 3, 3),
        normal(channels_out) if bias else None,
        [2, 2], [1, 1], [1, 1], transposed, [0, 0], groups,
    )  # fmt: skip


def _convolution_backward(groups: int, bias: bool, transposed: bool = False) -> tuple[Any, ...]:
    x, weight, b, *rest = _convolution(groups, bias, transposed)
    out = aten.convolution(x, weight, b, *rest)
    sizes = [out.shape[1]] if bias else None
    return normal(*out.shape), x, weight, sizes, *rest, [True, True, bias]


computed("convolution.default", lambda: _convolution(1, False))
computed("convolution.default", lambda: _convolution(1, True), note="bias")
computed("convolution.default", lambda: _convolution(2, True), note="groups")
computed("convolution.default", lambda: _convolution(6, False), note="depthwise")
computed("convolution.default", lambda: _convolution(1, True, True), note="transposed")
computed("convolution.default", lambda: _convolution(2, False, True), note="transposed groups")
computed("convolution_backward.default", lambda: _convolution_backward(1, True), note="bias")
computed("convolution_backward.default", lambda: _convolution_backward(1, False))
computed("convolution_backward.default", lambda: _convolution_backward(2, True), note="groups")
computed("convolution_backward.default", lambda: _convolution_backward(6, False), note="depthwise")
computed(
    "convolution_backward.default", lambda: _convolution_backward(2, True, True), note="transposed"
)

for rank in (2, 3):
    image = t(4, 6, *(4,) * rank)
    window, stride = [2] * rank, [2] * rank
    case(f"max_pool{rank}d_with_indices.default", image, window, stride)
    case(f"avg_pool{rank}d.default", image, window, stride)
    case(f"_adaptive_avg_pool{rank}d.default", image, [2] * rank)
    case(f"_adaptive_avg_pool{rank}d_backward.default", t(4, 6, *(2,) * rank), image)
    case(
        f"avg_pool{rank}d_backward.default", t(4, 6, *(2,) * rank), image, window, stride,
        [0] * rank, False, True, None,
    )  # fmt: skip

    def _max_pool_backward(rank: int = rank) -> tuple[Any, ...]:
        x, window = normal(4, 6, *(4,) * rank), [2] * rank
        op = getattr(aten, f"max_pool{rank}d_with_indices")
        out, indices = op(x, window, window)
        zeros, ones = [0] * rank, [1] * rank
        return normal(*out.shape), x, window, window, zeros, ones, False, indices

    computed(f"max_pool{rank}d_with_indices_backward.default", _max_pool_backward)

spatial = {"1d": [4], "2d": [4, 3], "3d": [4, 3, 2]}
for name in words("""upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"""):
    small = spatial[name[-2:]]
    large = [2 * size for size in small]
    corners = [False] if "nearest" not in name else []
    none = [None] * len(small)
    case(f"{name}.default", t(4, 6, *small), large, *corners, *none)
    case(f"{name}_backward.default", t(4, 6, *large), large, [4, 6, *small], *corners, *none)

# Attention.
_attention = aten._scaled_dot_product_flash_attention_for_cpu


def _flash(causal: bool) -> tuple[Any, ...]:
    return normal(4, 6, 5, 8), normal(4, 6, 5, 8), normal(4, 6, 5, 8), 0.0, causal


def _flash_backward(causal: bool) -> tuple[Any, ...]:
    q, k, v, _, _ = _flash(causal)
    out, lse = _attention(q, k, v, 0.0, causal)
    return normal(*out.shape), q, k, v, out, lse, 0.0, causal


for causal in (False, True):
    note = "causal" if causal else ""
    computed(f"{_attention.__name__}.default", lambda causal=causal: _flash(causal), note)
    computed(
        f"{_attention.__name__}_backward.default",
        lambda causal=causal: _flash_backward(causal), note,
    )  # fmt: skip


def _flash_masked(rank: int) -> Case:
    mask = normal(*(4, 6, 5, 5)[4 - rank :])
    return Case(f"{_attention.__name__}.default", _flash(False), {"attn_mask": mask}, "mask")


for rank in (2, 4):
    CASES[f"aten.{_attention.__name__}.default"].append(lambda rank=rank: _flash_masked(rank))

# Embeddings.
case("embedding.default", t(6, 4), n(6, 3, 5))
case("embedding.default", t(6, 4), n(6, 10), 1, note="padding")
case("embedding_dense_backward.default", t(3, 5, 4), n(6, 3, 5), 6, -1, False)
case("embedding_dense_backward.default", t(10, 4), n(6, 10), 6, 1, False, note="padding")
case("embedding_dense_backward.default", t(10, 4), n(6, 10), 6, -1, True, note="by frequency")


# Indexing.
for name in words("index _unsafe_index"):
    case(f"{name}.Tensor", t(4, 6, 5), [None, n(6, 8)])
    case(f"{name}.Tensor", t(4, 6, 5), [n(4, 3, 1), n(6, 1, 4)], note="two that broadcast")
    case(f"{name}.Tensor", t(4, 6, 5), [n(4, 6), None, n(5, 6)], note="two apart")
for name in words("index_put _unsafe_index_put"):
    case(f"{name}.default", t(4, 6, 5), [None, n(6, 8)], t(4, 8, 5), True)
    case(f"{name}.default", t(4, 6, 5), [n(4, 3)], t(), note="one number")
    case(f"{name}.default", t(4, 6, 5), [n(4, 8), None, n(5, 8)], t(8, 6), True, note="apart")
case("index_select.default", t(4, 6, 5), 1, n(6, 8))
for name in words("index_add index_copy"):
    case(f"{name}.default", t(4, 6, 5), 1, lambda: torch.tensor([4, 0, 3]), t(4, 3, 5))
case("gather.default", t(4, 6), 1, n(6, 4, 3))
case("gather.default", t(4, 6, 5), 0, n(4, 8, 6, 3), note="shorter")
distinct = lambda: torch.arange(6).flip(0).expand(4, 6)[:, :3].contiguous()  # noqa: E731
case("scatter.src", t(4, 6), 1, distinct, t(4, 3))
case("scatter.src", t(4, 6), 1, distinct, t(5, 4), note="longer source")
case("scatter.value", t(4, 6), 1, distinct, 2.0)
case("scatter.value", t(6, 6), 1, distinct, 2.0, note="shorter index")
case("scatter_add.default", t(4, 6), 1, n(6, 4, 8), t(4, 8))
case("scatter_reduce.two", t(4, 6), 1, n(6, 4, 8), t(4, 8), "amax")
case("topk.default", t(4, 6), 2)
case("roll.default", t(4, 6), [2], [1])
case("roll.default", t(4, 6), [2], note="as one")


# Losses.
def _labels(shape: tuple[int, ...], classes: int = 5) -> Tensor:
    labels = whole_numbers(classes, *shape)
    labels.view(-1)[:2] = -100
    return labels


def _nll(reduction: int, weighted: bool, spatial: bool) -> tuple[Any, ...]:
    shape = (4, 5, 2, 3) if spatial else (6, 5)
    scores = normal(*shape).log_softmax(1)
    labels = _labels((shape[0], *shape[2:]))
    return scores, labels, positive(5) if weighted else None, reduction, -100


def _nll_backward(reduction: int, weighted: bool, spatial: bool) -> tuple[Any, ...]:
    given = _nll(reduction, weighted, spatial)
    op = aten.nll_loss2d_forward if spatial else aten.nll_loss_forward
    out, total = op(*given)
    return torch.randn_like(out), *given, total


for spatial, op in ((False, "nll_loss"), (True, "nll_loss2d")):
    for reduction in (0, 1, 2):
        for weighted in (False, True):
            key = (reduction, weighted, spatial)
            note = f"{('none', 'mean', 'sum')[reduction]}{' weighted' if weighted else ''}"
            computed(f"{op}_forward.default", lambda key=key: _nll(*key), note)
            computed(f"{op}_backward.default", lambda key=key: _nll_backward(*key), note)
for reduction in (0, 1, 2):
    note = ("none", "mean", "sum")[reduction]
    grad = t(6, 5) if reduction == 0 else t()
    x, y, odds = t(6, 5), t(6, 5), t(6, 5, of=unit)
    for name, options in (("mse_loss", []), ("smooth_l1_loss", [1.0]), ("huber_loss", [1.0])):
        case(f"{name}.default", x, y, reduction, *options, note=note)
        case(f"{name}_backward.default", grad, x, y, reduction, *options, note=note)
    case("soft_margin_loss.default", x, y, reduction, note=note)
    case("soft_margin_loss_backward.default", grad, x, y, reduction, note=note)
    for weight in (None, t(5, of=positive)):
        noted = f"{note}{' weighted' if weight else ''}"
        case("binary_cross_entropy.default", odds, odds, weight, reduction, note=noted)
        case("binary_cross_entropy_backward.default", grad, odds, odds, weight, reduction,
             note=noted)  # fmt: skip
        case("binary_cross_entropy_with_logits.default", x, odds, None, weight, reduction,
             note=noted)  # fmt: skip
case("mse_loss.default", t(6, 5), t(6, 5), note="by default")
case("binary_cross_entropy_with_logits.default", t(6, 5), t(6, 5, of=unit), t(5, of=positive),
     note="weighted")  # fmt: skip


def all_cases() -> Iterator[Case]:
    for target in sorted(CASES):
        for build in CASES[target]:
            yield build()


# Families with files of their own, which need what is above.
from rules import (  # noqa: E402, F401
    cases_attention,
    cases_grouped,
    cases_numbers,
    cases_shapes,
    cases_spatial,
)
