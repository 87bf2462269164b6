"""A captured Program, run op by op, gives the loss, gradients and buffers of eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import models
import pytest
import torch
from eager_step import compare
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from meshwright.task import Task


def ids(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(32, shape, generator=generator)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


CASES: dict[str, Callable[[], Task]] = {
    "mlp": lambda: Task(models.MLP, models.square, noise(4, 8)),
    "gpt": lambda: Task(models.TinyGPT, models.next_token, (ids(2, 6), ids(2, 6))),
    "convnet": lambda: Task(models.ConvNet, models.square, noise(4, 3, 8, 8)),
    "convnet-eval": lambda: Task(lambda: models.ConvNet().eval(), models.square, noise(4, 3, 8, 8)),
    "twice": lambda: Task(models.Twice, models.square, noise(4, 8)),
    "partial": lambda: Task(models.Partial, models.square, noise(4, 8)),
    "writes": lambda: Task(models.Writes, models.square, noise(4, 8)),
    "custom-function": lambda: Task(models.CustomFunction, models.square, noise(4, 8)),
    "checkpointed": lambda: Task(models.Checkpointed, models.square, noise(4, 8)),
    "autocast": lambda: Task(models.Autocast, models.square, noise(4, 8)),
    "lstm": lambda: Task(lambda: models.Recurrent(nn.LSTM), models.square, noise(2, 5, 8)),
    "gru": lambda: Task(lambda: models.Recurrent(nn.GRU), models.square, noise(2, 5, 8)),
    "encoder-layer": lambda: Task(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2
        ),
        models.square,
        noise(2, 5, 8),
    ),
    "instance-norm": lambda: Task(
        lambda: nn.Sequential(nn.InstanceNorm1d(3, affine=True, track_running_stats=True)),
        models.square,
        noise(2, 3, 8),
    ),
    "weight-norm": lambda: Task(
        lambda: nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.Tanh()), models.square, noise(4, 8)
    ),
    "dict": lambda: Task(
        models.WithLoss, None, {"inputs": noise(4, 8), "labels": ids(4) % 4, "weight": None}
    ),
    "mapping": lambda: Task(
        lambda: models.WithLoss("mapping"), None, {"inputs": noise(4, 8), "labels": ids(4) % 4}
    ),
    "plain-loss": lambda: Task(
        lambda: models.WithLoss("tensor"), None, {"inputs": noise(4, 8), "labels": ids(4) % 4}
    ),
    "dropout": lambda: Task(models.Dropping, models.square, noise(4, 8)),
    "double": lambda: Task(lambda: models.MLP().double(), models.square, noise(4, 8).double()),
}


CLOSE = {"lstm"}  # eager runs it as one fused kernel


@pytest.mark.parametrize("name", CASES)
def test_from_a_callable(name: str) -> None:
    compare(CASES[name](), tangent=0.5, exact=name not in CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_from_a_module(name: str) -> None:
    task = CASES[name]()
    torch.manual_seed(0)
    module = task.model()
    compare(Task(module, task.loss, task.batch), exact=name not in CLOSE)
