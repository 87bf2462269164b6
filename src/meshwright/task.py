"""What a user hands over: a model, a loss and an example batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """A training task.

    model: a module, or a callable that builds one, so that nothing is allocated
        while planning and each process materialises only its shards.
    loss: `loss(model, batch) -> scalar tensor`; None when the model itself
        returns its loss (a tensor, or an object or mapping with `loss`) for
        `model(batch)`, or `model(**batch)` when the batch is a dict.
    batch: an example global batch, any pytree of tensors, batch dim first.
    name: shown in tables and reports.
    """

    model: nn.Module | Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any], Tensor] | None
    batch: Any
    name: str = "model"
