"""Which draw of a step a random op makes, told by the state of PyTorch's default generator.

The generator is seeded with a mark after each draw: unlike any seed that a
user sets, and different each time. A draw made in a state that was there before
repeats the earlier draw, as where `torch.utils.checkpoint` puts the state back to
run a forward again; one made in a state without a mark follows a seed that the
user's code set on the way.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_FIRST_MARK = 0x6D65_7377_0000_0000


class Turns:
    """A lock that is held by a context: by a thread, and by one that works for it meanwhile.

    Held once more within, it stays held. A thread that its holder waits for takes part by
    running in a copy of the holder's context (`contextvars.copy_context`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = ContextVar("depth", default=0)

    def __enter__(self) -> None:
        depth = self._depth.get()
        if not depth:
            self._lock.acquire()
        self._depth.set(depth + 1)

    def __exit__(self, *failure: object) -> None:
        depth = self._depth.get() - 1
        self._depth.set(depth)
        if not depth:
            self._lock.release()


# PyTorch's generator is one for all threads: ranks that are threads take turns at it, as
# one may make its parameters or capture while another steps.
GENERATOR = Turns()


@contextmanager
def generator_seeded(seed: int) -> Iterator[None]:
    """Within it PyTorch's default generator is this thread's, with `seed`; then as it was."""
    with GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Draws:
    """Numbers the draws of a step from 0; capture and one device's reference count alike."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Within it draws can be told apart; at the end the generator is as it was."""
        with GENERATOR:
            before = torch.default_generator.get_state()
            torch.default_generator.manual_seed(_FIRST_MARK + self.count)
            try:
                yield
            finally:
                torch.default_generator.set_state(before)

    def seeded(self) -> bool:
        """Whether the next draw follows a seed that the user's code set on the way."""
        return not 0 <= torch.default_generator.initial_seed() - _FIRST_MARK <= self.count

    def next(self) -> int | None:
        """The number of the draw about to be made: `count` is new, less repeats an earlier one.

        None for a draw that follows a seed of the user's.
        """
        number = torch.default_generator.initial_seed() - _FIRST_MARK
        if not 0 <= number <= self.count:
            return None
        self.count = max(self.count, number + 1)
        torch.default_generator.manual_seed(_FIRST_MARK + number + 1)
        return number


# Further random ops, made of uniform and normal draws. Each function gets the op's
# arguments by position and `draw(kind, shape, dtype)`, which is `rand` or `randn`.

Draw = Callable[[str, Sequence[int], torch.dtype], Tensor]
_EPSILON = 2.0**-25  # keeps logarithms finite: half the step of a float32 draw


def _float(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def _normal(draw: Draw, x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return draw("randn", x.shape, _float(x)) * std + mean


def _normal_sized(
    draw: Draw, mean: float, std: float, size: Sequence[int], **kwargs: Any
) -> Tensor:
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return draw("randn", size, dtype) * std + mean


def _normal_around(draw: Draw, mean: Tensor | float, std: Tensor | float = 1.0) -> Tensor:
    both = [x for x in (mean, std) if isinstance(x, Tensor)]
    shape = torch.broadcast_tensors(*both)[0].shape  # type: ignore[no-untyped-call]
    return draw("randn", shape, _float(both[0])) * std + mean


def _log_normal(draw: Draw, x: Tensor, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return (draw("randn", x.shape, _float(x)) * std + mean).exp()


def _uniform(draw: Draw, x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return draw("rand", x.shape, _float(x)) * (high - low) + low


def _exponential(draw: Draw, x: Tensor, rate: float = 1.0) -> Tensor:
    return (-torch.log1p(-draw("rand", x.shape, _float(x)))).clamp(min=_EPSILON) / rate


def _cauchy(draw: Draw, x: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return torch.tan(math.pi * (draw("rand", x.shape, _float(x)) - 0.5)) * sigma + median


def _geometric(draw: Draw, x: Tensor, p: float) -> Tensor:
    drawn = draw("rand", x.shape, torch.float32).clamp(min=_EPSILON)
    return (drawn.log() / math.log1p(-p)).ceil().clamp(min=1).to(x.dtype)


def _integers(
    draw: Draw, shape: Sequence[int], low: int, high: int, dtype: torch.dtype | None
) -> Tensor:
    drawn = draw("rand", shape, torch.float64)
    return ((drawn * (high - low)).floor() + low).to(dtype or torch.int64)


def _randint(draw: Draw, high: int, size: Sequence[int], **kwargs: Any) -> Tensor:
    return _integers(draw, size, 0, high, kwargs.get("dtype"))


def _randint_low(draw: Draw, low: int, high: int, size: Sequence[int], **kwargs: Any) -> Tensor:
    return _integers(draw, size, low, high, kwargs.get("dtype"))


def _randint_like(draw: Draw, x: Tensor, high: int, **kwargs: Any) -> Tensor:
    return _integers(draw, x.shape, 0, high, kwargs.get("dtype") or x.dtype)


def _randint_like_low(draw: Draw, x: Tensor, low: int, high: int, **kwargs: Any) -> Tensor:
    return _integers(draw, x.shape, low, high, kwargs.get("dtype") or x.dtype)


def _random_to(draw: Draw, x: Tensor, high: int) -> Tensor:
    return _integers(draw, x.shape, 0, high, x.dtype)


def _random_from(draw: Draw, x: Tensor, low: int, high: int) -> Tensor:
    return _integers(draw, x.shape, low, high, x.dtype)


def _randperm(draw: Draw, n: int, **kwargs: Any) -> Tensor:
    order = torch.argsort(draw("rand", (n,), torch.float64))
    return order.to(kwargs.get("dtype") or torch.int64)


def _multinomial(draw: Draw, p: Tensor, count: int, replacement: bool = False) -> Tensor:
    """The largest of `p` over exponential draws: the first events of competing processes."""
    if replacement and count > 1:
        p = p.unsqueeze(-2).expand(*p.shape[:-1], count, p.shape[-1])
        return (p / _exponential(draw, p)).argmax(-1)
    return (p / _exponential(draw, p)).topk(count, -1)[1]


def _rrelu(
    draw: Draw,
    x: Tensor,
    noise: Tensor,
    lower: float = 0.125,
    upper: float = 1 / 3,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    if not training:
        return torch.where(x <= 0, x * ((lower + upper) / 2), x), noise.clone()
    slope = draw("rand", x.shape, _float(x)) * (upper - lower) + lower
    made = torch.where(x <= 0, slope, torch.ones_like(x))
    return x * made, made


_MADE_OF: Mapping[str, Callable[..., Any]] = {
    "normal_functional": _normal, "normal.float_float": _normal_sized,
    "normal.Tensor_float": _normal_around, "normal.float_Tensor": _normal_around,
    "normal.Tensor_Tensor": _normal_around, "log_normal": _log_normal, "uniform": _uniform,
    "exponential": _exponential, "cauchy": _cauchy, "geometric": _geometric,
    "randint": _randint, "randint.low": _randint_low, "randint_like": _randint_like,
    "randint_like.low_dtype": _randint_like_low, "random.to": _random_to,
    "random.from": _random_from, "randperm": _randperm, "multinomial": _multinomial,
    "rrelu_with_noise_functional": _rrelu,
}  # fmt: skip

# The same ops as eager PyTorch calls them.
_EAGER: Mapping[str, str] = {
    "normal_": "normal_functional", "log_normal_": "log_normal", "uniform_": "uniform",
    "exponential_": "exponential", "cauchy_": "cauchy", "geometric_": "geometric",
    "random_.to": "random.to", "random_.from": "random.from",
    "rrelu_with_noise": "rrelu_with_noise_functional",
    "rrelu_with_noise_": "rrelu_with_noise_functional",
}  # fmt: skip


def made_of(schema: Any) -> Callable[..., Any] | None:
    """How a random op is made of uniform and normal draws; None for one that isn't."""
    space, _, name = schema.name.partition("::")
    if space != "aten":
        return None
    full = f"{name}.{schema.overload_name}" if schema.overload_name else name
    return _MADE_OF.get(_EAGER.get(full, full))
