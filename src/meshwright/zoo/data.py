"""Real data for the models of the zoo, shaped like a task's example batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo import deeplab, diffusion_unet, dit, dlrm, gns, ncf, resnet, unet3d
from meshwright.zoo.convnet import ConvNet
from meshwright.zoo.digits import DigitBatches
from meshwright.zoo.gpt import GPT
from meshwright.zoo.lstm import LSTMLanguageModel
from meshwright.zoo.mlp import MLP
from meshwright.zoo.moe import MoE
from meshwright.zoo.registry import FACTORIES
from meshwright.zoo.synthetic import Drawn
from meshwright.zoo.text import batches

# How a batch is drawn from the model's configuration and a generator.
_DRAWN: Mapping[str, Callable[..., Any]] = {
    "deeplab": deeplab.draw,
    "diffusion-unet": diffusion_unet.draw,
    "dit": dit.draw,
    "dlrm": dlrm.draw,
    "gns": gns.draw,
    "ncf": ncf.draw,
    "resnet50": resnet.draw,
    "unet3d": unet3d.draw,
}


class Batches(Protocol):
    """`self[step]` is the global batch of that step, whatever came before it."""

    def __getitem__(self, step: int) -> Any: ...


def batches_for(task: Task, seed: int = 0) -> Batches | None:
    """Training data for a task of the zoo, or None when the zoo knows none for it.

    gpt, lstm and moe read the standard library's text; convnet and mlp read scikit-learn's
    digits; the others draw theirs by a formula that leaves something to learn.
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
    if isinstance(model, LSTMLanguageModel | MoE):
        return batches(seed, batch=shape[0], seq_len=shape[1], vocab=model.config.vocab)
    if task.name in _DRAWN:
        # Step 0 of seed 0 is the example batch itself.
        return Drawn(partial(_DRAWN[task.name], model.config), seed)
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
