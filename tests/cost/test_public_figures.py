"""What others measured, beside what the cost model says: sanity bounds, not a fit.

Sources are named beside each figure. Bounds are wide where a benchmark picks
its fastest run or shape, and are on the whole of a kernel's time.
"""

from __future__ import annotations

import pytest

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.profile_file import builtin_profile
from meshwright.cost.attention import Attention, attention_seconds
from meshwright.cost.communication import collective_seconds
from meshwright.cost.constants import default_constants
from meshwright.cost.hardware import AttentionKernel, hardware_of
from meshwright.cost.products import Product
from meshwright.cost.tiles import product_seconds

CONSTANTS = default_constants()

# Stas Bekman, Machine Learning Engineering, "Maximum Achievable Matmul FLOPS comparison table"
# (github.com/stas00/ml-engineering, compute/accelerator): the fastest of 100 runs of the best
# shape found; a step's sustained clock is lower, so the model may stay below.
# (kind, dtype, m, n, k, TFLOP/s)
MATMULS = [
    ("h100-sxm", "bfloat16", 2048, 2048, 13312, 794.5),
    ("a100-80g-pcie", "bfloat16", 2048, 5120, 6144, 252.9),
    ("a100-80g", "bfloat16", 6912, 2048, 16384, 267.9),
    ("mi300x", "bfloat16", 10240, 15360, 8192, 668.4),
    ("h100-sxm", "float8", 1024, 9216, 14336, 1402.6),
]


@pytest.mark.parametrize(("kind", "dtype", "m", "n", "k", "measured"), MATMULS)
def test_large_matmuls(kind: str, dtype: str, m: int, n: int, k: int, measured: float) -> None:
    product = Product(m, n, k)
    hardware = hardware_of(builtin_profile(kind))
    assert hardware is not None
    seconds = product_seconds(product, dtype, 2 if dtype == "bfloat16" else 1, hardware, CONSTANTS)
    assert 0.65 * measured < product.flops / seconds / 1e12 < 1.25 * measured


# Shah et al. 2024, "FlashAttention-3", figures 5 and 6: H100 SXM5, 16-bit, without a mask and with
# a causal one, 16k tokens, 2048 = heads * width; TFLOP/s by length 512, 1k, 2k, 4k, 8k, 16k.
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
ATTENTION = [
    ("flash2", 64, False, False, (282, 306, 318, 321, 322, 324)),
    ("flash2", 128, False, False, (309, 350, 362, 368, 370, 370)),
    ("flash2", 128, True, False, (191, 260, 298, 319, 333, 335)),
    ("flash3", 64, False, False, (333, 392, 460, 476, 496, 497)),
    ("flash3", 128, False, False, (467, 565, 625, 638, 646, 648)),
    ("flash3", 128, True, False, (292, 423, 521, 579, 602, 616)),
    ("flash2", 64, False, True, (198, 238, 264, 279, 287, 291)),
    ("flash2", 128, False, True, (214, 260, 291, 310, 318, 322)),
    ("flash3", 64, False, True, (272, 363, 422, 453, 472, 474)),
    ("flash3", 128, False, True, (316, 424, 501, 542, 559, 561)),
]


@pytest.mark.parametrize(("kernel", "width", "causal", "backward", "measured"), ATTENTION)
def test_fused_attention_on_h100(
    kernel: AttentionKernel, width: int, causal: bool, backward: bool, measured: tuple[float, ...]
) -> None:
    hardware = hardware_of(builtin_profile("h100-sxm"))
    assert hardware is not None
    for length, rate in zip(LENGTHS, measured, strict=True):
        heads = 16384 // length * (2048 // width)
        sizes = Attention(heads, length, length, 2 * width, causal, backward)
        seconds = attention_seconds(sizes, "bfloat16", kernel, hardware, CONSTANTS)
        products = 4.0 * heads * length**2 * width * (2.5 if backward else 1) / (2 if causal else 1)
        slack = 0.35 if length == 512 else 0.2
        assert products / seconds / 1e12 == pytest.approx(rate, rel=slack), length


def test_fused_attention_on_a100() -> None:
    """Dao 2023, "FlashAttention-2", section 4.1: up to 73% of the peak forward, 63% backward;
    the first generation 25 to 40%."""
    hardware = hardware_of(builtin_profile("a100-80g"))
    assert hardware is not None

    def share(kernel: AttentionKernel, backward: bool) -> float:
        sizes = Attention(16, 16384, 16384, 256, False, backward)
        seconds = attention_seconds(sizes, "bfloat16", kernel, hardware, CONSTANTS)
        return 4.0 * 16 * 16384**2 * 128 * (2.5 if backward else 1) / seconds / 312e12

    assert share("flash2", False) == pytest.approx(0.73, rel=0.15)
    assert share("flash2", True) == pytest.approx(0.63, rel=0.15)
    assert 0.25 < share("flash1", True) < share("flash1", False) < 0.45


# Bus bandwidth in GB/s as nccl-tests states it: payload times 2(n-1)/n for all_reduce, (n-1)/n for
# the others. (cluster, kind, devices, bytes, GB/s, slack)
GIB = 1 << 30
COLLECTIVES = [
    # github.com/NVIDIA/nccl-tests/issues/212, a maintainer: 480 with NVLink SHARP, 370 by ring.
    ("1x8:h100-sxm", "all_reduce", 8, 8 * GIB, 480, 0.1),
    ("1x8:h100-sxm", "all_gather", 8, 8 * GIB, 370, 0.12),
    # github.com/NVIDIA/nccl-tests/issues/272: eight H200, NCCL 2.20.
    ("1x8:h200", "all_reduce", 8, 4 * GIB, 475, 0.1),
    # github.com/NVIDIA/nccl/issues/1281: eight H100.
    ("1x8:h100-sxm", "reduce_scatter", 8, 8 * GIB, 360, 0.12),
    # github.com/NVIDIA/nccl-tests/issues/149, a maintainer: 230 of a line rate of 300.
    ("1x8:a100-80g", "all_reduce", 8, 8 * GIB, 230, 0.1),
    # github.com/NVIDIA/nccl/issues/1218: 32 hosts of eight H100 with 400 Gb/s cards.
    ("32x8:h100-sxm", "all_reduce", 256, 8 * GIB, 340, 0.15),
]


@pytest.mark.parametrize(("text", "kind", "devices", "nbytes", "measured", "slack"), COLLECTIVES)
def test_large_collectives(
    text: str, kind: str, devices: int, nbytes: int, measured: float, slack: float
) -> None:
    seconds = collective_seconds(kind, devices, 1, nbytes, parse_cluster(text))
    factor = (2 if kind == "all_reduce" else 1) * (devices - 1) / devices
    assert factor * nbytes / seconds / 1e9 == pytest.approx(measured, rel=slack)


def test_collectives_over_shared_cards() -> None:
    """github.com/NVIDIA/nccl-tests/issues/119: three hosts of eight A100 with four HDR cards of
    200 Gb/s, 96 GB/s at most at 128 MB."""
    c = parse_cluster("3x8:a100-40g")
    group = c.groups[0]
    outer = group.levels[-1].model_copy(update={"bytes_per_s": 25e9, "shared_by": 2})
    levels = (*group.levels[:-1], outer)
    c = c.model_copy(update={"groups": (group.model_copy(update={"levels": levels}),)})
    seconds = collective_seconds("all_reduce", 24, 1, 128 << 20, c)
    assert 70 < 2 * 23 / 24 * (128 << 20) / seconds / 1e9 < 100


def test_small_collectives_take_tens_of_microseconds() -> None:
    """NCCL's tuning table (github.com/NVIDIA/nccl, src/graph/tuning.cc): 6.6 us and 0.6 us a hop
    with its protocol for small messages, 14 us and 4 us between hosts for middling ones."""
    assert 5e-6 < collective_seconds("all_reduce", 8, 1, 1024, parse_cluster("1x8:a100-80g")) < 4e-5
    across = collective_seconds("all_reduce", 256, 1, 1024, parse_cluster("32x8:a100-80g"))
    assert 2e-5 < across < 3e-4
