"""Time of one op on one device."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import NamedTuple

from meshwright.cluster.types import Fitted, Profile
from meshwright.cost.accelerator import device_time, memory_seconds
from meshwright.cost.constants import Constants, default_constants
from meshwright.cost.curve import interpolate
from meshwright.cost.families import COMPUTE_BOUND, Family, family_of
from meshwright.cost.fitted import fitted_seconds, opaque_seconds, streamed_seconds
from meshwright.cost.flops import is_causal, op_flops
from meshwright.cost.hardware import PLAIN, Kernels, hardware_of
from meshwright.cost.opaque import counted
from meshwright.cost.terms import Work, work_of
from meshwright.cost.traffic import op_bytes
from meshwright.errors import RuleError
from meshwright.program.types import Op, Value

__all__ = [
    "OpTime",
    "host_seconds",
    "op_bytes",
    "op_flops",
    "op_seconds",
    "op_time",
    "streaming_seconds",
]

# A view runs the dispatcher but no kernel.
_VIEW_RATE = 3.0

_CPU_KEY_BLOCK = 512


class OpTime(NamedTuple):
    """seconds: on the device, launches included. launches: kernels that it started.

    host_s: what the host's thread takes to issue it, beside the device; 0 where
    they are one. A run of ops takes the greater of both sums.
    """

    seconds: float
    launches: int
    host_s: float


def op_seconds(op: Op, values: Mapping[str, Value], profile: Profile) -> float:
    """Seconds that one device spends on `op`; see `op_time`."""
    return op_time(op, values, profile).seconds


def op_time(
    op: Op,
    values: Mapping[str, Value],
    profile: Profile,
    constants: Constants | None = None,
    kernels: Kernels = PLAIN,
) -> OpTime:
    """What one device spends on `op`, at the local shapes in `values`.

    By the profile's measured curves where it has them; else by its data sheet,
    `constants` (those of the file where none are given) and `kernels`. Raises
    RuleError for an op outside every family, and for a collective, whose time
    is a matter of the cluster (`cost.communication`).
    """
    family = family_of(op.target)
    if family == "collective":
        raise RuleError(
            f"{op.target} has no compute time",
            "Ask meshwright.cost.communication.collective_seconds for it.",
        )
    renames = family != "opaque" and only_renames(op, values, family)
    hardware = hardware_of(profile)
    if hardware is None:
        return OpTime(_measured(op, values, profile, family, renames), int(not renames), 0.0)
    constants = constants or default_constants()
    time = device_time(
        op, values, family, op_bytes(op, values), renames, hardware, constants, kernels
    )
    return OpTime(time.seconds, time.kernels, time.host_ops * constants.host_launch_s)


def _measured(
    op: Op, values: Mapping[str, Value], profile: Profile, family: Family, renames: bool
) -> float:
    """By the constants fitted on this machine where there are any. Else by curves: matmul-like
    ops follow the profile's matmul curve, views cost a fraction of a launch,
    everything else costs the bytes that it reads and writes."""
    if profile.fitted is not None:
        return _fitted(op, values, profile.fitted, family, renames)
    if family == "opaque":
        flops, nbytes, launches = counted(op)
        moved = streaming_seconds(max(nbytes, op_bytes(op, values)), profile)
        return launches * profile.op_overhead_s + max(curve_seconds(flops, 1.0, profile), moved)
    if renames:
        return profile.op_overhead_s / profile.family_rate.get("view", _VIEW_RATE)
    rate = curve_rate(op, values, profile, family)
    streaming = streaming_seconds(op_bytes(op, values), profile)
    if family in COMPUTE_BOUND:
        flops = op_flops(op, values)
        if family == "attention" and profile.device == "cpu" and is_causal(op):
            flops *= _unskipped(op, values)
        return max(curve_seconds(flops, rate, profile), streaming)
    return profile.op_overhead_s + max(streaming - profile.op_overhead_s, 0.0) / rate


def curve_rate(op: Op, values: Mapping[str, Value], profile: Profile, family: Family) -> float:
    """Speed of an op of `family` as a multiple of what the profile's curves say."""
    rate = profile.family_rate.get(family, 1.0)
    if "_backward" in op.target:
        rate = profile.family_rate.get(f"{family}_backward", rate)
    if family in COMPUTE_BOUND:
        dtype = next((values[item].dtype for item in op.operands()), profile.matmul_dtype)
        rate *= profile.dtype_rate.get(dtype, 1.0) if dtype != profile.matmul_dtype else 1.0
    return rate


def _fitted(
    op: Op, values: Mapping[str, Value], fitted: Fitted, family: Family, renames: bool
) -> float:
    if family == "opaque":
        flops, nbytes, launches = counted(op)
        return opaque_seconds(flops, max(nbytes, op_bytes(op, values)), launches, fitted)
    return fitted_seconds(work_of(op, values, op_bytes(op, values), renames), fitted)


def op_work(op: Op, values: Mapping[str, Value]) -> Work:
    """The terms of an op that measured constants are fitted to."""
    renames = only_renames(op, values, family_of(op.target))
    return work_of(op, values, op_bytes(op, values), renames)


def streaming_seconds(
    nbytes: float, profile: Profile, constants: Constants | None = None, launches: int = 1
) -> float:
    """Seconds of `launches` pointwise ops that read and write `nbytes` in all."""
    if launches < 1:
        return 0.0
    hardware = hardware_of(profile)
    if hardware is not None:
        constants = constants or default_constants()
        moved_s = memory_seconds(nbytes, hardware, constants)
        return launches * constants.kernel_launch_s + moved_s
    if profile.fitted is not None:
        return launches * streamed_seconds(nbytes / launches, profile.fitted)
    if profile.memory:
        return launches * interpolate(profile.memory, max(nbytes / launches, 1.0))
    return launches * profile.op_overhead_s + nbytes / profile.memory_bytes_per_s


def host_seconds(ops: float, profile: Profile, constants: Constants | None = None) -> float:
    """Seconds in which the host's thread issues `ops`; 0 where it computes them itself."""
    if hardware_of(profile) is None:
        return 0.0
    return ops * (constants or default_constants()).host_launch_s


def curve_seconds(flops: float, rate: float, profile: Profile) -> float:
    """Seconds of `flops` by the profile's curve of products, `rate` times as fast."""
    launch = profile.op_overhead_s
    plain = interpolate(profile.matmul, max(flops, 1.0))
    # A slower kernel or dtype slows the arithmetic, not the launch.
    return launch + max(plain - launch, 0.0) / rate


def _unskipped(op: Op, values: Mapping[str, Value]) -> float:
    """Work of PyTorch's causal attention on a CPU, as a multiple of the half it needs.

    It leaves out whole blocks of keys alone, so none of a short sequence.
    """
    query = values[next(op.operands())]
    blocks = max(1, ceil(query.shape[-2] / _CPU_KEY_BLOCK))
    return (blocks + 1) / blocks


def only_renames(op: Op, values: Mapping[str, Value], family: Family) -> bool:
    """Whether `op` makes views alone and runs no kernel."""
    in_place = op.target.split(".")[1].endswith("_")
    if in_place or not op.results:
        return family == "view"
    return all(item is None or values[item].is_view for item in op.results)
