"""The ops that calibration times: typical ones of each family, in sizes from launch to memory.

Each is an Op at given shapes together with the call that runs it, so that what
is fitted is what the cost model will be asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meshwright.cost.compute import op_work
from meshwright.cost.terms import Work
from meshwright.program.types import Argument, Op, Ref, Symbol, Value
from meshwright.runtime.local_attention import attention, attention_backward
from meshwright.runtime.local_ops import batch_norm_apply

_ELEMENTS = (1 << 8, 1 << 13, 1 << 17, 1 << 20)
_ROWS = ((8, 32), (64, 128), (512, 256), (1024, 1024))


@dataclass(frozen=True)
class Probe:
    """name: for a reader. work: what the fit sees. operands: what `call` reads."""

    name: str
    work: Work
    call: Callable[[], object]
    operands: tuple[Tensor, ...] = ()


class _Maker:
    def __init__(self, device: str) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def whole(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(self.device)

    def probe(self, target: str, *args: Any, **kwargs: Any) -> Probe:
        """A probe of `aten.<target>`, which is run once to know its results."""
        packet, _, overload = target.partition(".")
        function = getattr(getattr(torch.ops.aten, packet), overload or "default")
        return self.probe_of(f"aten.{packet}.{overload or 'default'}", function, *args, **kwargs)

    def probe_of(
        self, target: str, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Probe:
        """A probe of `function`, which is what the op `target` runs."""
        made = function(*args, **kwargs)
        outputs = list(made) if isinstance(made, (tuple, list)) else [made]
        values: dict[str, Value] = {}
        owners: dict[int, str] = {}

        def value(tensor: Tensor, name: str) -> str:
            pointer = tensor.untyped_storage().data_ptr()
            owner = owners.setdefault(pointer, name) if tensor.numel() else name
            if owner == name and tensor._base is not None:
                owner = f"base of {name}"
            dtype = str(tensor.dtype).removeprefix("torch.")
            values[name] = Value(name, tuple(tensor.shape), dtype, owner)
            return name

        def argument(item: Any) -> Argument:
            if isinstance(item, Tensor):
                return Ref(value(item, f"a{len(values)}"))
            if isinstance(item, (tuple, list)):
                return tuple(argument(part) for part in item)
            if isinstance(item, torch.dtype):
                return Symbol("dtype", str(item).removeprefix("torch."))
            plain: Argument = item
            return plain

        wanted = tuple(argument(item) for item in args)
        named = tuple((key, argument(item)) for key, item in kwargs.items())
        results = tuple(
            value(item, f"r{k}") if isinstance(item, Tensor) else None
            for k, item in enumerate(outputs)
        )
        op = Op(
            "probe", target, wanted, named, results,
            isinstance(made, (tuple, list)), "forward",
        )  # fmt: skip
        sizes = " ".join(
            "x".join(map(str, item.shape)) for item in args if isinstance(item, Tensor)
        )
        name = target.removeprefix("aten.").partition(".")[0] if target[:4] == "aten" else target
        flat = [part for item in args for part in (item if isinstance(item, list) else [item])]
        operands = tuple(item for item in flat if isinstance(item, Tensor))
        work = op_work(op, values)
        return Probe(f"{name} {sizes}", work, lambda: function(*args, **kwargs), operands)


def op_probes(device: str = "cpu") -> Iterator[Probe]:
    """All probes of ops, the operands of one alive at a time if the caller lets go of them."""
    make = _Maker(device)
    yield from _matmul(make)
    yield from _convolution(make)
    yield from _attention(make)
    yield from _elements(make)
    yield from _rows(make)
    yield from _indexing(make)
    yield from _pictures(make)
    yield from _views(make)


def dtype_probes(device: str = "cpu") -> Iterator[tuple[str, Probe]]:
    """(dtype, matmul) for the dtypes other than float32, in float32's shape and key."""
    make = _Maker(device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        a, b = make.normal(256, 256).to(dtype), make.normal(256, 256).to(dtype)
        yield str(dtype).removeprefix("torch."), make.probe("mm", a, b)


def _matmul(make: _Maker) -> Iterator[Probe]:
    for m, k, n in (
        (8, 8, 8), (32, 32, 32), (64, 64, 64), (128, 128, 128), (256, 256, 256), (512, 512, 512),
        (4, 1024, 1024), (16, 512, 1024), (64, 1024, 128), (256, 32, 256), (1024, 16, 64),
        (512, 256, 8), (8, 512, 256), (512, 128, 384), (128, 768, 512),
    ):  # fmt: skip
        yield make.probe("mm", make.normal(m, k), make.normal(k, n))
    for tokens, width, out in ((64, 64, 64), (256, 128, 512), (512, 384, 96), (1024, 256, 256)):
        x, w, g = make.normal(tokens, width), make.normal(out, width), make.normal(tokens, out)
        yield make.probe("addmm", make.normal(out), x, w.t())  # forward of a linear layer
        yield make.probe("mm", g, w)  # of its input's gradient
        yield make.probe("mm", g.t(), x)  # of its weight's
    for b, m, k, n in ((16, 16, 16, 16), (8, 64, 32, 64), (32, 128, 32, 128), (4, 256, 64, 256)):
        yield make.probe("bmm", make.normal(b, m, k), make.normal(b, k, n))


_PICTURES = (
    # batch, channels in and out, side, dims, filter, stride, groups
    (4, 3, 16, 32, 2, 3, 1, 1), (4, 16, 16, 16, 2, 3, 1, 1), (2, 64, 64, 16, 2, 3, 1, 1),
    (4, 64, 128, 16, 2, 3, 2, 1), (8, 128, 128, 4, 2, 3, 1, 1), (4, 64, 256, 16, 2, 1, 1, 1),
    (4, 256, 64, 8, 2, 1, 1, 1), (8, 16, 16, 4, 2, 1, 1, 1), (2, 96, 96, 16, 2, 3, 1, 96),
    (4, 32, 32, 8, 2, 3, 1, 32), (1, 1, 8, 16, 3, 3, 1, 1), (1, 16, 16, 16, 3, 3, 1, 1),
    (2, 32, 32, 8, 3, 3, 1, 1), (1, 32, 64, 8, 3, 1, 1, 1), (4, 32, 32, 256, 1, 3, 1, 1),
    (4, 64, 64, 64, 1, 1, 1, 1), (2, 16, 32, 128, 1, 5, 1, 1), (2, 8, 16, 16, 3, 3, 1, 1),
    (2, 64, 64, 4, 3, 3, 1, 1), (2, 16, 32, 16, 3, 3, 2, 1), (2, 64, 32, 8, 3, 1, 1, 1),
    (1, 16, 32, 16, 2, 3, 1, 1), (1, 64, 64, 8, 2, 3, 1, 1), (1, 32, 64, 8, 2, 1, 1, 1),
    (16, 32, 64, 8, 2, 3, 1, 1), (8, 32, 32, 32, 2, 3, 1, 1), (4, 128, 64, 8, 2, 3, 1, 1),
    (8, 3, 32, 32, 2, 7, 2, 1), (1, 32, 32, 8, 3, 3, 1, 1), (2, 24, 24, 8, 3, 3, 1, 24),
    (1, 8, 8, 32, 3, 3, 1, 1), (4, 16, 32, 32, 2, 3, 1, 1), (4, 8, 64, 16, 2, 3, 1, 1),
    (4, 64, 8, 16, 2, 3, 1, 1), (4, 16, 16, 256, 1, 3, 1, 1), (2, 64, 64, 256, 1, 7, 1, 1),
    (1, 16, 16, 32, 2, 3, 1, 1), (1, 8, 32, 16, 2, 3, 1, 1),
)  # fmt: skip


def _convolution(make: _Maker) -> Iterator[Probe]:
    for batch, before, after, side, dims, wide, stride, groups in _PICTURES:
        x = make.normal(batch, before, *[side] * dims)
        w = make.normal(after, before // groups, *[wide] * dims)
        rest = [[stride] * dims, [wide // 2] * dims, [1] * dims, False, [0] * dims, groups]
        y = torch.ops.aten.convolution.default(x, w, None, *rest)
        yield make.probe("convolution", x, w, make.normal(after), *rest)
        yield make.probe(
            "convolution_backward", torch.ones_like(y), x, w, [after], *rest, [True] * 3
        )


def _attention(make: _Maker) -> Iterator[Probe]:
    cuda = make.device != "cpu"
    for batch, heads, length, width, causal in (
        (1, 2, 16, 16, False), (2, 4, 64, 32, True), (4, 4, 128, 64, True),
        (1, 8, 512, 64, False), (2, 2, 256, 16, True), (8, 4, 64, 16, False),
    ):  # fmt: skip
        q, k, v = (make.normal(batch, heads, length, width) for _ in range(3))
        if cuda:
            name = "_scaled_dot_product_efficient_attention"
            out, norm, seed, offset = torch.ops.aten._scaled_dot_product_efficient_attention(
                q, k, v, None, True, 0.0, causal
            )
            yield make.probe(name, q, k, v, None, True, 0.0, causal)
            yield make.probe(
                f"{name}_backward", out, q, k, v, None, out, norm, seed, offset, 0.0,
                [True, True, True, False], causal,
            )  # fmt: skip
            continue
        name = "_scaled_dot_product_flash_attention_for_cpu"
        out, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
        yield make.probe(name, q, k, v, 0.0, causal)
        yield make.probe(f"{name}_backward", out, q, k, v, out, norm, 0.0, causal)
    if not cuda:
        yield from _attention_over_cut_sequences(make)


def _attention_over_cut_sequences(make: _Maker) -> Iterator[Probe]:
    for batch, heads, length, width, parts in (
        (1, 2, 32, 16, 2), (4, 4, 128, 32, 4), (2, 8, 256, 64, 2), (8, 4, 128, 32, 2),
        (2, 4, 512, 32, 4),
    ):  # fmt: skip
        here = length // parts
        q = make.normal(batch, heads, here, width)
        k, v = (make.normal(batch, heads, length, width) for _ in range(2))
        given: dict[str, Any] = {
            "size": length, "cuts": ((here, parts, parts, parts - 1),), "scale": None,
            "is_causal": True,
        }  # fmt: skip
        out, norm = attention(q, k, v, **given)
        yield make.probe_of("mesh.attention", attention, q, k, v, **given)
        yield make.probe_of(
            "mesh.attention_backward", attention_backward, out, q, k, v, out, norm, **given
        )


_UNARY = (
    "relu", "neg", "abs", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos", "tanh",
    "sigmoid", "silu", "gelu", "erf", "softplus", "log1p", "clone", "zeros_like", "logical_not",
    "leaky_relu", "hardswish", "mish", "elu", "sign",
)  # fmt: skip
_BINARY = (
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "maximum", "gt.Tensor", "eq.Tensor",
    "gelu_backward", "silu_backward", "tanh_backward", "sigmoid_backward", "atan2",
)  # fmt: skip


def _elements(make: _Maker) -> Iterator[Probe]:
    for count in _ELEMENTS:
        x, y, positive = make.normal(count), make.normal(count), make.normal(count).abs() + 0.5
        for name in _UNARY:
            yield make.probe(name, positive)
        for name in _BINARY:
            yield make.probe(name, x, y)
        mask = x > 0
        yield make.probe("add.Scalar", x, 1.0)
        yield make.probe("mul.Scalar", x, 2.0)
        yield make.probe("mul.Tensor", x, y[:1].expand(count))
        yield make.probe("pow.Tensor_Scalar", positive, 3.0)
        yield make.probe("clamp", x, -1.0, 1.0)
        yield make.probe("threshold_backward", x, y, 0.0)
        yield make.probe("gelu", x, approximate="tanh")
        yield make.probe("gelu_backward", x, y, approximate="tanh")
        yield make.probe("where.self", mask, x, y)
        yield make.probe("masked_fill.Scalar", x, mask, 0.0)
        yield make.probe("full_like", x, 1.0)
        yield make.probe("bernoulli.p", x, 0.9)
        yield make.probe("native_dropout", x, 0.1, True)
        yield make.probe("cat", [x, y])
        yield make.probe("_to_copy", x, dtype=torch.float64)
        yield make.probe("sum", x)
        yield make.probe("mse_loss", x, y)
        yield make.probe("mse_loss_backward", x[:1].reshape(()), x, y, 1)
        yield make.probe("any", mask)


def _rows(make: _Maker) -> Iterator[Probe]:
    for rows, width in _ROWS:
        x, g = make.normal(rows, width), make.normal(rows, width)
        weight, classes = make.normal(width), make.whole(width, rows)
        yield make.probe("clone", x.t(), memory_format=torch.contiguous_format)
        heads = x.view(-1, 4, rows // 4, width).transpose(0, 1)
        yield make.probe("clone", heads, memory_format=torch.contiguous_format)
        yield make.probe("add.Tensor", x, weight)
        yield make.probe("mul.Tensor", x, x[:, :1])
        planes = x.view(4, rows // 8, 2, width)
        for function in ("add.Tensor", "mul.Tensor", "sub.Tensor"):
            yield make.probe(function, planes, planes[:, :, :1])
            yield make.probe(function, planes, planes[:1, :, :1, :1])
        for dims in ([0], [1], [0, 2, 3], [2, 3], [0, 1]):
            yield make.probe("sum.dim_IntList", planes, dims, True)
        yield make.probe("constant_pad_nd", x, [1, 1])
        yield make.probe("slice_backward", g, [rows, 2 * width], 1, 0, width, 1)
        for dim in (0, 1):
            yield make.probe("sum.dim_IntList", x, [dim], True)
        yield make.probe("mean.dim", x, [1], True)
        yield make.probe("amax", x, [1])
        yield make.probe("max.dim", x, 1)
        yield make.probe("argmax", x, 1)
        yield make.probe("cumsum", x, 1)
        yield make.probe("var_mean.correction", x, [1], correction=0, keepdim=True)
        yield make.probe("topk", x, 2)
        yield make.probe("sort", x)
        for kind in ("_softmax", "_log_softmax"):
            y = getattr(torch.ops.aten, kind)(x, 1, False)
            yield make.probe(kind, x, 1, False)
            yield make.probe(f"{kind}_backward_data", g, y, 1, torch.float32)
        yield make.probe("_safe_softmax", x, 1)
        _, mean, scale = torch.ops.aten.native_layer_norm(x, [width], weight, weight, 1e-5)
        for affine in (weight, None):
            yield make.probe("native_layer_norm", x, [width], affine, affine, 1e-5)
            yield make.probe(
                "native_layer_norm_backward", g, x, [width], mean, scale, affine, affine,
                [True, affine is not None, affine is not None],
            )  # fmt: skip
        losses = torch.ops.aten._log_softmax(x, 1, False)
        loss, total = torch.ops.aten.nll_loss_forward(losses, classes, None, 1, -100)
        yield make.probe("nll_loss_forward", losses, classes, None, 1, -100)
        yield make.probe("nll_loss_backward", loss, losses, classes, None, 1, -100, total)


def _indexing(make: _Maker) -> Iterator[Probe]:
    for rows, width, table in ((16, 16, 64), (256, 64, 512), (1024, 256, 4096), (4096, 128, 2048)):
        entries, ids = make.normal(table, width), make.whole(table, rows)
        g = make.normal(rows, width)
        wide = ids[:, None].expand(rows, width)
        yield make.probe("embedding", entries, ids)
        yield make.probe("embedding_dense_backward", g, ids, table, -1, False)
        yield make.probe("index_select", entries, 0, ids)
        yield make.probe("index.Tensor", entries, [ids])
        yield make.probe("index_put", torch.zeros_like(entries), [ids], g, True)
        yield make.probe("index_add", torch.zeros_like(entries), 0, ids, g)
        yield make.probe("gather", entries, 0, wide)
        yield make.probe("scatter_add", torch.zeros_like(entries), 0, wide, g)
        yield make.probe("select_backward", g, [rows, 4, width], 1, 0)


def _pictures(make: _Maker) -> Iterator[Probe]:
    for batch, channels, side in ((1, 8, 4), (4, 16, 8), (4, 64, 16), (8, 64, 32)):
        x = make.normal(batch, channels, side, side)
        weight = torch.ones(channels, device=x.device)
        zero = torch.zeros(channels, device=x.device)
        yield make.probe(
            "_native_batch_norm_legit_functional", x, weight, zero, zero, weight, True, 0.1, 1e-5
        )
        _, mean, scale, *_ = torch.ops.aten._native_batch_norm_legit_functional(
            x, weight, zero, zero, weight, True, 0.1, 1e-5
        )
        yield make.probe(
            "native_batch_norm_backward", x, x, weight, zero, weight, mean, scale, True, 1e-5,
            [True] * 3,
        )  # fmt: skip
        yield make.probe_of(
            "mesh.batch_norm_apply", batch_norm_apply, x, weight, zero, zero, weight, 1e-5
        )
        sizes = (batch, channels, side * side, 4)
        _, mean, scale = torch.ops.aten.native_group_norm(x, weight, zero, *sizes, 1e-5)
        yield make.probe("native_group_norm", x, weight, zero, *sizes, 1e-5)
        yield make.probe(
            "native_group_norm_backward", x, x, mean, scale, weight, *sizes, [True] * 3
        )
        pooled, at = torch.ops.aten.max_pool2d_with_indices(x, [2, 2], [2, 2])
        yield make.probe("max_pool2d_with_indices", x, [2, 2], [2, 2])
        yield make.probe(
            "max_pool2d_with_indices_backward", pooled, x, [2, 2], [2, 2], [0, 0], [1, 1], False, at
        )
        yield make.probe("avg_pool2d", x, [2, 2], [2, 2])
        yield make.probe(
            "avg_pool2d_backward", pooled, x, [2, 2], [2, 2], [0, 0], False, True, None
        )
        large = [2 * side, 2 * side]
        yield make.probe("upsample_nearest2d", x, large)
        up = make.normal(batch, channels, *large)
        yield make.probe("upsample_nearest2d_backward", up, large, list(x.shape))
        yield make.probe("upsample_bilinear2d", x, large, False)
        yield make.probe("upsample_bilinear2d_backward", up, large, list(x.shape), False)


def _views(make: _Maker) -> Iterator[Probe]:
    x = make.normal(8, 16, 4)
    yield make.probe("view", x, [128, 4])
    yield make.probe("transpose.int", x, 0, 1)
    yield make.probe("permute", x, [2, 0, 1])
    yield make.probe("expand", x[:1], [8, 16, 4])
    yield make.probe("unsqueeze", x, 0)
    yield make.probe("slice.Tensor", x, 0, 0, 4)
    yield make.probe("select.int", x, 0, 1)
    yield make.probe("detach", x)
