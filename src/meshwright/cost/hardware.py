"""What the cost model reads of an accelerator's data sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from meshwright.cluster.types import Profile

AttentionKernel = Literal["flash1", "flash2", "flash3"]

# Where a product of one dtype is no row of the data sheet: what runs it instead.
_LIKE = {"bfloat16": "float16", "float16": "bfloat16", "float8": "bfloat16", "tf32": "float32"}

# Watts for each compute unit and clock cycle of the boards that the fitted efficiencies are of:
# A100 and H100, both SXM.
_WATTS_PER_CYCLE = {"ampere": 400 / (108 * 1.41e9), "hopper": 700 / (132 * 1.83e9)}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Rates of one device as its data sheet states them, no efficiency in them.

    units: the multiprocessors that a kernel's tiles are spread over. peaks:
    dense FLOP/s by dtype; float32 is without TF32, which is `tf32`.
    special_per_s: exponentials a second. l2_bytes: the cache of all units.
    sustained: part of the stated clock that its power lets it hold in matrix
    work, beside the board that the constants of its architecture were fitted
    on; power grows with the cube of the clock, since voltage rises with it.
    """

    architecture: str | None
    units: int
    peaks: Mapping[str, float]
    memory_bytes_per_s: float
    special_per_s: float
    l2_bytes: float = 0.0
    sustained: float = 1.0

    def peak(self, dtype: str) -> float:
        """FLOP/s of products of `dtype`; what has no tensor core runs as float32."""
        for name in (dtype, _LIKE.get(dtype, dtype)):
            if name in self.peaks:
                return self.peaks[name]
        return self.peaks.get("float32", min(self.peaks.values()))

    def on_tensor_cores(self, dtype: str) -> bool:
        """Whether products of `dtype` outrun plain float32 arithmetic."""
        return self.peak(dtype) > 1.5 * self.peaks.get("float32", 0.0)


@dataclass(frozen=True, slots=True)
class Kernels:
    """Which kernels a framework runs where several would do.

    attention: the generation of fused attention: FlashAttention 1, 2 (PyTorch's
    own too), or 3 (cuDNN's on Hopper too). linear_dtype: what products of
    weights run in where that is not the operands' own, such as `float8`.
    """

    attention: AttentionKernel = "flash2"
    linear_dtype: str | None = None


PLAIN = Kernels()

# Special-function results a clock of one multiprocessor (CUDA programming guide, "Arithmetic
# Instructions"), and a clock for devices whose profile names none.
_SPECIAL_PER_CLOCK = 16
_CLOCK_HZ = 1.5e9


def hardware_of(profile: Profile) -> Hardware | None:
    """None where the profile holds measured times, which are read in its place."""
    if profile.matmul or profile.fitted is not None or not profile.peak_flops_by_dtype:
        return None
    units = profile.compute_units or 1
    clock_hz = profile.clock_hz or _CLOCK_HZ
    sustained = 1.0
    reference = _WATTS_PER_CYCLE.get(profile.architecture or "")
    if reference and profile.power_w and profile.clock_hz:
        sustained = min(1.0, (profile.power_w / (units * clock_hz) / reference) ** (1 / 3))
    return Hardware(
        architecture=profile.architecture,
        units=units,
        peaks={str(name): rate for name, rate in profile.peak_flops_by_dtype.items()},
        memory_bytes_per_s=profile.memory_bytes_per_s,
        special_per_s=profile.exponentials_per_s or units * clock_hz * _SPECIAL_PER_CLOCK,
        l2_bytes=profile.l2_bytes or 0.0,
        sustained=sustained,
    )
