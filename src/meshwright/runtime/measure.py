"""What a step took: its peak memory and its time.

On a CPU the figures come from PyTorch's allocator as the profiler's `[memory]`
events report it. Those hold every allocation and release made while the
profiler runs, to the byte, and nothing from before: releasing memory that is
older than the profiler leaves no event. A peak is therefore the sum of what
the step itself has allocated and not yet released, at its highest. Memory that
PyTorch did not allocate (NumPy's, Gloo's buffers) is not in it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")
Curve = tuple[tuple[float, int], ...]  # (seconds since the first event, bytes above the start)

_CPU, _CUDA = 0, 1  # device types of the events


class Peak(NamedTuple, Generic[T]):
    """`peak_bytes` is above what was allocated when the measurement began."""

    result: T
    peak_bytes: int
    curve: Curve


def measure_peak(fn: Callable[[], T], device: str = "cpu", trace: Path | None = None) -> Peak[T]:
    """Run `fn` under the profiler; its result, peak memory and the memory over time.

    trace: where to write the profiler's Chrome trace. On `cuda` without it the
    profiler stays off and the curve is empty.

    The profiler slows the step down; time another one.
    """
    if device == "cpu":
        result, events = _profiled(fn, [ProfilerActivity.CPU], _CPU, trace)
        curve = _curve(events)
        return Peak(result, max((size for _, size in curve), default=0), curve)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start_bytes = torch.cuda.memory_allocated()
    events = []
    if trace is None:
        result = fn()
    else:
        both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        result, events = _profiled(fn, both, _CUDA, trace)
    torch.cuda.synchronize()
    return Peak(result, torch.cuda.max_memory_allocated() - start_bytes, _curve(events))


def _profiled(
    fn: Callable[[], T], activities: list[ProfilerActivity], device_type: int, trace: Path | None
) -> tuple[T, list[tuple[float, int]]]:
    """The result of `fn`, and each allocation as (microseconds, signed bytes)."""
    with profile(activities=activities, profile_memory=True) as profiler:
        result = fn()
    with tempfile.TemporaryDirectory(prefix="meshwright-") as folder:
        path = trace or Path(folder) / "trace.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
        content = json.loads(path.read_text(errors="replace"))
    events = [
        (float(event["ts"]), int(event["args"]["Bytes"]))
        for event in content["traceEvents"]
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == device_type
    ]
    return result, sorted(events, key=lambda event: event[0])


def _curve(events: list[tuple[float, int]]) -> Curve:
    """Running sum. The events' own total is not used: it includes earlier profiled steps."""
    total, curve = 0, []
    for at_us, nbytes in events:
        total += nbytes
        curve.append(((at_us - events[0][0]) / 1e6, total))
    return tuple(curve)


def live_tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory that the tensors hold, storage shared by several counted once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[str(storage.device), storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class StepTime:
    """Seconds that a `step_timer` block took; 0 until it has ended."""

    seconds: float = 0.0


@contextlib.contextmanager
def step_timer(device: str = "cpu") -> Iterator[StepTime]:
    """Time a block by the wall clock, work queued on an accelerator included."""
    if device != "cpu":
        torch.accelerator.synchronize()
    timed, started = StepTime(), time.perf_counter()
    try:
        yield timed
    finally:
        if device != "cpu":
            torch.accelerator.synchronize()
        timed.seconds = time.perf_counter() - started
