"""What one device computes: the model in plain eager PyTorch, without any of our graphs.

The one liberty taken is where random numbers come from: an eager random op
draws from the generator that plans draw from, by global position, since
PyTorch's own sequence of draws can't be split over devices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.draws import Draws, generator_seeded, made_of
from meshwright.runtime.local_ops import RandomKey, draw
from meshwright.runtime.microbatch import batch_size, microbatches
from meshwright.runtime.trainer import OptimizerFactory
from meshwright.torch_private import TorchDispatchMode, copy_gradient_hooks, tree_map

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
    """Eager random ops draw as the k-th random op of a captured step does.

    A draw repeated by a checkpoint is the same again. Draws of a generator of the
    user's, or after a seed that the step sets, are PyTorch's own.
    """

    def marked(self) -> AbstractContextManager[None]:
        """To be entered beside the mode: draws are told by the default generator's state."""
        return self._draws.marked()

    def __init__(self, key: RandomKey) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.key = key
        self._draws = Draws()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name + (
            f".{func._schema.overload_name}" if func._schema.overload_name else ""
        )
        kind = _KINDS.get(name)
        own = any(isinstance(x, torch.Generator) for x in (*args, *kwargs.values()))
        recipe = made_of(func._schema)
        if recipe is not None and not own and not self._draws.seeded():
            return self._made(func, recipe, args, kwargs)
        stream = None if kind is None or own else self._draws.next()
        if kind is None or stream is None:
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
            self.key, *operands, kind=kind, stream=stream, shape=shape, cuts=(), dtype=drawn
        )
        if func._schema.name.endswith("_"):
            return first.copy_(made)
        return made.to(dtype) if isinstance(made, Tensor) else made

    def _made(self, func: Any, recipe: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A random op made of uniform and normal draws."""

        # The model in double precision draws what it draws in single.
        doubled = any(isinstance(x, Tensor) and x.dtype is torch.float64 for x in args)

        def one(kind: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            stream = self._draws.next()
            assert stream is not None
            drawn: Tensor = draw(
                self.key, kind=kind, stream=stream, shape=tuple(shape), cuts=(),
                dtype=torch.float32 if doubled else dtype,
            )  # fmt: skip
            return drawn.to(dtype)

        made = recipe(one, *args, **{k: v for k, v in kwargs.items() if k != "generator"})
        if isinstance(made, tuple):  # rrelu, whose second argument is written to
            args[1].copy_(made[1])
            made = made[0]
        return args[0].copy_(made) if func._schema.name.endswith("_") else made


class Reference:
    """Trains a task on this process alone, as plain PyTorch does."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        loss: Loss,
        optimizer: OptimizerFactory,
        flatten: Callable[[Any], dict[str, Tensor]],
        *,
        seed: int = 0,
        microbatches: int = 1,
        clip_norm: float | None = None,
    ) -> None:
        with generator_seeded(seed):
            self.model = build()
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

    def exact(self, batch: Any) -> tuple[float, dict[str, Tensor]] | None:
        """The last step's loss and gradients in double precision; None if the model refuses it."""
        self._key.step -= 1
        try:
            model = copy.deepcopy(self.model)
            for old, new in zip(self.model.parameters(), model.parameters(), strict=True):
                copy_gradient_hooks(old, new)
            model.load_state_dict(self._before)
            model.double().zero_grad(set_to_none=True)
            loss = self._accumulate(model, tree_map(_in_double, batch))
        except (RuntimeError, TypeError, ValueError):
            return None
        finally:
            self._key.step += 1
        return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def _accumulate(self, model: nn.Module, batch: Any) -> float:
        size = batch_size(self._flatten(batch))
        total = 0.0
        for index, (part, held) in enumerate(microbatches(batch, size, self._count)):
            self._key.microbatch = index
            mode = DrawByPosition(self._key)
            with torch.compiler.set_stance("force_eager"), mode.marked(), mode:
                # The model may write to its batch, which is the caller's.
                loss = self._loss(model, tree_map(_own, part)) * (held / size)
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        for parameter in model.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self._clip_norm)
        return total


def _own(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _in_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
