"""What PyTorch computes by looking at values, in a form that does not.

Each gives the same numbers. Checks of values ("is any variance negative?") are
left out: a captured step can't stop half-way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from meshwright.capture.bags import embedding_bag
from meshwright.capture.pooling import POOLING
from meshwright.errors import CaptureError
from meshwright.torch_private import BatchNormBase


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise CaptureError(
            "one_hot without num_classes makes as many classes as the values ask for.",
            "Give num_classes.",
        )
    classes = torch.arange(num_classes, dtype=tensor.dtype, device=tensor.device)
    return (tensor.unsqueeze(-1) == classes).to(torch.int64)


def _gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    if not isinstance(var, Tensor):
        var = var * torch.ones_like(input)
    elif var.size() != input.size() and input.size()[:-1] == var.size():
        var = var.unsqueeze(-1)
    var = var.clone()
    with torch.no_grad():
        var.clamp_(min=eps)
    loss = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None:
        raise CaptureError(
            "An embedding with max_norm writes to its table in the forward, which the "
            "optimizer writes to as well.",
            "Leave max_norm out and bound what is looked up, as in "
            "F.normalize(embedding(ids)) * max_norm, or scale the table's rows between steps.",
        )
    # A sparse gradient is a way to store it: the dense one has the same numbers.
    return F.embedding(input, weight, padding_idx, None, norm_type, scale_grad_by_freq, False)


_FUNCTIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.one_hot: _one_hot,
    F.gaussian_nll_loss: _gaussian_nll_loss,
    F.embedding_bag: embedding_bag,
    **POOLING,
}


class Substitutes(TorchFunctionMode):
    """Within it, functions that look at values are computed otherwise.

    note: is told the generators that the user's code draws from, as its own objects.
    """

    def __init__(self, note: Callable[[torch.Generator], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for item in (*args, *kwargs.values()):
            if isinstance(item, torch.Generator):
                self._note(item)
        found = _FUNCTIONS.get(func)
        if found is not None:
            return found(*args, **kwargs)
        if func is F.embedding and (
            kwargs.get("sparse") or kwargs.get("max_norm") is not None or len(args) > 3
        ):
            return _embedding(*args, **kwargs)
        return func(*args, **kwargs)


def without_values(module: nn.Module) -> None:
    """Give layers that read values in their forward one that doesn't. `restored` takes it back."""
    for owner in module.modules():
        if isinstance(owner, nn.DataParallel):
            owner.__dict__["forward"] = owner.module
        if not isinstance(owner, BatchNormBase):
            continue
        forward = type(owner).forward
        if forward is nn.SyncBatchNorm.forward:
            # The captured step holds the whole batch: its statistics are the global ones.
            forward = BatchNormBase.forward
            owner.__dict__["forward"] = functools.partial(forward, owner)
        if (
            forward is BatchNormBase.forward
            and owner.momentum is None
            and owner.training
            and owner.running_mean is not None
        ):
            owner.__dict__["forward"] = functools.partial(_cumulative_batch_norm, owner)


def _cumulative_batch_norm(self: BatchNormBase, input: Tensor) -> Tensor:
    """Batch norm whose running statistics are the mean over all batches seen.

    PyTorch reads the number of batches to make a momentum of it.
    """
    self._check_input_dim(input)  # type: ignore[no-untyped-call]
    mean, variance = self.running_mean, self.running_var
    assert mean is not None and variance is not None and self.num_batches_tracked is not None
    self.num_batches_tracked.add_(1)
    batch_mean, batch_variance = torch.zeros_like(mean), torch.zeros_like(variance)
    output = F.batch_norm(
        input, batch_mean, batch_variance, self.weight, self.bias, True, 1.0, self.eps
    )
    share = 1.0 / self.num_batches_tracked.to(mean.dtype)
    mean.copy_((1 - share) * mean + share * batch_mean)
    variance.copy_((1 - share) * variance + share * batch_variance)
    return output
