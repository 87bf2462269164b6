"""What one device computes: the model in plain eager PyTorch, without any of our graphs.

The one liberty taken is where random numbers come from: an eager random op
draws from the generator that plans draw from, by global position, since
PyTorch's own sequence of draws can't be split over devices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.runtime.local_ops import RandomKey, draw
from meshwright.runtime.microbatch import batch_size, microbatches
from meshwright.runtime.trainer import OptimizerFactory
from meshwright.task import Task
from meshwright.torch_private import TorchDispatchMode, tree_map

Loss = Callable[[nn.Module, Any], Tensor]

# What an eager random op is called, in place or not, and which draw of a Program it matches.
_KINDS = {
    "aten::native_dropout": "native_dropout",
    "aten::bernoulli.p": "bernoulli_p",
    "aten::bernoulli_.float": "bernoulli_p",
    "aten::bernoulli": "bernoulli",
    "aten::rand": "rand",
    "aten::randn": "randn",
    "aten::rand_like": "rand_like",
    "aten::randn_like": "randn_like",
}


class DrawByPosition(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Eager random ops draw as the k-th random op of a captured step does."""

    def __init__(self, key: RandomKey) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.key = key
        self._stream = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name + (
            f".{func._schema.overload_name}" if func._schema.overload_name else ""
        )
        kind = _KINDS.get(name)
        if kind is None:
            return func(*args, **kwargs)
        first = args[0]
        shape = tuple(first.shape) if isinstance(first, Tensor) else tuple(first)
        dtype = (
            first.dtype
            if isinstance(first, Tensor)
            else kwargs.get("dtype") or torch.get_default_dtype()
        )
        # The model in double precision draws what it draws in single.
        drawn = torch.float32 if dtype is torch.float64 else dtype
        operands = args if isinstance(first, Tensor) else ()
        if kind == "bernoulli_p":
            operands = (first, args[1] if len(args) > 1 else kwargs.get("p", 0.5))
        made = draw(
            self.key, *operands, kind=kind, stream=self._stream, shape=shape, cuts=(), dtype=drawn
        )
        self._stream += 1
        if func._schema.name.endswith("_"):
            return first.copy_(made)
        return made.to(dtype) if isinstance(made, Tensor) else made


class Reference:
    """Trains a task on this process alone, as plain PyTorch does."""

    def __init__(
        self,
        task: Task,
        loss: Loss,
        optimizer: OptimizerFactory,
        flatten: Callable[[Any], dict[str, Tensor]],
        *,
        seed: int = 0,
        microbatches: int = 1,
        clip_norm: float | None = None,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = (
                copy.deepcopy(task.model) if isinstance(task.model, nn.Module) else task.model()
            )
        self._loss = loss
        self._flatten = flatten
        self._count = microbatches
        self._clip_norm = clip_norm
        self._key = RandomKey(seed)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = optimizer(trainable)

    def step(self, batch: Any) -> float:
        """One optimizer step; gradients stay readable until the next."""
        self.optimizer.zero_grad(set_to_none=True)
        self._before = {
            name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
        }
        total = self._accumulate(self.model, batch)
        self.optimizer.step()
        self._key.step += 1
        return total

    def exact_gradients(self, batch: Any) -> dict[str, Tensor] | None:
        """The last step's gradients in double precision; None for a model that refuses it."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self._before)
        model.double().zero_grad(set_to_none=True)
        self._key.step -= 1
        try:
            self._accumulate(model, tree_map(_in_double, batch))
        except (RuntimeError, TypeError, ValueError):
            return None
        finally:
            self._key.step += 1
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def _accumulate(self, model: nn.Module, batch: Any) -> float:
        size = batch_size(self._flatten(batch))
        total = 0.0
        for index, (part, held) in enumerate(microbatches(batch, size, self._count)):
            self._key.microbatch = index
            with DrawByPosition(self._key):
                loss = self._loss(model, part) * (held / size)
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self._clip_norm)
        return total


def _in_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
