"""The names behind `zoo:NAME`."""

from __future__ import annotations

from collections.abc import Callable

from meshwright.task import Task
from meshwright.zoo.convnet import convnet_task
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.mlp import mlp_task

FACTORIES: dict[str, Callable[..., Task]] = {
    "convnet": convnet_task,
    "gpt": gpt_task,
    "mlp": mlp_task,
}
