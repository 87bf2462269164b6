"""Times on accelerators: products by tiles, attention, memory-bound ops, launches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.profile_file import builtin_kinds, builtin_profile
from meshwright.cost.attention import Attention, attention_seconds
from meshwright.cost.compute import op_bytes, op_flops, op_time
from meshwright.cost.constants import default_constants
from meshwright.cost.hardware import AttentionKernel, Hardware, Kernels, hardware_of
from meshwright.cost.products import Product, products_of
from meshwright.cost.table import CostTable, table_for
from meshwright.cost.tiles import product_seconds
from meshwright.program.types import Op, Ref, Value

CONSTANTS = default_constants()


def hardware(kind: str = "a100-80g") -> Hardware:
    found = hardware_of(builtin_profile(kind))
    assert found is not None
    return found


def case(
    target: str,
    operands: list[tuple[int, ...]],
    *results: tuple[int, ...],
    literals: tuple[Any, ...] = (),
    dtype: str = "bfloat16",
) -> tuple[Op, dict[str, Value]]:
    values = {f"a{i}": Value(f"a{i}", shape, dtype, f"a{i}") for i, shape in enumerate(operands)}
    args = tuple(Ref(name) for name in values)
    for i, shape in enumerate(results):
        values[f"r{i}"] = Value(f"r{i}", shape, dtype, f"r{i}")
    names = tuple(f"r{i}" for i in range(len(results)))
    return Op("op", target, (*args, *literals), (), names, len(names) > 1, "forward"), values


CONVOLUTION = (None, (1, 1), (1, 1), (1, 1), False, (0, 0))


class TestProducts:
    @pytest.mark.parametrize(
        ("made", "products"),
        [
            (case("aten.mm.default", [(3, 5), (5, 7)], (3, 7)), [Product(3, 7, 5)]),
            (case("aten.addmm.default", [(7,), (3, 5), (5, 7)], (3, 7)), [Product(3, 7, 5)]),
            (case("aten.bmm.default", [(2, 3, 5), (2, 5, 7)], (2, 3, 7)), [Product(3, 7, 5, 2)]),
            (case("aten.baddbmm.default", [(2, 3, 7), (2, 3, 5), (2, 5, 7)], (2, 3, 7)),
             [Product(3, 7, 5, 2)]),
            (case("aten.linear.default", [(4, 3, 5), (7, 5)], (4, 3, 7)), [Product(12, 7, 5)]),
            (case("aten.mv.default", [(3, 5), (5,)], (3,)), [Product(3, 1, 5)]),
            (case("aten.dot.default", [(9,), (9,)], ()), [Product(1, 1, 9)]),
            (case("aten._grouped_mm.default", [(10, 8), (5, 8, 7), (5,)], (10, 7)),
             [Product(2, 7, 8, 5)]),
            (case("aten.linear_backward.default", [(3, 5), (3, 7), (7, 5)], (3, 5), (7, 5)),
             [Product(3, 5, 7), Product(7, 5, 3)]),
            (case("aten.convolution.default", [(2, 6, 8, 8), (4, 3, 3, 3)], (2, 4, 8, 8),
                  literals=(*CONVOLUTION, 2)), [Product(128, 2, 27, 2)]),
        ],
    )  # fmt: skip
    def test_of_ops(self, made: tuple[Op, dict[str, Value]], products: list[Product]) -> None:
        assert list(products_of(*made)) == products
        assert sum(item.flops for item in products) == op_flops(*made)

    def test_of_a_convolutions_gradients(self) -> None:
        op, values = case(
            "aten.convolution_backward.default",
            [(2, 4, 8, 8), (2, 6, 8, 8), (4, 3, 3, 3)], (2, 6, 8, 8), (4, 3, 3, 3),
            literals=((4,), (1, 1), (1, 1), (1, 1), False, (0, 0), 2),
        )  # fmt: skip
        assert products_of(op, values) == (Product(128, 27, 2, 2), Product(2, 27, 128, 2))
        assert sum(item.flops for item in products_of(op, values)) == op_flops(op, values)


sides = st.integers(1, 1024).map(lambda side: 8 * side)


@settings(max_examples=60)
@given(sides, sides, sides, st.integers(1, 64), st.sampled_from(["m", "n", "k", "batch"]))
def test_products_stay_above_the_roofline_and_never_shrink(
    m: int, n: int, k: int, batch: int, side: str
) -> None:
    small = Product(m, n, k, batch)
    device = hardware()
    seconds = product_seconds(small, "bfloat16", 2, device, CONSTANTS)
    assert seconds >= small.flops / device.peak("bfloat16")
    large = small._replace(**{side: getattr(small, side) + 8})
    assert product_seconds(large, "bfloat16", 2, device, CONSTANTS) >= seconds * (1 - 1e-9)


def test_a_wave_that_is_not_full_costs_as_much_as_a_full_one() -> None:
    device = hardware()
    full = product_seconds(Product(256 * 108, 128, 4096), "bfloat16", 2, device, CONSTANTS)
    more = product_seconds(Product(256 * 109, 128, 4096), "bfloat16", 2, device, CONSTANTS)
    assert more > 1.2 * full


def test_short_depths_pay_for_beginning_and_ending_tiles() -> None:
    device = hardware("h100-sxm")

    def rate(k: int) -> float:
        product = Product(8192, 8192, k)
        return product.flops / product_seconds(product, "bfloat16", 2, device, CONSTANTS)

    assert rate(256) < 0.75 * rate(8192)
    assert rate(1024) < 0.95 * rate(8192)


def test_sides_that_are_no_multiples_of_16_bytes_are_slow_on_tensor_cores_alone() -> None:
    device = hardware()
    even = product_seconds(Product(2048, 2048, 216), "float16", 2, device, CONSTANTS)
    odd = product_seconds(Product(2048, 2048, 108), "float16", 2, device, CONSTANTS)
    assert odd > 0.7 * even  # half the work
    # Batches of such products run without tensor cores.
    batch = Product(2048, 2048, 108, 64)
    slow = product_seconds(batch, "float16", 2, device, CONSTANTS)
    assert slow == pytest.approx(product_seconds(batch, "float32", 4, device, CONSTANTS))
    even = product_seconds(Product(2048, 2048, 216), "float32", 4, device, CONSTANTS)
    odd = product_seconds(Product(2048, 2048, 108), "float32", 4, device, CONSTANTS)
    assert odd < 0.6 * even


def test_dtypes_have_their_own_peaks() -> None:
    device = hardware("h100-sxm")
    product = Product(8192, 8192, 8192)
    seconds = [
        product_seconds(product, dtype, size, device, CONSTANTS)
        for dtype, size in (("float8", 1), ("bfloat16", 2), ("tf32", 4), ("float32", 4))
    ]
    assert seconds == sorted(seconds)
    assert seconds[3] > 5 * seconds[2]
    volta = hardware("v100-32g")
    assert volta.peak("bfloat16") in (volta.peaks.get("float16"), volta.peaks["float32"])


def test_less_power_holds_a_lower_clock() -> None:
    normal, limited = hardware("h100-sxm"), hardware("h100-96g-500w")
    assert normal.sustained == 1
    assert limited.sustained == pytest.approx((500 / 700) ** (1 / 3))


@settings(max_examples=60)
@given(
    st.integers(1, 64), st.integers(1, 4096), st.sampled_from([64, 128, 256]), st.booleans(),
    st.booleans(), st.sampled_from(["flash1", "flash2", "flash3"]),
)  # fmt: skip
def test_attention_stays_above_the_roofline_and_never_shrinks(
    heads: int, length: int, width: int, causal: bool, backward: bool, kernel: AttentionKernel
) -> None:
    device = hardware("h100-sxm")

    def seconds(length: int) -> float:
        sizes = Attention(heads, length, length, 2 * width, causal, backward)
        return attention_seconds(sizes, "bfloat16", kernel, device, CONSTANTS)

    products = 2.0 * heads * length * length * 2 * width * (2.5 if backward else 1)
    assert seconds(length) > products / (2 if causal else 1) / device.peak("bfloat16")
    assert seconds(length + 1) >= seconds(length) * (1 - 1e-9)


@settings(max_examples=60)
@given(
    st.sampled_from(
        ["aten.add.Tensor", "aten._softmax.default", "aten.native_layer_norm.default",
         "aten.mul.Tensor", "aten.gelu.default", "aten.clone.default", "aten.sum.default"]
    ),
    st.integers(1, 1 << 14), st.integers(1, 4096), st.sampled_from(builtin_kinds()),
)  # fmt: skip
def test_nothing_is_faster_than_its_bytes_or_free(
    target: str, rows: int, columns: int, kind: str
) -> None:
    profile = builtin_profile(kind)
    op, values = case(target, [(rows, columns)], (rows, columns))
    time = op_time(op, values, profile)
    assert time.seconds > op_bytes(op, values) / profile.memory_bytes_per_s
    assert time.launches >= 1
    assert time.host_s > 0
    more, values = case(target, [(rows + 1, columns)], (rows + 1, columns))
    assert op_time(more, values, profile).seconds > time.seconds


def test_softmax_reads_long_rows_again_where_the_cache_is_small() -> None:
    def slowdown(kind: str, columns: int) -> float:
        op, values = case("aten._log_softmax.default", [(8192, columns)], (8192, columns))
        profile = builtin_profile(kind)
        rate = profile.memory_bytes_per_s * CONSTANTS.memory_efficiency
        rate *= CONSTANTS.reduction_efficiency
        return op_time(op, values, profile).seconds / (op_bytes(op, values) / rate)

    assert slowdown("v100-32g", 1024) == pytest.approx(1, abs=0.1)
    assert slowdown("v100-32g", 50368) > 1.5
    assert slowdown("h100-sxm", 50368) == pytest.approx(1, abs=0.1)


def test_views_cost_the_host_alone() -> None:
    op, values = case("aten.view.default", [(1000, 1000)], (10**6,))
    values["r0"] = Value("r0", (10**6,), "bfloat16", "a0")
    time = op_time(op, values, builtin_profile("a100-80g"))
    assert (time.seconds, time.launches) == (0, 0)
    assert 0 < time.host_s < CONSTANTS.host_launch_s


def test_thin_products_are_bound_by_memory() -> None:
    op, values = case("aten.mm.default", [(8, 4096), (4096, 4096)], (8, 4096))
    profile = builtin_profile("a100-80g")
    floor = op_bytes(op, values) / profile.memory_bytes_per_s
    assert floor < op_time(op, values, profile).seconds < 3 * floor


def test_depthwise_convolutions_are_no_tensor_core_work() -> None:
    profile = builtin_profile("a100-80g")
    shape = (32, 256, 56, 56)
    plain, values = case("aten.convolution.default", [shape, (256, 1, 3, 3)], shape,
                         literals=(*CONVOLUTION, 256))  # fmt: skip
    time = op_time(plain, values, profile).seconds
    floor = op_bytes(plain, values) / profile.memory_bytes_per_s
    assert floor < time < 5 * floor


def test_frameworks_choose_kernels() -> None:
    cluster = parse_cluster("1x8:h100-sxm")
    op, values = case("aten.mm.default", [(8192, 8192), (8192, 8192)], (8192, 8192))
    plain = table_for(cluster).op(op, ["a0", "a1"], values)
    small = table_for(cluster, kernels=Kernels(linear_dtype="float8")).op(op, ["a0", "a1"], values)
    assert small.seconds == pytest.approx(plain.seconds / 2, rel=0.2)
    # Casting the operands outweighs that where they are large beside the arithmetic.
    op, values = case("aten.mm.default", [(65536, 512), (512, 512)], (65536, 512))
    plain = table_for(cluster).op(op, ["a0", "a1"], values)
    small = table_for(cluster, kernels=Kernels(linear_dtype="float8")).op(op, ["a0", "a1"], values)
    assert small.seconds > 0.8 * plain.seconds
    shape = (4, 16, 4096, 128)
    op, values = case("aten._scaled_dot_product_flash_attention.default", [shape] * 3, shape)
    each = [
        table_for(cluster, kernels=Kernels(kernel)).op(op, ["a0", "a1", "a2"], values).seconds
        for kernel in ("flash1", "flash2", "flash3")
    ]
    assert each[0] > 1.5 * each[1] > 2 * each[2]


def test_constants_are_passed_on_to_every_cost() -> None:
    cluster = parse_cluster("2x8:a100-80g")
    slow = CostTable(
        cluster,
        replace(
            CONSTANTS,
            matmul_efficiency_ampere=CONSTANTS.matmul_efficiency_ampere / 2,
            memory_efficiency=CONSTANTS.memory_efficiency / 2,
            link_efficiency_in_host=CONSTANTS.link_efficiency_in_host / 2,
            transfer_efficiency=CONSTANTS.transfer_efficiency / 2,
        ),
    )
    fast = CostTable(cluster)
    op, values = case("aten.mm.default", [(4096, 4096), (4096, 4096)], (4096, 4096))
    assert slow.op(op, ["a0", "a1"], values).seconds > 1.9 * fast.op(op, ["a0", "a1"], values)[0]
    assert slow.streaming(1e9) > 1.9 * fast.streaming(1e9)
    assert slow.collective("all_reduce", 8, 1, 1 << 30) > 1.9 * fast.collective(
        "all_reduce", 8, 1, 1 << 30
    )
    assert slow.message(1e9, 0, 4) > 1.9 * fast.message(1e9, 0, 4)
    assert slow.tier(1e9, "host", "read") > 1.9 * fast.tier(1e9, "host", "read")
