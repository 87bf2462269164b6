"""Time of one op on an accelerator that is known by its data sheet and the fitted constants.

Products run by tiles (`cost.tiles`), fused attention by its kernel
(`cost.attention`), and everything else by the bytes that pass through memory.
Nothing is faster than its bytes. Launching is counted apart: a kernel costs the
device `kernel_launch_s` and each op the host `host_launch_s`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from meshwright.cost.attention import attention_seconds
from meshwright.cost.constants import Constants
from meshwright.cost.families import Family
from meshwright.cost.flops import attention_of, op_flops
from meshwright.cost.hardware import Hardware, Kernels
from meshwright.cost.opaque import counted
from meshwright.cost.products import products_of
from meshwright.cost.tiles import product_seconds
from meshwright.program.types import ITEM_BYTES, Op, Value

# How often the bytes of an op pass through memory, beside once each for operands and results:
# norms read their input again for the statistics, and their gradients' kernels come in pairs.
_PASSES: Mapping[str, float] = {
    "native_layer_norm_backward": 5 / 3,
    "native_group_norm_backward": 5 / 3,
    "_fused_rms_norm_backward": 5 / 3,
    "native_batch_norm": 3 / 2,
    "cudnn_batch_norm": 3 / 2,
    "_batch_norm_with_update": 3 / 2,
    "native_batch_norm_backward": 5 / 3,
    "cudnn_batch_norm_backward": 5 / 3,
    "batch_norm_backward": 5 / 3,
    "sort": 8.0,
    "argsort": 8.0,
    "topk": 4.0,
    "_fft_r2c": 2.0,
    "_fft_c2c": 2.0,
    "_fft_c2r": 2.0,
}

# Softmaxes and how often they read one operand again, with rows longer than stay in registers
# between the passes over them (PyTorch's persistent softmax ends at 1024).
_PERSISTENT_ROW = 1024
_READ_AGAIN: Mapping[str, int] = {
    "_softmax": 2,
    "_log_softmax": 2,
    "softmax": 2,
    "log_softmax": 2,
    "_safe_softmax": 2,
    "_softmax_backward_data": 2,
    "_log_softmax_backward_data": 1,
}

# Kernels of ops that launch more than one.
_KERNELS: Mapping[str, int] = {
    "native_layer_norm_backward": 2,
    "native_group_norm_backward": 3,
    "_fused_rms_norm_backward": 2,
    "native_batch_norm": 2,
    "native_batch_norm_backward": 2,
    "embedding_dense_backward": 4,
    "index_put": 4,
    "_index_put_impl": 4,
    "sort": 4,
    "topk": 2,
}

# A view takes the host about half of what an op with a kernel does, and the device nothing.
_VIEW_ON_HOST = 0.5

# Casting an operand of 16 bits reads it and writes it in 8 bits twice, as it is and transposed,
# for the two products that it takes part in (Transformer Engine's cast and transpose).
_CAST_BYTES = 2

_WEIGHTED = frozenset({"mm", "addmm", "linear", "matmul", "_addmm_activation", "linear_backward"})


class DeviceTime(NamedTuple):
    """seconds: on the device, launches included. kernels: how many were launched.

    host_ops: what the host's thread issues, in ops.
    """

    seconds: float
    kernels: int
    host_ops: float


def device_time(
    op: Op,
    values: Mapping[str, Value],
    family: Family,
    nbytes: float,
    renames: bool,
    hardware: Hardware,
    constants: Constants,
    kernels: Kernels,
) -> DeviceTime:
    """Time of `op`, of `family`, that reads and writes `nbytes`; `renames`: it runs no kernel."""
    if renames:
        return DeviceTime(0.0, 0, _VIEW_ON_HOST)
    name = op.target.split(".")[1]
    if family == "opaque":
        flops, counted_bytes, launches = counted(op)
        rate = _plain_rate(op, values, hardware, constants)
        work_s = max(flops / rate, memory_seconds(max(nbytes, counted_bytes), hardware, constants))
        return DeviceTime(launches * constants.kernel_launch_s + work_s, launches, launches)
    nbytes = nbytes * _PASSES.get(name.removesuffix("_"), 1.0)
    nbytes += _read_again(name, op, values, hardware)
    moved_s = memory_seconds(nbytes, hardware, constants, family)
    work = _WORK.get(family)
    count = _KERNELS.get(name, 1)
    if work is None:
        return DeviceTime(count * constants.kernel_launch_s + moved_s, count, 1.0)
    work_s, count = work(op, values, hardware, constants, kernels)
    return DeviceTime(count * constants.kernel_launch_s + max(work_s, moved_s), count, 1.0)


def memory_seconds(
    nbytes: float, hardware: Hardware, constants: Constants, family: Family = "pointwise"
) -> float:
    """Seconds in which kernels of `family` move `nbytes`, launch left out."""
    rate = hardware.memory_bytes_per_s * constants.memory_efficiency
    if family in ("reduction", "normalisation", "batch_norm", "softmax"):
        rate *= constants.reduction_efficiency
    elif family in ("indexing", "pooling"):
        rate *= constants.indexing_efficiency
    return nbytes / rate


def _read_again(name: str, op: Op, values: Mapping[str, Value], hardware: Hardware) -> float:
    """Bytes that softmaxes over long rows read again because no cache has held them.

    All multiprocessors work on rows of their own, two at a time.
    """
    times = _READ_AGAIN.get(name.removesuffix("_"), 0)
    source = values[next(op.operands())] if times else None
    if source is None or not source.shape or source.shape[-1] <= _PERSISTENT_ROW:
        return 0.0
    in_work = 2 * hardware.units * source.nbytes * source.shape[-1] / max(source.numel, 1)
    missed = max(0.0, 1 - hardware.l2_bytes / in_work)
    return times * source.nbytes * missed


def _matmul(
    op: Op, values: Mapping[str, Value], hardware: Hardware, constants: Constants, kernels: Kernels
) -> tuple[float, int]:
    products = products_of(op, values)
    dtype, item_bytes = _dtype(op, values)
    cast_s = 0.0
    if kernels.linear_dtype and op.target.split(".")[1] in _WEIGHTED:
        dtype = kernels.linear_dtype
        operands = {name: values[name].numel for name in op.operands()}
        cast_s = memory_seconds(_CAST_BYTES * sum(operands.values()), hardware, constants)
    seconds = sum(
        product_seconds(item, dtype, item_bytes, hardware, constants) for item in products
    )
    return seconds + cast_s, max(len(products), 1)


def _convolution(
    op: Op, values: Mapping[str, Value], hardware: Hardware, constants: Constants, kernels: Kernels
) -> tuple[float, int]:
    products = products_of(op, values)
    dtype, item_bytes = _dtype(op, values)
    if dtype == "float32" and "tf32" in hardware.peaks:
        dtype = "tf32"  # cuDNN may use it unless it is told not to
    seconds = 0.0
    for item in products:
        by_tiles = product_seconds(item, dtype, item_bytes, hardware, constants)
        if item.batch > 1:  # few channels a group: arithmetic without tensor cores
            plain = hardware.peak("float32") * constants.matmul_efficiency(hardware.architecture)
            by_tiles = min(by_tiles, item.flops / plain)
        seconds += by_tiles / constants.convolution_efficiency
    return seconds, max(len(products), 1)


def _attention(
    op: Op, values: Mapping[str, Value], hardware: Hardware, constants: Constants, kernels: Kernels
) -> tuple[float, int]:
    dtype, _ = _dtype(op, values)
    sizes = attention_of(op, values)
    return attention_seconds(sizes, dtype, kernels.attention, hardware, constants), 1


def _recurrent(
    op: Op, values: Mapping[str, Value], hardware: Hardware, constants: Constants, kernels: Kernels
) -> tuple[float, int]:
    source = values[next(op.operands())]
    rate = _plain_rate(op, values, hardware, constants) * constants.recurrent_efficiency
    steps = source.shape[0] if source.shape else 1  # each waits for the one before it
    return op_flops(op, values) / rate, max(steps, 1)


_Work = Callable[
    [Op, Mapping[str, Value], Hardware, Constants, Kernels], tuple[float, int]
]  # seconds without launches, kernels
_WORK: Mapping[Family, _Work] = {
    "matmul": _matmul,
    "convolution": _convolution,
    "attention": _attention,
    "recurrent": _recurrent,
}


def _dtype(op: Op, values: Mapping[str, Value]) -> tuple[str, int]:
    dtype = next((values[item].dtype for item in op.operands()), "float32")
    return dtype, ITEM_BYTES[dtype]


def _plain_rate(
    op: Op, values: Mapping[str, Value], hardware: Hardware, constants: Constants
) -> float:
    dtype, _ = _dtype(op, values)
    efficiency = constants.matmul_efficiency(hardware.architecture)
    return hardware.peak(dtype) * efficiency * hardware.sustained
