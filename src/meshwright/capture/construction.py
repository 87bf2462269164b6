"""Records the construction of a model, which runs on fakes, as a Tape."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from meshwright.capture.replay import Replay, constant_value
from meshwright.capture.tape import Step, Tape
from meshwright.capture.values import FakesCanBeCopied, KnownValuesOnly
from meshwright.draws import GENERATOR
from meshwright.errors import CaptureError
from meshwright.torch_private import (
    TRUNCATED_NORMAL,
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    OpOverload,
    TorchDispatchMode,
    forget_conversions,
    without_modes,
)

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
BUILD_IT_YOURSELF = "Build the module yourself and pass the module instead of the callable."

_MOST_READ = 1 << 20  # elements of a tensor that the callable may read

# While recording, a generator is seeded with a mark after each draw: unlike any
# seed that a user sets, and different each time. The mark found at the next draw
# tells whether the generator goes on, went back, or was seeded in between.
_FIRST_MARK = 0x6D65_7368_0000_0000


class TapeRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, fake_mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        self._fake_mode = fake_mode
        self._fakes: dict[int, tuple[Tensor, Tensor]] = {}  # id of a real -> it, its fake
        self._drawing: FrameType | None = None
        self._generators = [torch.default_generator]
        self._before: list[Tensor] = []  # their states before the recording
        self._marks = {_FIRST_MARK: -1}  # mark -> the step that drew before it
        self._latest: dict[int, int] = {}  # number of a generator -> its last mark

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records what runs within, and leaves the caller's random state as it was."""
        with GENERATOR:
            self._before = [torch.default_generator.get_state()]
            self._latest[0] = _FIRST_MARK
            torch.default_generator.manual_seed(_FIRST_MARK)
            try:
                with ExitStack() as stack:
                    stack.enter_context(warnings.catch_warnings())
                    # PyTorch probes a fake for its address at times, and goes on without.
                    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
                    for mode in (
                        self._fake_mode, self,
                        KnownValuesOnly(BUILD_IT_YOURSELF, self._known), FakesCanBeCopied(),
                    ):  # fmt: skip
                        stack.enter_context(mode)
                    yield
            finally:
                self._drawing = None
                for generator, state in zip(self._generators, self._before, strict=True):
                    generator.set_state(state)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        kwargs = kwargs or {}
        frame = _truncated_normal()
        if frame is not None:
            return self._draw_truncated(frame, func, args, kwargs)
        if func is _aten.lift_fresh.default and not isinstance(args[0], FakeTensor):
            real = args[0]
            fake = func(real)
            self.tape.add_given(real, fake)
            return fake
        args = tuple(self._replace(item) for item in args)
        kwargs = {key: self._replace(item) for key, item in kwargs.items()}
        if func is _aten._local_scalar_dense.default:
            value = self._known(args[0])
            if value is not None:
                with without_modes():
                    return value.item()
        _refuse_unreplayable(func, args)
        writes = self._written(func, args, kwargs)
        inputs = self._freeze(args), {key: self._freeze(item) for key, item in kwargs.items()}
        output = func(*args, **kwargs)
        forget_conversions(self._fake_mode)
        self._append(func, inputs[0], inputs[1], output, writes)
        return output

    def _known(self, fake: Tensor) -> Tensor | None:
        """The values of what depends on no draw, as the rates of stochastic depth; else None."""
        if not self.tape.knows(fake) or fake.numel() > _MOST_READ:
            return None
        replay, view = Replay(self.tape), self.tape.view(fake)
        if replay.is_random(view):
            return None
        with without_modes():
            return constant_value(replay, view)

    def _replace(self, item: Any) -> Any:
        if isinstance(item, Tensor) and not isinstance(item, FakeTensor):
            if id(item) not in self._fakes:
                fake = self._fake_mode.from_tensor(item)
                self.tape.add_given(item, fake)
                self._fakes[id(item)] = item, fake
            return self._fakes[id(item)][1]
        if isinstance(item, (list, tuple)):
            return [self._replace(part) for part in item]
        return item

    def _freeze(self, item: Any) -> Any:
        """The argument with its tensors as views, taken before the op can change them."""
        if isinstance(item, Tensor):
            if not self.tape.knows(item):
                raise CaptureError(
                    "The callable that builds the model uses a tensor made outside of it, "
                    "whose values are not known.",
                    BUILD_IT_YOURSELF,
                )
            return self.tape.view(item)
        if isinstance(item, (list, tuple)):
            return tuple(self._freeze(part) for part in item)
        return item

    def _written(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> frozenset[int]:
        if not func._schema.is_mutable:
            return frozenset()
        found: set[int] = set()
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            item = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in item if isinstance(item, (list, tuple)) else (item,):
                if isinstance(tensor, Tensor) and self.tape.knows(tensor):
                    found.add(self.tape.view(tensor).storage)
        return frozenset(found)

    def _append(
        self,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,
        writes: frozenset[int],
    ) -> None:
        outputs = tuple(output) if isinstance(output, (list, tuple)) else (output,)
        fresh = [isinstance(item, Tensor) and not self.tape.knows(item) for item in outputs]
        if not writes and not any(fresh):
            return  # a view, or nothing that lasts
        for item, is_fresh in zip(outputs, fresh, strict=True):
            if is_fresh and not self.tape.knows(item):
                self.tape.add(item)
        step = Step(
            func._schema.name, func, args, kwargs,
            tuple(
                self.tape.view(item) if is_fresh else None
                for item, is_fresh in zip(outputs, fresh, strict=True)
            ),
            writes, torch.get_default_dtype(),
        )  # fmt: skip
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._draw(step, kwargs.get("generator"))
        self.tape.steps.append(step)

    def _draw_truncated(
        self, frame: FrameType, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """One step stands for all that `trunc_normal_` does, a loop whose end the values decide."""
        if frame is not self._drawing:
            self._drawing = frame
            given = frame.f_locals
            target = self._freeze(given["tensor"])
            step = Step(
                "trunc_normal_", torch.nn.init.trunc_normal_,
                (target, given["mean"], given["std"], given["a"], given["b"]), {},
                (), frozenset({target.storage}), torch.get_default_dtype(),
            )  # fmt: skip
            self._draw(step, given["generator"])
            self.tape.steps.append(step)
        try:
            return func(*args, **kwargs)
        except DataDependentOutputException:
            return False  # "is any value out of bounds?"

    def _draw(self, step: Step, generator: torch.Generator | None) -> None:
        """Notes which generator a step draws from and in what state; then marks it."""
        generator = torch.default_generator if generator is None else generator
        with without_modes():
            numbers = [n for n, known in enumerate(self._generators) if known is generator]
            if not numbers:
                numbers = [len(self._generators)]
                self._generators.append(generator)
                self._before.append(generator.get_state())
            step.random, step.generator = True, numbers[0]
            found = generator.initial_seed()
            if found not in self._marks:
                step.state = generator.get_state()
            elif found != self._latest.get(step.generator):
                step.resume = self._marks[found]
            mark = _FIRST_MARK + len(self._marks)
            self._marks[mark] = len(self.tape.steps)
            self._latest[step.generator] = mark
            generator.manual_seed(mark)


def _truncated_normal() -> FrameType | None:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(16):
        if frame is None or frame.f_code is TRUNCATED_NORMAL:
            return frame
        frame = frame.f_back
    return None


def _refuse_unreplayable(func: OpOverload, args: tuple[Any, ...]) -> None:
    name = func._schema.name
    reads_file = name == "aten::set_" and not isinstance(args[1] if len(args) > 1 else None, Tensor)
    if reads_file or name in ("aten::resize_", "aten::resize_as_"):
        raise CaptureError(
            "The callable that builds the model loads or resizes memory "
            f"({func}), which can't be done without the values.",
            BUILD_IT_YOURSELF,
        )
