"""Measured memory is what was allocated, to the byte."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from meshwright.runtime import random
from meshwright.runtime.measure import live_tensor_bytes, measure_peak, step_timer

MB = 1 << 20


def block(megabytes: int) -> Tensor:
    return torch.empty(megabytes * MB, dtype=torch.uint8)


def test_known_sizes() -> None:
    def step() -> Tensor:
        a = block(4)
        b = block(8)
        del a
        c = block(2)  # 10 now, 12 was the peak
        del b
        return c

    result, peak, curve = measure_peak(step)
    assert result.numel() == 2 * MB
    assert peak == 12 * MB
    assert [size // MB for _, size in curve] == [4, 12, 8, 10, 2]
    assert [at for at, _ in curve] == sorted(at for at, _ in curve)


def test_memory_from_before_does_not_count() -> None:
    held = [block(16)]
    first = measure_peak(lambda: block(4))  # its result lives on
    second = measure_peak(lambda: (held.clear(), block(8))[1])
    assert first.peak_bytes == 4 * MB
    assert second.peak_bytes == 8 * MB


def test_training_step() -> None:
    """Activations and gradients of a chain of layers, by hand within 1 %."""
    width, rows, layers = 256, 512, 4
    weights = [torch.randn(width, width, requires_grad=True) for _ in range(layers)]
    x = torch.randn(rows, width)

    def step() -> None:
        y = x
        for weight in weights:
            y = torch.relu(y @ weight)
        y.sum().backward()

    peak = measure_peak(step).peak_bytes
    activation, gradient = rows * width * 4, width * width * 4
    # The last layer's backward: every relu's output is saved; the product of the
    # last layer is gone. Its gradient (rows x width) and the masked one live at once.
    low, high = layers * activation + gradient, (layers + 3) * activation + layers * gradient
    assert low <= peak <= high
    assert live_tensor_bytes(w.grad for w in weights if w.grad is not None) == layers * gradient


def test_random_draws_are_seen() -> None:
    assert measure_peak(lambda: random.uniform((MB,), (), (1,))).peak_bytes == 4 * MB


def test_trace_is_written(tmp_path: Path) -> None:
    trace = tmp_path / "traces" / "step.json"
    measure_peak(lambda: torch.ones(8) + 1, trace=trace)
    assert "traceEvents" in json.loads(trace.read_text())


def test_empty_step() -> None:
    assert measure_peak(lambda: 3) == (3, 0, ())


def test_live_tensor_bytes_counts_storage_once() -> None:
    x = torch.zeros(10, 10)
    assert live_tensor_bytes([x, x[2:], x.t(), torch.zeros(5)]) == 420
    assert live_tensor_bytes([]) == 0


def test_step_timer() -> None:
    with step_timer() as timed:
        time.sleep(0.02)
    assert timed.seconds == pytest.approx(0.02, abs=0.02)
