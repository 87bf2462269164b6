"""Measures this machine: what ops and collectives cost while N processes compete for its cores.

Every figure is taken in all processes at once, because that is how a step
runs: on two cores, four processes each get half a core and a share of the
memory bandwidth. A repeat lasts long enough for the scheduler to take turns,
so that it counts the waiting; of several repeats the median is kept, and the
mean over processes. Collectives go through the Communicator that runs steps.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.distributed as dist

from meshwright.cluster.mesh import Mesh
from meshwright.cluster.types import Profile
from meshwright.cost.fit import Measured, fit_profile
from meshwright.errors import UsageError
from meshwright.runtime.comm import Communicator, connect
from meshwright.runtime.launch import launch
from meshwright.runtime.worker import available_cores, init_process

__all__ = ["calibrate"]

_REPEATS = 5
_SHORTEST_REPEAT_S = 0.002
_SHUTDOWN_S = 4.0  # what ending the processes takes, kept out of the measuring

_FOOTPRINT_BYTES = 1 << 27  # more than caches hold
_MATMUL_SIZES = (32, 64, 128, 256, 512, 1024)
_STREAM_BYTES = (1 << 12, 1 << 15, 1 << 18, 1 << 21, 1 << 23, 1 << 25)
_PAYLOADS = (1 << 10, 1 << 14, 1 << 18, 1 << 21, 1 << 24)
_KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def calibrate(processes: int, budget_s: float = 20.0, *, threads: int | None = None) -> Profile:
    """A profile of this machine with `processes` local processes, in about `budget_s` seconds.

    `threads` is how many each process computes with, by default an equal share
    of the cores. Too small a budget gives rougher figures, never fewer. Raises
    UsageError for nonsense arguments and RunError when a process dies.
    """
    started = time.time()
    if processes < 1:
        raise UsageError(f"{processes} processes can't be measured", "Use at least one.")
    if budget_s <= 0:
        raise UsageError(f"a budget of {budget_s} s is no time", "Give some seconds.")
    cores = available_cores()
    threads = threads or max(1, cores // processes)
    payload = {"deadline": started + budget_s - _SHUTDOWN_S, "threads": threads}
    with tempfile.TemporaryDirectory(prefix="meshwright-calibrate-") as folder:
        found = launch(
            f"{__name__}:worker", payload, processes, Path(folder), timeout_s=6 * budget_s + 60
        )
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return fit_profile(
        [Measured.model_validate(item) for item in found],
        name=f"{platform.machine()} cpu, {processes} processes",
        source=f"calibrated with {processes} processes of {threads} threads on {cores} cores, "
        f"torch {torch.__version__}",
        memory_bytes=ram // processes,
    )


def worker(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What each process runs: the same measurements in the same order. Returns `Measured`."""
    process = init_process(threads=payload["threads"])
    with torch.no_grad():
        return _measure(process.world, payload["deadline"]).model_dump(mode="json")


def _measure(world: int, deadline: float) -> Measured:
    result = Measured()
    pairs = world % 2 == 0 and world > 2
    groups = [] if world == 1 else [connect(Mesh((("group", world),)))]
    if pairs:
        groups.append(connect(Mesh((("pairs", world // 2), ("group", 2)))))
    # Shares of the time left: collectives, by far the noisiest, get half.
    left_s = max(_agreed(deadline - time.time(), dist.ReduceOp.MIN), 0.0)
    each_s = left_s * (0.45 if groups else 1.0) / (3 * len(_MATMUL_SIZES) + len(_STREAM_BYTES) + 22)
    _measure_ops(result, each_s)
    wanted = [(group, kind, size) for group in groups for kind in _KINDS for size in _PAYLOADS]
    weight_left = sum(_weight(size) for _, _, size in wanted)
    for communicator, kind, size in wanted:
        left_s = max(_agreed(deadline - time.time(), dist.ReduceOp.MIN), 0.0)
        seconds = _collective(communicator, kind, size, left_s * _weight(size) / weight_left)
        weight_left -= _weight(size)
        curve = result.collectives.setdefault(f"{kind}:{communicator.mesh.extent('group')}", {})
        curve[float(size)] = seconds
    return result


def _measure_ops(result: Measured, each_s: float) -> None:
    aten = torch.ops.aten
    tiny = torch.ones(8)
    result.overhead_s = _local(lambda: aten.add.Tensor(tiny, tiny), 4 * each_s)
    result.view_s = _local(lambda: aten.view.default(tiny, [2, 4]), 2 * each_s)
    for n in _MATMUL_SIZES:
        # Square, then a narrow and a wide projection of few rows: as many FLOPs each.
        shapes = ((n, n, n), (n // 4, n, 4 * n), (n // 4, 4 * n, n))
        times = [_matmul(*shape, torch.float32, each_s) for shape in shapes]
        result.matmul[2.0 * n**3] = fmean(times)
    for dtype in (torch.bfloat16, torch.float64):
        seconds = _matmul(256, 256, 256, dtype, each_s)
        result.dtypes[str(dtype).removeprefix("torch.")] = (2.0 * 256**3, seconds)
    for nbytes in _STREAM_BYTES:
        result.stream[float(nbytes)] = _stream(nbytes, each_s)
    for family, run, moved, flops in _family_samples():
        result.families[family] = (moved, flops, _local(run, each_s))


def _family_samples() -> Iterator[tuple[str, Callable[[], object], float, float]]:
    """One typical op of each family: (family, the op, bytes it moves, its FLOPs)."""
    aten = torch.ops.aten
    x = torch.randn(256, 1024)
    size = x.nbytes
    weight, table = torch.ones(1024), torch.randn(2048, 256)
    index = torch.randint(2048, (1024,))
    picture, filters = torch.randn(8, 32, 32, 32), torch.randn(32, 32, 3, 3)
    q, k, v = (torch.randn(8, 4, 128, 64) for _ in range(3))
    yield "transcendental", lambda: aten.gelu.default(x), 2 * size, 0
    yield "reduction", lambda: aten.sum.dim_IntList(x, [-1]), size, 0
    yield "softmax", lambda: aten._softmax.default(x, -1, False), 2 * size, 0
    yield (
        "normalisation",
        lambda: aten.native_layer_norm.default(x, [1024], weight, weight, 1e-5),
        2.0 * size,
        0,
    )
    yield "indexing", lambda: aten.embedding.default(table, index), 2 * size, 0
    yield "random", lambda: aten.bernoulli.p(x, 0.1), 2 * size, 0
    yield "copy", lambda: x.t().contiguous(), 2 * size, 0
    yield "factory", lambda: aten.zeros_like.default(x), size, 0
    yield (
        "pooling",
        lambda: aten.max_pool2d_with_indices.default(picture, [2, 2]),
        picture.nbytes * 1.75,
        0,
    )
    flash = aten._scaled_dot_product_flash_attention_for_cpu.default
    yield "attention", lambda: flash(q, k, v), 4 * q.nbytes, 4.0 * 32 * 128 * 128 * 64
    out, norm = flash(q, k, v)
    yield (
        "attention_backward",
        lambda: aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
            out, q, k, v, out, norm, 0.0, False
        ),
        8 * q.nbytes,
        10.0 * 32 * 128 * 128 * 64,
    )
    channels = torch.ones(32)
    yield (
        "batch_norm",
        lambda: aten._native_batch_norm_legit_functional.default(
            picture, channels, channels, channels, channels, True, 0.1, 1e-5
        ),
        2 * picture.nbytes,
        0,
    )
    ones = [1, 1]
    yield (
        "convolution_backward",
        lambda: aten.convolution_backward.default(
            picture, picture, filters, [32], ones, ones, ones, False, [0, 0], 1, [True] * 3
        ),
        4 * picture.nbytes,
        4.0 * picture.numel() * 32 * 9,
    )
    yield (
        "convolution",
        lambda: aten.convolution.default(
            picture, filters, None, ones, ones, ones, False, [0, 0], 1
        ),
        2 * picture.nbytes,
        2.0 * picture.numel() * 32 * 9,
    )


def _stream(nbytes: int, slice_s: float) -> float:
    """Adds fresh operands to fresh results, as a step does: large ones are in no cache."""
    each = nbytes // 12  # elements; as much again as is read of one operand is written
    count = max(2, min(16, _FOOTPRINT_BYTES // (4 * each)))
    operands = cycle([torch.ones(each) for _ in range(count)])
    results: deque[torch.Tensor] = deque(maxlen=count)
    return _local(
        lambda: results.append(torch.ops.aten.add.Tensor(next(operands), next(operands))), slice_s
    )


def _matmul(m: int, k: int, n: int, dtype: torch.dtype, slice_s: float) -> float:
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    return _local(lambda: torch.ops.aten.mm.default(a, b), slice_s)


def _local(run: Callable[[], object], slice_s: float) -> float:
    """Seconds of one call, measured for `slice_s` seconds in all processes at once."""
    run()
    dist.barrier()
    first = min(_timed(run, 1) for _ in range(1 if slice_s < 0.01 else 2))
    if first > slice_s:
        return first
    batch = max(1, int(_SHORTEST_REPEAT_S / max(first, 1e-7)))
    repeat_s = slice_s / _REPEATS
    repeats = []
    for _ in range(_REPEATS):
        begin, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - begin < repeat_s:
            for _ in range(batch):
                run()
            calls += batch
        repeats.append((time.perf_counter() - begin) / calls)
    return median(repeats)


def _collective(communicator: Communicator, kind: str, payload: int, slice_s: float) -> float:
    """Seconds of one collective on `payload` bytes, counted as in `plan.types.Collective`."""
    n = communicator.mesh.extent("group")
    rows = n * n * max(1, payload // 4 // (n * n * 16))
    x = torch.ones(rows, 16)
    part = torch.ones(rows // n, 16)
    run: Callable[[], object] = {
        "all_reduce": lambda: communicator.all_reduce(x, "group"),
        "all_gather": lambda: communicator.all_gather(part, "group", 0, 1, rows, 1),
        "reduce_scatter": lambda: communicator.reduce_scatter(x, "group", 0, 1, rows, 1),
        # From rows cut to columns cut, the way that attention over sequence shards goes.
        "all_to_all": lambda: communicator.all_to_all(
            x.view(rows // n, n * 16), "group", (0, 1, rows, 1), (1, 1, n * 16, 1)
        ),
    }[kind]
    run()
    dist.barrier()
    first = _agreed(_timed(run, 1), dist.ReduceOp.MAX)
    affordable = slice_s / max(first, 1e-6) - 2  # two calls are spent by now
    if affordable < 1:
        return first
    repeats = min(_REPEATS, int(affordable))
    times = []
    for _ in range(repeats):
        dist.barrier()
        times.append(_timed(run, min(int(affordable / repeats), 100)))
    return median(times)


def _weight(payload: int) -> float:
    """Share of the time that a payload's measurement gets: large ones are slow."""
    return 1.0 + payload / (1 << 21)


def _timed(run: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


def _agreed(number: float, how: dist.ReduceOp.RedOpType) -> float:
    """One figure that all processes take, so that they do the same number of calls."""
    tensor = torch.tensor([number], dtype=torch.float64)
    dist.all_reduce(tensor, how)
    return float(tensor)
