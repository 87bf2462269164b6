"""Runs a task's model and loss, and checks what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from meshwright.errors import CaptureError
from meshwright.task import Task


def run_loss(task: Task, model: nn.Module, batch: Any) -> Tensor:
    """The task's loss of a model on a batch: a scalar floating-point tensor."""
    if task.loss is not None:
        return _checked(task.loss(model, batch), "The loss callable returned")
    output = model(**batch) if isinstance(batch, dict) else model(batch)
    return _checked(_loss_of(output), "The model's loss is")


def _loss_of(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        raise CaptureError(
            f"The model returned {_describe(output)}, which holds no loss.",
            "Return the loss, or an object or mapping with `loss`, or give the task a "
            "callable loss(model, batch). A model that computes its loss itself may need "
            "the labels in the batch.",
        )
    return loss


def _checked(loss: Any, subject: str) -> Tensor:
    if isinstance(loss, Tensor) and loss.dim() == 0 and loss.is_floating_point():
        return loss
    raise CaptureError(
        f"{subject} {_describe(loss)}; a scalar floating-point tensor is needed.",
        "Reduce it, with .mean() for instance."
        if isinstance(loss, Tensor) and loss.is_floating_point()
        else "Return the loss as a floating-point tensor.",
    )


def _describe(item: Any) -> str:
    if isinstance(item, Tensor):
        dtype = str(item.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {tuple(item.shape)}"
    return f"a {type(item).__name__}"
