"""Tasks captured once for all tests of one process, and batches of other sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from user_models import TASKS

from meshwright.api import Model
from meshwright.runtime.microbatch import microbatch_of
from meshwright.task import Task
from meshwright.zoo.convnet import convnet_task
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.mlp import mlp_task


def gpt(layers: int = 2, dropout: float = 0.0) -> Task:
    return gpt_task(
        layers=layers, width=16, heads=4, vocab=20, seq_len=6, global_batch=8, dropout=dropout
    )


ALL: dict[str, Callable[[], Task]] = {
    "gpt": gpt,
    "gpt_dropout": lambda: gpt(1, 0.1),
    "convnet": lambda: convnet_task(width=4, residual_blocks=1, classes=5, global_batch=8),
    "mlp": lambda: mlp_task(features=12, hidden=16, layers=1, classes=5, global_batch=8),
    **TASKS,
}


@cache
def model(name: str) -> Model:
    return Model(ALL[name]())


def examples(name: str, start: int, count: int) -> Any:
    """Some examples of a task's batch."""
    return microbatch_of(model(name).task.batch, count, start)
