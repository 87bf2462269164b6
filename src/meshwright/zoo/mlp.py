"""A multilayer perceptron: the smallest model that is worth splitting."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.task import Task
from meshwright.zoo.checks import require_positive
from meshwright.zoo.convnet import classification_loss


class MLP(nn.Module):
    """`model(x) -> logits`, x [B, features], logits [B, classes]."""

    def __init__(self, features: int, hidden: int, layers: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, hidden)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        for linear in self.hidden:
            x = F.relu(linear(x))
        logits: Tensor = self.head(x)
        return logits


def mlp_task(
    features: int = 64,
    hidden: int = 256,
    layers: int = 2,
    classes: int = 10,
    global_batch: int = 64,
) -> Task:
    """A classifier sized for scikit-learn's digits, flattened; `layers` counts the hidden ones."""
    require_positive(
        features=features,
        hidden=hidden,
        layers=layers,
        classes=classes,
        global_batch=global_batch,
    )
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.rand(global_batch, features, generator=generator),
        torch.randint(classes, (global_batch,), generator=generator),
    )
    return Task(
        model=partial(MLP, features, hidden, layers, classes),
        loss=classification_loss,
        batch=batch,
        name="mlp",
    )
