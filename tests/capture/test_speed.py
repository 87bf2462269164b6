"""Capturing a deep model takes seconds and no memory for its weights.

Loose bounds, against mistakes in kind: on two cores 32 layers take 1.5 s.
"""

from __future__ import annotations

import models
import torch

from meshwright.capture import capture
from meshwright.task import Task


def test_a_deep_and_wide_gpt() -> None:
    batch = torch.zeros(4, 64, dtype=torch.int64), torch.zeros(4, 64, dtype=torch.int64)
    task = Task(
        lambda: models.TinyGPT(layers=32, width=8192, heads=64, vocab=50_000),
        models.next_token,
        batch,
    )
    capture(Task(models.TinyGPT, models.next_token, batch))  # imports
    captured = capture(task)
    parameters = captured.program.inputs_of("parameter")
    assert sum(captured.program.values[item.value].nbytes for item in parameters) > 90 * 2**30
    assert captured.seconds < 20
