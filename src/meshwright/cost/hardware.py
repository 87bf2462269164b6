"""What the cost model reads of an accelerator's data sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from meshwright.cluster.types import Profile

AttentionKernel = Literal["flash1", "flash2", "flash3"]

# Where a product of one dtype is no row of the data sheet: what runs it instead.
_LIKE = {"bfloat16": "float16", "float16": "bfloat16", "float8": "bfloat16", "tfloat32": "float32"}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Rates of one device as its data sheet states them, no efficiency in them.

    multiprocessors: the units that a kernel's tiles are spread over. peaks:
    dense FLOP/s by dtype; float32 is without TF32, which is `tfloat32`.
    special_per_s: exponentials a second of the whole device.
    """

    architecture: str | None
    multiprocessors: int
    peaks: Mapping[str, float]
    memory_bytes_per_s: float
    special_per_s: float

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
# Instructions"): 16 on all of NVIDIA's so far.
_SPECIAL_PER_CLOCK = 16


def hardware_of(profile: Profile) -> Hardware | None:
    """None where the profile was measured, or says nothing of its hardware: its curves hold."""
    facts: Any = profile
    peaks = getattr(facts, "peaks", None)
    units = getattr(facts, "multiprocessors", None)
    if profile.calibrated or not peaks or not units:
        return None
    clock_hz = getattr(facts, "clock_hz", None) or 1.5e9
    stated = getattr(facts, "memory_peak_bytes_per_s", None) or profile.memory_bytes_per_s
    return Hardware(
        architecture=getattr(facts, "architecture", None),
        multiprocessors=units,
        peaks=dict(peaks),
        memory_bytes_per_s=stated,
        special_per_s=units * clock_hz * _SPECIAL_PER_CLOCK,
    )
