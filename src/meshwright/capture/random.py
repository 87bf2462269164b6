"""Random ops of a step: which are draws, which repeat one, and which are constants.

A draw from the default generator becomes an op of the Program. One that is made
again in the state that an earlier one was made in (recomputation by
`torch.utils.checkpoint`) gives the earlier one's value. What comes from a seed
that the step itself sets is the same in every step, hence a constant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meshwright.draws import Draws, made_of
from meshwright.errors import CaptureError
from meshwright.torch_private import FakeTensor, OpOverload, TorchDispatchMode, without_modes

# Ops that only take shape and dtype from their tensors: their draws need no values.
_SHAPE_ONLY = frozenset({
    "aten::bernoulli.p", "aten::normal_functional", "aten::uniform", "aten::exponential",
    "aten::rand_like", "aten::randn_like", "aten::randint_like", "aten::randint_like.low_dtype",
    "aten::randint_like.Tensor", "aten::cauchy", "aten::geometric", "aten::log_normal",
    "aten::random", "aten::random.from", "aten::random.to",
})  # fmt: skip

OWN_GENERATOR = (
    "Draw from PyTorch's default generator, whose draws are the same under every plan; or make "
    "and seed the generator where the draw is made, which gives the same numbers in every step."
)


@dataclass(frozen=True)
class _Drawn:
    call: Any
    operands: tuple[int, ...]
    outputs: Any


class RandomOps:
    """What to do with each random op, for a recorder.

    recorder: the mode that records the ops that others are made of. number_of: the
    recorded number of a fake. lift: makes a real tensor a constant. where: the line that runs.
    """

    def __init__(
        self,
        recorder: TorchDispatchMode,
        number_of: Callable[[Tensor], int],
        lift: Callable[[Tensor], Tensor],
        where: Callable[[], str],
    ) -> None:
        self.draws = Draws()
        self._recorder = recorder
        self._number_of = number_of
        self._lift = lift
        self._where = where
        self._drawn: dict[int, _Drawn] = {}
        self._generators: list[tuple[torch.Generator, str]] = []

    def note(self, generator: torch.Generator) -> None:
        """Remember a generator that the user's code draws from, as the object that it holds."""
        default = generator is torch.default_generator
        if not default and all(generator is not known for known, _ in self._generators):
            self._generators.append((generator, self._where()))

    def dispatch(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], again: bool
    ) -> Any:
        """What a random op gives when it is no new draw, or NotImplemented.

        again: whether forwards are being run again, in the backward.
        """
        if not draws(func, args, kwargs):
            return NotImplemented
        generator = next(
            (x for x in (*args, *kwargs.values()) if isinstance(x, torch.Generator)), None
        )
        if generator is not None and generator is not torch.default_generator:
            if not self._generators:
                raise CaptureError(f"{func} draws from a torch.Generator.", OWN_GENERATOR)
            return self._constant(func, args, kwargs)
        if self.draws.seeded():
            return self._constant(func, args, kwargs)
        recipe = made_of(func._schema)
        if recipe is not None:
            with self._recorder:
                return recipe(_draw, *args, **{k: v for k, v in kwargs.items() if k != "generator"})
        number = self.draws.next()
        assert number is not None
        call = _call(func, args, kwargs)
        operands = tuple(self._number_of(x) for x in _tensors(args, kwargs))
        earlier = self._drawn.get(number)
        if earlier is None:
            self._drawn[number] = _Drawn(call, operands, None)
            return NotImplemented
        same = earlier.operands == operands or again or _name(func) in _SHAPE_ONLY
        if earlier.call != call or not same or earlier.outputs is None:
            raise CaptureError(
                f"{func} draws in a state of the random generator in which another draw was made.",
                "Don't put the generator's state back between draws that differ.",
            )
        return earlier.outputs

    def drawn(self, output: Any) -> None:
        """Note what the latest new draw gave."""
        number = self.draws.count - 1
        found = self._drawn.get(number)
        if found is not None and found.outputs is None:
            self._drawn[number] = _Drawn(found.call, found.operands, output)

    def check_generators(self) -> None:
        """Raises CaptureError for a generator that outlives the step: its draws change by step."""
        while self._generators:
            generator, where = self._generators.pop()
            # `generator`, and the argument of getrefcount
            if sys.getrefcount(generator) > 2:
                raise CaptureError(
                    "The step draws from a torch.Generator that is kept from step to step, in "
                    f"{where}",
                    OWN_GENERATOR,
                )

    def _constant(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Draws for real, as eager PyTorch would in every step."""
        if any(True for _ in _tensors(args, kwargs)) and _name(func) not in _SHAPE_ONLY:
            raise CaptureError(
                f"{func} draws with a seed that the step sets, and needs values of tensors.",
                OWN_GENERATOR,
            )
        with without_modes():
            made = func(*[_real(x) for x in args], **{k: _real(x) for k, x in kwargs.items()})
            return self._lift(made)


def _draw(kind: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return (torch.rand if kind == "rand" else torch.randn)(tuple(shape), dtype=dtype, device="cpu")


def draws(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call draws random numbers: attention is marked as random, and mostly is not."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[position] if position < len(args) else kwargs.get("dropout_p", 0.0)
            return bool(given)
    return True


def _name(func: OpOverload) -> str:
    overload = func._schema.overload_name
    return f"{func._schema.name}.{overload}" if overload else func._schema.name


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    return [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]


def _call(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What has to agree for two calls to draw alike."""

    def plain(item: Any) -> Any:
        if isinstance(item, Tensor):
            return tuple(item.shape), item.dtype
        return tuple(plain(part) for part in item) if isinstance(item, (list, tuple)) else item

    return func, plain(args), tuple((key, plain(item)) for key, item in kwargs.items())


def _real(item: Any) -> Any:
    if isinstance(item, FakeTensor):
        return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype)
    return item
