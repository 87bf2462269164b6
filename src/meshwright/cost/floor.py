"""The least that an op can take on one device, however a plan cuts it over several.

A plan that cuts an op over `ways` devices in all leaves the first of them at least
that share of every dim, hence of the bytes and of the arithmetic; cuts that don't
divide evenly leave it more. Nothing here looks at which cuts there are: every
figure is that of the most favourable one, with the fixed costs that no cut divides
(launches). A floor never exceeds what `cost.compute.op_time` says of the op, or of
what lowering puts in its place, on local shapes. Why, family by family:

memory-bound ops    their time grows with the bytes; those of one share are the least
products by tiles   grow with each side, so that the least over all ways of dividing
                    the sides is found by trying them; sides that are cut count as aligned
attention           its waves and masks only add to scores times the time of one
fitted constants    are not negative, and each term is at least its share
measured curves     are made to rise first: the least time at so much work or more
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from math import ceil

from meshwright.cluster.types import Curve, Fitted, Point, Profile
from meshwright.cost.accelerator import memory_seconds
from meshwright.cost.compute import (
    OpTime,
    curve_rate,
    curve_seconds,
    only_renames,
    op_bytes,
    op_time,
    streaming_seconds,
)
from meshwright.cost.constants import Constants
from meshwright.cost.families import COMPUTE_BOUND, Family, family_of
from meshwright.cost.fitted import constants_of
from meshwright.cost.flops import attention_of, op_flops
from meshwright.cost.hardware import Hardware, Kernels, hardware_of
from meshwright.cost.products import products_of
from meshwright.cost.terms import Work, work_of
from meshwright.cost.tiles import least_product_seconds
from meshwright.program.types import ITEM_BYTES, Op, Value

# One round error less than what it is compared with.
_ROUNDING = 1 - 1e-9


def floor_time(
    op: Op,
    values: Mapping[str, Value],
    ways: int,
    profile: Profile,
    constants: Constants,
    kernels: Kernels,
    *,
    changes: bool = False,
    dealt: bool = False,
) -> OpTime:
    """The least that one device spends on `op`, whose whole shapes are in `values`.

    changes: a special lowering may put other ops in its place. dealt: devices may own
    whole ops of this kind by turns, so that fixed costs are divided as well. Raises
    RuleError for a collective and for an op outside every family.
    """
    family = family_of(op.target)
    if family == "opaque":  # what its calls were counted to take is not its alone
        return OpTime(0.0, 0, 0.0)
    hardware = hardware_of(profile)
    if only_renames(op, values, family):
        return OpTime(0.0, 0, 0.0) if dealt else op_time(op, values, profile, constants, kernels)
    if hardware is not None:
        return _on_accelerator(op, values, family, ways, profile, constants, kernels, dealt)
    seconds = (
        _by_constants(op, values, family, ways, profile.fitted, changes, dealt)
        if profile.fitted is not None
        else _by_curves(op, values, family, ways, _rising(profile), dealt)
    )
    return OpTime(seconds * _ROUNDING, int(not dealt), 0.0)


def _on_accelerator(
    op: Op,
    values: Mapping[str, Value],
    family: Family,
    ways: int,
    profile: Profile,
    constants: Constants,
    kernels: Kernels,
    dealt: bool,
) -> OpTime:
    hardware = hardware_of(profile)
    assert hardware is not None
    if family not in COMPUTE_BOUND:
        least = op_time(op, _shared(op, values, ways), profile, constants, kernels)
        if not dealt:
            return OpTime(least.seconds * _ROUNDING, least.launches, least.host_s)
        work_s = least.seconds - least.launches * constants.kernel_launch_s
        return OpTime(max(work_s, 0.0) * _ROUNDING, 0, 0.0)
    moved_s = memory_seconds(op_bytes(op, values) / ways, hardware, constants, family)
    work_s = _arithmetic(op, values, family, ways, hardware, constants, kernels, dealt)
    seconds = max(moved_s, work_s)
    if dealt:
        return OpTime(seconds * _ROUNDING, 0, 0.0)
    count = max(len(products_of(op, values)), 1) if family in ("matmul", "convolution") else 1
    seconds += count * constants.kernel_launch_s
    return OpTime(seconds * _ROUNDING, count, constants.host_launch_s)


def _arithmetic(
    op: Op,
    values: Mapping[str, Value],
    family: Family,
    ways: int,
    hardware: Hardware,
    constants: Constants,
    kernels: Kernels,
    dealt: bool,
) -> float:
    dtype = next((values[item].dtype for item in op.operands()), "float32")
    item_bytes = ITEM_BYTES[dtype]
    efficiency = constants.matmul_efficiency(hardware.architecture)
    if family == "recurrent":
        rate = hardware.peak(dtype) * efficiency * hardware.sustained
        return op_flops(op, values) / (rate * constants.recurrent_efficiency) / ways
    if family == "attention":
        sizes = attention_of(op, values)
        rate = hardware.peak(dtype) * hardware.sustained
        rate *= constants.attention_efficiency(
            hardware.architecture, sizes.backward, kernels.attention
        )
        per_score = (
            constants.exponentials_per_score_backward
            if sizes.backward
            else constants.exponentials_per_score_forward
        )
        scores = sizes.heads * sizes.queries * sizes.keys / (2 if sizes.causal else 1)
        special_s = scores * per_score / (hardware.special_per_s * hardware.sustained)
        return (op_flops(op, values) / rate + special_s) / ways
    seconds = 0.0
    if family == "convolution" and dtype == "float32" and "tf32" in hardware.peaks:
        dtype = "tf32"
    if family == "matmul" and kernels.linear_dtype:
        dtype = max(dtype, kernels.linear_dtype, key=hardware.peak)
    grouped = op.target.split(".")[1] == "_grouped_mm"
    for item in products_of(op, values):
        least = least_product_seconds(
            item, dtype, item_bytes, hardware, constants, ways, scaled=dealt or grouped
        )
        if grouped:  # a group's rows are counted as a whole number, rounded down
            least *= min(max(item.m // n, 1) * n / item.m for n in range(1, ways + 1))
        if family == "convolution":
            if item.batch > 1:
                least = min(least, item.flops / (hardware.peak("float32") * efficiency) / ways)
            least /= constants.convolution_efficiency
        seconds += least
    return seconds


def _shared(op: Op, values: Mapping[str, Value], ways: int) -> dict[str, Value]:
    """What `op` touches, each with its share of the elements, in rows of one."""
    found: dict[str, Value] = {}
    for name in (*op.operands(), *(item for item in op.results if item is not None)):
        for value in (values[name], values.get(values[name].storage)):
            if value is not None and value.name not in found:
                shape = (ceil(value.numel / ways), 1)
                found[value.name] = Value(value.name, shape, value.dtype, value.storage)
    return found


def _by_curves(
    op: Op, values: Mapping[str, Value], family: Family, ways: int, profile: Profile, dealt: bool
) -> float:
    launch, rate = profile.op_overhead_s, curve_rate(op, values, profile, family)
    nbytes = op_bytes(op, values) / ways
    moved = streaming_seconds(nbytes, profile)
    if dealt:
        moved = nbytes * _best_rate(profile.memory, 1 / profile.memory_bytes_per_s)
    if family not in COMPUTE_BOUND:
        return moved / max(rate, 1.0) if dealt else launch + max(moved - launch, 0.0) / rate
    flops = op_flops(op, values) / ways
    best = flops * _best_rate(profile.matmul, 1 / profile.peak_flops)
    if dealt:
        return max(best, moved) / max(rate, 1.0)
    whole = max(curve_seconds(flops, rate, profile), moved)
    if family != "attention":
        return whole
    # Round a ring it runs in up to `ways` parts, each with a launch of its own.
    parts = best / rate - ways * launch * max(1 / rate - 1, 0.0)
    return min(whole, max(parts, best / max(rate, 1.0), launch))


def _best_rate(points: Curve, otherwise: float) -> float:
    """Fewest seconds that a curve gives for each unit of work, at any size."""
    return min((point.seconds / point.x for point in points), default=otherwise)


@lru_cache(maxsize=32)
def _rising_curve(points: Curve) -> Curve:
    if all(later.seconds >= earlier.seconds for earlier, later in pairwise(points)):
        return points
    least, found = float("inf"), []
    for point in reversed(points):
        least = min(least, point.seconds)
        found.append(Point(x=point.x, seconds=least))
    return tuple(reversed(found))


def _rising(profile: Profile) -> Profile:
    """The profile with curves that never fall: at each size the least time of it or a larger."""
    matmul, memory = _rising_curve(profile.matmul), _rising_curve(profile.memory)
    if matmul is profile.matmul and memory is profile.memory:
        return profile
    return profile.model_copy(update={"matmul": matmul, "memory": memory})


def _by_constants(
    op: Op,
    values: Mapping[str, Value],
    family: Family,
    ways: int,
    fitted: Fitted,
    changes: bool,
    dealt: bool,
) -> float:
    work = work_of(op, values, op_bytes(op, values), False)
    return fitted.contention * min(
        _constant_seconds(item, ways, fitted, dealt) for item in _keys(op, work, fitted, changes)
    )


def _keys(op: Op, work: Work, fitted: Fitted, changes: bool) -> Iterator[Work]:
    """The op under every key whose constants may apply to its local form."""
    yield work
    if work.key == "copy_of_view":  # of what a collective gave, no view any more
        yield work._replace(key=op.target.split(".")[1].removesuffix("_"))
    if work.family.startswith("convolution"):
        native = work.key.endswith("_native")
        key = work.key.removesuffix("_native") if native else f"{work.key}_native"
        if key in fitted.ops:
            yield work._replace(key=key)
    if changes and work.streams:
        for key, constants in fitted.ops.items():
            if len(constants) == 3 and key != "view":
                yield work._replace(key=key)


def _constant_seconds(work: Work, ways: int, fitted: Fitted, dealt: bool) -> float:
    constants = constants_of(work, fitted)
    launch = 0.0 if dealt else constants[0]
    if work.streams:
        moved = work.amounts[0] / ways
        beyond = 0.0 if dealt else max(moved - fitted.cache_bytes, 0.0)
        return launch + constants[1] * moved + constants[2] * beyond
    rest = sum(a * b for a, b in zip(constants[1:], work.amounts, strict=True)) / ways
    return launch + rest * fitted.dtype_time.get(work.dtype, 1.0)
