"""Real data for the models of the zoo, shaped like a task's example batch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo.convnet import ConvNet
from meshwright.zoo.digits import DigitBatches
from meshwright.zoo.gpt import GPT
from meshwright.zoo.mlp import MLP
from meshwright.zoo.registry import FACTORIES
from meshwright.zoo.text import batches


class Batches(Protocol):
    """`self[step]` is the global batch of that step, whatever came before it."""

    def __getitem__(self, step: int) -> Any: ...


def batches_for(task: Task, seed: int = 0) -> Batches | None:
    """Training data for a task of the zoo, or None when the zoo knows none for it.

    gpt reads the standard library's text; convnet and mlp read scikit-learn's digits.
    """
    if task.name not in FACTORIES:
        return None
    model = _on_meta(task)
    shape = task.batch[0].shape
    if isinstance(model, GPT):
        if model.config.vocab < 256:
            raise ModelError(
                f"gpt has vocab={model.config.vocab}, but text is read as 256 kinds of bytes.",
                "Give vocab=256 or more.",
            )
        return batches(seed, batch=shape[0], seq_len=shape[1])
    if isinstance(model, ConvNet | MLP) and model.head.out_features < 10:
        raise ModelError(
            f"{task.name} has classes={model.head.out_features}, but there are 10 digits.",
            "Give classes=10.",
        )
    if isinstance(model, ConvNet):
        return DigitBatches(seed, batch=shape[0], image_size=shape[2], channels=shape[1])
    if isinstance(model, MLP):
        if shape[1] != 64:
            raise ModelError(
                f"mlp has features={shape[1]}, but a digit has 64 pixels.", "Give features=64."
            )
        return DigitBatches(seed, batch=shape[0], flat=True)
    return None


def _on_meta(task: Task) -> nn.Module:
    if isinstance(task.model, nn.Module):
        return task.model
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return task.model()
