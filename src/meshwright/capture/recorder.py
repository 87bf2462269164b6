"""Records the ops of a step as it runs on fake tensors.

The recorder sits below autograd and below functionalization: what it sees are
pure ATen ops, forward and backward alike, each with the fakes that it takes
and gives. Composite ops arrive already decomposed by PyTorch, all others whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from meshwright.capture.known import READS, KnownValues
from meshwright.capture.location import (
    NOWHERE,
    Line,
    Lines,
    RunningModules,
    located,
    source,
)
from meshwright.capture.ragged import Ragged
from meshwright.capture.random import RandomOps
from meshwright.errors import CaptureError
from meshwright.program.types import Phase
from meshwright.torch_private import (
    FakeTensor,
    FakeTensorMode,
    OpOverload,
    TorchDispatchMode,
    current_autograd_node,
    from_functional,
    next_sequence_number,
    without_modes,
)

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default

# Ops that give their argument back, as far as numbers go.
_SAME = frozenset({
    _aten.detach.default, _aten.alias.default, _aten.lift_fresh.default, _aten.lift.default,
})  # fmt: skip

# Checks and hints without a result that anything depends on.
_IGNORED = frozenset({
    "aten::_assert_async", "aten::_assert_scalar", "aten::_assert_tensor_metadata",
    "aten::_functional_assert_async", "aten::record_stream", "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size", "profiler::_record_function_enter_new",
    "profiler::_record_function_exit",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slot:
    """The use of a recorded value, by number."""

    number: int


@dataclass(slots=True)
class RecordedOp:
    func: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[int | None, ...]
    returns_tuple: bool
    phase: Phase
    module: str
    in_model: bool  # false for what the loss callable does outside of the model
    line: Line
    sequence: int = 0  # of the autograd node that a forward op's next one would be


ForeignFake = Callable[[Tensor], Tensor]


@dataclass
class Recording:
    """Everything that ran, in order. `values[i]` is the fake of value `i`."""

    values: list[Tensor] = field(default_factory=list)
    ops: list[RecordedOp] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)  # number -> the real tensor


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fills a Recording while it is the innermost dispatch mode.

    modules: tells which module is running. stop: the code object below which
    user frames are looked for. foreign: gives the real value of a fake that
    the step uses though it is no input (a tensor that the model made when it
    was built and kept as a plain attribute).
    """

    def __init__(
        self,
        fake_mode: FakeTensorMode,
        modules: RunningModules,
        stop: CodeType,
        foreign: ForeignFake,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        # Ops that are recorded by a function of their own.
        self.handlers: dict[OpOverload, Callable[[tuple[Any, ...]], Any]] = {}
        self.phase: Phase = "forward"
        self._fake_mode = fake_mode
        self._modules = modules
        self._lines = Lines()
        self._stop = stop
        self._foreign = foreign
        self._numbers: dict[int, int] = {}  # id of a fake -> its value
        self._held: list[Tensor] = []  # keeps those ids, and the storages' identities, in use
        self._reals: dict[int, Tensor] = {}  # id of a real tensor -> its fake
        self._transposed: dict[int, int] = {}  # result of aten.t -> what it transposes
        self._origins: dict[int, tuple[str, bool, Line]] = {}  # autograd node -> forward op
        self.known = KnownValues(self.recording)
        self.random = RandomOps(self, self.number, self._fake, self.running_line)
        self.ragged = Ragged(self, fake_mode, stop)

    def add_input(self, fake: Tensor) -> int:
        number = len(self.recording.values)
        self.recording.values.append(fake)
        self.bind(fake, number)
        return number

    def number_of(self, fake: Tensor) -> int | None:
        return self._numbers.get(id(fake))

    def fake(self, number: int) -> Tensor:
        return self.recording.values[number]

    def value_of(self, fake: Tensor) -> Tensor | None:
        """The values of a fake that depend on nothing but shapes; None for another."""
        number = self._numbers.get(id(fake))
        return None if number is None else self.known.value(number)

    def uses(self, tensor: Tensor) -> bool:
        """Whether the step computes with a tensor that is no input of it."""
        return id(tensor) in self._reals or id(from_functional(tensor)) in self._numbers

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor differs from step to step: it comes from inputs or draws."""
        number = self._numbers.get(id(from_functional(tensor)))
        if number is None:
            return False
        makers = {made: op for op in self.recording.ops for made in op.results}
        pending, seen = [number], set[int]()
        while pending:
            current = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            op = makers.get(current)
            if op is None:
                if current not in self.recording.constants:
                    return True
            elif torch.Tag.nondeterministic_seeded in op.func.tags:
                return True
            else:
                pending.extend(_used(op))
        return False

    def made_in(self, number: int) -> str:
        """Where a recorded value was made, for messages."""
        for op in self.recording.ops:
            if number in op.results:
                return located(source(op.module, op.line))
        return "an unknown line"

    def running_line(self) -> str:
        """The user's line that is running, for messages."""
        return located(source(self._modules.innermost, self._lines.running(self._stop)))

    def where(self) -> str:
        """The module that is running."""
        return self._modules.innermost

    def bind(self, fake: Tensor, number: int) -> None:
        """Say that `fake` is the value `number`."""
        self._numbers[id(fake)] = number
        self._held.append(fake)

    def number(self, tensor: Tensor) -> int:
        number = self._numbers.get(id(tensor))
        if number is None:
            with without_modes():
                real = self._foreign(tensor)
            number = self._constant(tensor, real)
        return number

    def _constant(self, fake: Tensor, real: Tensor) -> int:
        number = self.add_input(fake)
        self.recording.constants[number] = real
        return number

    def _fake(self, tensor: Tensor) -> Tensor:
        """The fake of a real tensor that the step uses; it becomes a constant."""
        fake = self._reals.get(id(tensor))
        if fake is None:
            with without_modes():
                real = tensor.detach().clone()
                fake = self._fake_mode.from_tensor(tensor.detach())
            self._reals[id(tensor)] = fake
            self._held.append(tensor)
            self._constant(fake, real)
        return fake

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
        if func is _aten.lift_fresh.default and not isinstance(args[0], FakeTensor):
            return self._lift(args[0])
        args = tuple(self._replace(item) for item in args)
        kwargs = {key: self._replace(item) for key, item in kwargs.items()}
        if func in self.handlers:
            return self.handlers[func](args)
        if func in READS:
            known = self.known.read(func, [self._numbers.get(id(item)) for item in args])
            if known is not NotImplemented:
                return known
        if func._schema.is_mutable:
            return self._write(func, args, kwargs)
        if func is _aten.native_batch_norm.default and args[5] and args[3] is not None:
            return self._batch_norm(args)
        self.ragged.prepare(args)
        output = self.ragged.dispatch(func, args, kwargs)
        if output is not NotImplemented:
            return output
        output = self.random.dispatch(func, args, kwargs, again=self.phase == "backward")
        if output is not NotImplemented:
            return output
        output = func(*args, **kwargs)
        if func in _SAME:
            self.bind(output, self.number(args[0]))
        elif func is _aten.t.default:
            self._transpose(args[0], output)
        elif func._schema.name not in _IGNORED:
            self.record(func, args, kwargs, output)
            self.random.drawn(output)
        return output

    def _transpose(self, item: Tensor, output: Tensor) -> None:
        """Autograd transposes what the forward transposed: that gives the same value back."""
        original = self._transposed.get(self.number(item))
        if original is not None:
            self.bind(output, original)
            return
        self.record(_aten.t.default, (item,), {}, output)
        self._transposed[self.number(output)] = self.number(item)

    def _lift(self, real: Tensor) -> Tensor:
        # The fake keeps the real value too, which answers `.item()` on it.
        fake: Tensor = _aten.lift_fresh.default(real)
        with without_modes():
            self._constant(fake, real.detach().clone())
        return fake

    def _replace(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            return item if isinstance(item, FakeTensor) else self._fake(item)
        if isinstance(item, (list, tuple)):
            return [self._replace(part) for part in item]
        return item

    def _batch_norm(self, args: tuple[Any, ...]) -> Any:
        """Training batch norm writes its running statistics though its schema hides it."""
        func = _aten._native_batch_norm_legit_functional.default
        output = func(*args)
        self.record(func, args, {}, output)
        for buffer, updated in zip(args[3:5], output[3:5], strict=True):
            self._numbers[id(buffer)] = self._numbers[id(updated)]
        return tuple(output[:3])

    def _write(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A write that functionalization left: its target is no input and no result of the step."""
        if func._schema.name in _IGNORED:
            return func(*args, **kwargs)
        raise CaptureError(
            f"{func} writes to a tensor that the model holds as a plain attribute.",
            "Register the tensor with register_buffer, so that its updates are part of the step.",
        )

    def record(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        returns_tuple = isinstance(output, (tuple, list))
        outputs = tuple(output) if returns_tuple else (output,)
        if not any(isinstance(item, Tensor) for item in outputs):
            return
        module, in_model, line = self._origin()
        recorded_args = tuple(self._slots(item) for item in args)
        recorded_kwargs = {key: self._slots(item) for key, item in kwargs.items()}
        wanted = _wanted(func, args, len(outputs))
        results = tuple(
            self.add_input(item) if is_wanted and isinstance(item, Tensor) else None
            for item, is_wanted in zip(outputs, wanted, strict=True)
        )
        self.recording.ops.append(
            RecordedOp(
                func, recorded_args, recorded_kwargs, results, returns_tuple,
                self.phase, module, in_model, line,
                next_sequence_number() if self.phase == "forward" else 0,
            )
        )  # fmt: skip
        self.ragged.recorded(self.recording.ops[-1])

    def _slots(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            return Slot(self.number(item))
        if isinstance(item, (list, tuple)):
            return tuple(self._slots(part) for part in item)
        return item

    def _origin(self) -> tuple[str, bool, Line]:
        node = current_autograd_node() if self.phase == "backward" else None
        # A module that runs inside the backward is the user's own recomputation.
        if node is not None and not self._modules.inside:
            if node >= next_sequence_number():
                return "", False, NOWHERE  # a hook of a parameter, whose node has no number
            while node >= 0 and node not in self._origins:
                node -= 1
            return self._origins.get(node, ("", False, NOWHERE))
        origin = (self._modules.innermost, self._modules.inside, self._lines.running(self._stop))
        # Autograd makes the node of an op just before the op itself runs.
        self._origins.setdefault(next_sequence_number() - 1, origin)
        return origin


def _used(op: RecordedOp) -> list[int]:
    found: list[int] = []
    pending: list[Any] = [*op.args, *op.kwargs.values()]
    while pending:
        item = pending.pop()
        if isinstance(item, Slot):
            found.append(item.number)
        elif isinstance(item, tuple):
            pending.extend(item)
    return found


def _wanted(func: OpOverload, args: tuple[Any, ...], count: int) -> Sequence[bool]:
    """Which results an op really gives: what `output_mask` leaves out is None, on fakes too."""
    last = func._schema.arguments[-1] if func._schema.arguments else None
    if last is None or last.name != "output_mask" or len(args) < len(func._schema.arguments):
        return [True] * count
    return [bool(flag) for flag in args[-1]]
