"""What ops hold while they run, beside what PyTorch's own allocator saw them hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from meshwright.cost.scratch import DIRECT_BYTES, PIECE_BYTES, scratch_bytes
from meshwright.program.types import Op, Ref, Value
from meshwright.runtime import collectives
from meshwright.runtime.measure import measure_peak

aten = torch.ops.aten


def op(target: str, shapes: list[tuple[int, ...]], results: list[tuple[int, ...]],
       **kwargs: object) -> tuple[Op, dict[str, Value]]:  # fmt: skip
    values = {}
    for prefix, group in (("a", shapes), ("r", results)):
        for k, shape in enumerate(group):
            name = f"{prefix}{k}"
            values[name] = Value(name, shape, "float32", name)
    made = Op(
        "op", target, tuple(Ref(f"a{k}") for k in range(len(shapes))), tuple(kwargs.items()),  # type: ignore[arg-type]
        tuple(f"r{k}" for k in range(len(results))), len(results) > 1, "forward",
    )  # fmt: skip
    return made, values


def held(call: Callable[[], object]) -> int:
    """Peak beyond the results."""
    call()
    found = measure_peak(call)
    outputs = found.result if isinstance(found.result, tuple) else (found.result,)
    kept = sum(x.untyped_storage().nbytes() for x in outputs if isinstance(x, torch.Tensor))
    return found.peak_bytes - kept


@pytest.mark.parametrize(
    ("x", "w", "stride"),
    [
        ((8, 32, 16, 16), (32, 32, 3, 3), 1),
        ((8, 128, 8, 8), (512, 128, 1, 1), 2),
        ((8, 64, 16, 16), (256, 64, 1, 1), 1),
        ((1, 8, 12, 12, 12), (8, 8, 3, 3, 3), 1),
        ((2, 8, 8, 8, 8), (16, 8, 3, 3, 3), 1),
    ],
)
def test_convolutions(x: tuple[int, ...], w: tuple[int, ...], stride: int) -> None:
    dims = len(x) - 2
    rest = [[stride] * dims, [w[-1] // 2] * dims, [1] * dims, False, [0] * dims, 1]
    picture, filters = torch.randn(x), torch.randn(w)
    y = aten.convolution.default(picture, filters, None, *rest)
    g = torch.randn_like(y)
    forward = scratch_bytes(*op("aten.convolution.default", [x, w], [tuple(y.shape)]))
    measured = held(lambda: aten.convolution.default(picture, filters, None, *rest))
    size = y.nbytes + picture.nbytes
    assert abs(forward - measured) < 0.05 * size
    backward = scratch_bytes(
        *op("aten.convolution_backward.default", [tuple(y.shape), x, w], [x, w])
    )
    measured = held(
        lambda: aten.convolution_backward.default(
            g, picture, filters, None, *rest, [True, True, False]
        )
    )
    assert abs(backward - measured) < 0.35 * size  # oneDNN's choice of layout moves it


def test_attention_backward_copies_a_gradient() -> None:
    q = torch.randn(4, 6, 128, 32)
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(q, q, q, 0.0, True)
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    measured = held(lambda: backward(out, q, q, q, out, lse, 0.0, True))
    shape = tuple(q.shape)
    name = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
    assert scratch_bytes(*op(name, [shape] * 5, [shape] * 3)) == pytest.approx(measured, rel=0.15)


def test_collectives() -> None:
    whole, part = (16, 128, 64), (16, 32, 64)
    inner = {"axis": "tensor", "dim": 1, "outer": 1}
    assert scratch_bytes(*op("mesh.all_gather", [part], [whole], **inner), 4) == 4 * 16 * 128 * 64
    outer = {"axis": "data", "dim": 0, "outer": 1}
    assert scratch_bytes(*op("mesh.all_gather", [(8, 8)], [(32, 8)], **outer), 4) == 0
    small = op("mesh.all_reduce", [(16,)], [(16,)], axis="data")
    assert scratch_bytes(*small, 4) == 4 * 64
    large = op("mesh.all_reduce", [(1 << 20,)], [(1 << 20,)], axis="data")
    assert scratch_bytes(*large, 4) == 0
    assert scratch_bytes(*small, 1) == 0
    assert scratch_bytes(*op("aten.add.Tensor", [(8,), (8,)], [(8,)])) == 0


def test_sizes_are_those_of_the_runtime() -> None:
    assert DIRECT_BYTES == collectives.DIRECT_BYTES
    assert PIECE_BYTES == collectives.PIECE_BYTES
