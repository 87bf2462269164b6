"""Times, FLOPs and bytes of single ops."""

from __future__ import annotations

from typing import Any

import pytest

from meshwright.cluster.types import Point, Profile
from meshwright.cost.compute import op_bytes, op_flops, op_seconds
from meshwright.cost.curve import interpolate
from meshwright.errors import RuleError
from meshwright.program.types import Op, Ref, Value

FLASH = "aten._scaled_dot_product_flash_attention_for_cpu"


def profile(**changes: Any) -> Profile:
    fields: dict[str, Any] = {
        "name": "plain", "device": "cpu", "source": "test", "memory_bytes": 1 << 30,
        "peak_flops": 1e12, "memory_bytes_per_s": 1e10, "op_overhead_s": 1e-6,
        "matmul": (Point(x=1e6, seconds=1e-5), Point(x=1e8, seconds=1e-4)),
    }  # fmt: skip
    return Profile(**(fields | changes))


def case(
    target: str,
    operands: list[tuple[int, ...]],
    *results: tuple[int, ...] | None,
    literals: tuple[Any, ...] = (),
    dtype: str = "float32",
    of: str | None = None,
) -> tuple[Op, dict[str, Value]]:
    values = {f"a{i}": Value(f"a{i}", s, dtype, f"a{i}") for i, s in enumerate(operands)}
    names: list[str | None] = []
    for index, shape in enumerate(results):
        name = f"r{index}"
        names.append(None if shape is None else name)
        if shape is not None:
            values[name] = Value(name, shape, dtype, of or name)
    args = (*(Ref(name) for name in list(values)[: len(operands)]), *literals)
    return Op("op", target, args, (), tuple(names), len(names) > 1, "forward"), values


CONVOLUTION = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)


@pytest.mark.parametrize(
    ("made", "flops"),
    [
        (case("aten.mm.default", [(3, 5), (5, 7)], (3, 7)), 2 * 3 * 5 * 7),
        (case("aten.addmm.default", [(7,), (3, 5), (5, 7)], (3, 7)), 2 * 3 * 5 * 7),
        (case("aten.bmm.default", [(2, 3, 5), (2, 5, 7)], (2, 3, 7)), 2 * 2 * 3 * 5 * 7),
        (case("aten.baddbmm.default", [(2, 3, 7), (2, 3, 5), (2, 5, 7)], (2, 3, 7)), 420),
        (case("aten.linear.default", [(3, 5), (7, 5)], (3, 7)), 2 * 3 * 5 * 7),
        (case("aten.dot.default", [(9,), (9,)], ()), 18),
        (
            case("aten._grouped_mm.default", [(5, 8), (8, 7), (2,)], (2, 5, 7)),
            2 * 5 * 8 * 7,
        ),
        (case("aten.convolution.default", [(2, 3, 8, 8), (4, 3, 3, 3), (4,)], (2, 4, 8, 8),
              literals=CONVOLUTION), 2 * (2 * 4 * 8 * 8) * 3 * 9),
        (case("aten.convolution_backward.default",
              [(2, 4, 8, 8), (2, 3, 8, 8), (4, 3, 3, 3)], None, (4, 3, 3, 3), (4,),
              literals=((4,), *CONVOLUTION)), 2 * (2 * 4 * 8 * 8) * 3 * 9),
        (case(f"{FLASH}.default", [(2, 4, 16, 8), (2, 4, 32, 8), (2, 4, 32, 8)], (2, 4, 16, 8),
              (2, 4, 16)), 4 * 2 * 4 * 16 * 32 * 8),
        (case(f"{FLASH}.default", [(2, 4, 16, 8)] * 3, (2, 4, 16, 8), (2, 4, 16),
              literals=(0.0, True)), 2 * 2 * 4 * 16 * 16 * 8),
        (case(f"{FLASH}_backward.default", [(2, 4, 16, 8)] * 5 + [(2, 4, 16)],
              *[(2, 4, 16, 8)] * 3, literals=(0.0, False)), 2.5 * 4 * 2 * 4 * 16 * 16 * 8),
        (case("aten.add.Tensor", [(4, 4), (4, 4)], (4, 4)), 0),
    ],
)  # fmt: skip
def test_flops(made: tuple[Op, dict[str, Value]], flops: float) -> None:
    assert op_flops(*made) == flops


def test_transposed_convolution_counts_inputs() -> None:
    op, values = case(
        "aten.convolution.default", [(2, 3, 8, 8), (3, 4, 2, 2)], (2, 4, 16, 16),
        literals=(None, (2, 2), (0, 0), (1, 1), True, (0, 0), 1),
    )  # fmt: skip
    assert op_flops(op, values) == 2 * (2 * 3 * 8 * 8) * 4 * 4


def test_bytes_count_expanded_and_repeated_operands_once() -> None:
    op, values = case("aten.mul.Tensor", [(64, 64), (64, 64)], (64, 64))
    assert op_bytes(op, values) == 3 * 4 * 4096
    values["bias"] = Value("bias", (64,), "float32", "bias")
    values["a1"] = Value("a1", (64, 64), "float32", "bias")
    assert op_bytes(op, values) == 2 * 4 * 4096 + 256
    square = Op("s", "aten.mul.Tensor", (Ref("a0"), Ref("a0")), (), ("r0",), False, "forward")
    assert op_bytes(square, values) == 2 * 4 * 4096


def test_lookups_read_the_rows_alone() -> None:
    op, values = case("aten.embedding.default", [(10**6, 64), (8,)], (8, 64))
    assert op_bytes(op, values) == 2 * 8 * 64 * 4 + 8 * 4
    op, values = case("aten.zeros_like.default", [(64, 64)], (64, 64))
    assert op_bytes(op, values) == 4 * 4096


def test_operands_that_are_picked_from_or_lend_their_shape_are_not_read_whole() -> None:
    rows, classes = 64, 1000
    full = 4 * rows * classes
    for target in ("aten.nll_loss_forward.default", "mesh.nll_loss"):
        op, values = case(target, [(rows, classes), (rows,)], ())
        assert op_bytes(op, values) == 2 * 4 * rows + 4
    op, values = case(
        "aten.nll_loss_backward.default", [(), (rows, classes), (rows,)], (rows, classes)
    )
    assert op_bytes(op, values) == full + 4 * rows + 4
    op, values = case("aten.avg_pool2d_backward.default", [(4, 8, 8), (4, 16, 16)], (4, 16, 16))
    assert op_bytes(op, values) == 4 * (256 + 1024)


def test_time_of_memory_bound_ops() -> None:
    op, values = case("aten.add.Tensor", [(1000, 1000)] * 2, (1000, 1000))
    assert op_seconds(op, values, profile()) == pytest.approx(1e-6 + 12e6 / 1e10)
    op, values = case("aten.gelu.default", [(1000, 1000)], (1000, 1000))
    slow = profile(family_rate={"transcendental": 0.5})
    assert op_seconds(op, values, slow) == pytest.approx(1e-6 + 2 * 8e6 / 1e10)


def test_measured_streaming_replaces_the_formula() -> None:
    op, values = case("aten.add.Tensor", [(1000, 1000)] * 2, (1000, 1000))
    measured = profile(memory=(Point(x=1e3, seconds=2e-6), Point(x=1e6, seconds=1e-4)))
    assert op_seconds(op, values, measured) == pytest.approx(12e-4)


def test_time_of_matmuls() -> None:
    op, values = case("aten.mm.default", [(250, 200), (200, 100)], (250, 100))
    assert op_seconds(op, values, profile(memory_bytes_per_s=1e13)) == pytest.approx(
        1e-5 * 10**0.5, rel=1e-3
    )
    # Twice the rate halves all but the launch.
    half = profile(memory_bytes_per_s=1e13, dtype_rate={"bfloat16": 2.0})
    op, values = case("aten.mm.default", [(250, 200), (200, 100)], (250, 100), dtype="bfloat16")
    assert op_seconds(op, values, half) == pytest.approx(1e-6 + (10**-4.5 - 1e-6) / 2, rel=1e-3)


def test_thin_matmuls_are_bound_by_memory() -> None:
    op, values = case("aten.mm.default", [(1, 4096), (4096, 4096)], (1, 4096))
    assert op_seconds(op, values, profile()) > 4096 * 4096 * 4 / 1e10


def test_causal_attention_on_a_cpu_leaves_out_whole_blocks_alone() -> None:
    def seconds(length: int, causal: bool, device: str) -> float:
        shape = (1, 8, length, 64)
        op, values = case(f"{FLASH}.default", [shape] * 3, shape, shape[:3], literals=(0.0, causal))
        fast = profile(device=device, op_overhead_s=0, memory_bytes_per_s=1e15)
        return op_seconds(op, values, fast)

    assert seconds(512, True, "cpu") == seconds(512, False, "cpu")
    assert seconds(2048, True, "cpu") == pytest.approx(5 / 8 * seconds(2048, False, "cpu"))
    assert seconds(2048, True, "cuda") == pytest.approx(1 / 2 * seconds(2048, False, "cuda"))


def test_views_cost_next_to_nothing() -> None:
    op, values = case("aten.view.default", [(1000, 1000)], (10**6,), of="a0")
    assert op_seconds(op, values, profile()) < 1e-6
    copied, values = case("aten.reshape.default", [(1000, 1000)], (10**6,))
    assert op_seconds(copied, values, profile()) > 1e-4
    added, values = case("aten.add_.Tensor", [(1000, 1000)], (1000, 1000), of="a0")
    assert op_seconds(added, values, profile()) > 1e-4


def test_collectives_and_unknown_ops_are_refused() -> None:
    for target in ("mesh.all_reduce", "mesh.unheard_of"):
        op, values = case(target, [(4,)], (4,))
        with pytest.raises(RuleError):
            op_seconds(op, values, profile())


def test_an_op_of_a_users_own_costs_what_it_reads_and_writes() -> None:
    small = case("mylib.op.default", [(1 << 20,)], (1 << 20,))
    large = case("mylib.op.default", [(1 << 22,)], (1 << 22,))
    known = case("aten.add.Tensor", [(1 << 22,)], (1 << 22,))
    assert op_seconds(*small, profile()) < op_seconds(*large, profile())
    assert op_seconds(*large, profile()) == pytest.approx(op_seconds(*known, profile()))


def test_curve() -> None:
    points = (Point(x=10, seconds=1), Point(x=1000, seconds=10), Point(x=2000, seconds=15))
    assert interpolate(points, 1) == 1
    assert interpolate(points, 10) == 1
    assert interpolate(points, 100) == pytest.approx(10**0.5)
    assert interpolate(points, 1000) == pytest.approx(10)
    assert interpolate(points, 4000) == 30
    assert interpolate(points[:1], 100) == 10
