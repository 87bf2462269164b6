"""Turns a Recording into a Program: live ops only, readable names, plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import SymFloat, SymInt, Tensor

from meshwright.capture.location import Line, located, source
from meshwright.capture.ragged import Ragged
from meshwright.capture.random import draws
from meshwright.capture.recorder import RecordedOp, Recording, Slot
from meshwright.capture.updates import updates_in_forward
from meshwright.errors import CaptureError
from meshwright.program.names import Names, op_name, result_name
from meshwright.program.types import (
    ITEM_BYTES,
    Argument,
    Assumption,
    Input,
    InputKind,
    Length,
    Op,
    Program,
    Ref,
    Source,
    Symbol,
    Value,
)
from meshwright.torch_private import storage_key


@dataclass(frozen=True)
class InputSpec:
    """An input of the step and the number of its value."""

    number: int
    kind: InputKind
    path: str
    trainable: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """Numbers of the values that the step gives; `buffers` holds the changed ones only."""

    loss: int
    gradients: Mapping[str, int | None]
    buffers: Mapping[str, int]


def assemble(
    recording: Recording, inputs: list[InputSpec], outputs: Outputs, lengths: Ragged
) -> tuple[Program, dict[str, Tensor], tuple[int, ...]]:
    """The Program, the real tensors of its constants by path, and its ops' sequence numbers."""
    tangent = next((item.number for item in inputs if item.kind == "tangent"), None)
    ops = updates_in_forward(
        _with_lengths(recording.ops, lengths), outputs.buffers.items(), tangent, _numbers
    )
    ops = _live_ops(ops, outputs)
    used = {number for op in ops for number in _numbers(op.args, op.kwargs)}
    used |= {outputs.loss, *outputs.buffers.values()}
    used |= {number for number in outputs.gradients.values() if number is not None}
    constants = [
        InputSpec(number, "constant", f"constant.{index}")
        for index, number in enumerate(n for n in recording.constants if n in used)
    ]
    inputs = inputs + constants

    names = _Names()
    for item in inputs:
        names.give(item.number, item.path)
    op_names = [names.give_op(op) for op in ops]

    values: dict[str, Value] = {}
    ragged: dict[str, tuple[str | None, ...]] = {}
    owners: dict[int, str] = {}
    produced = [item.number for item in inputs]
    produced += [number for op in ops for number in op.results if number is not None]
    for number in produced:
        fake = recording.values[number]
        name = names[number]
        owner = owners.setdefault(storage_key(fake), name)
        values[name] = Value(name, lengths.shape(fake.shape), _dtype(fake.dtype), owner)
        if fake in lengths:
            ragged[name] = tuple(
                None if number is None else names[number] for number in lengths.dims(fake.shape)
            )

    sources: dict[tuple[str, Line], Source] = {}
    program = Program(
        values=values,
        inputs=tuple(
            Input(names[i.number], i.kind, i.path, i.trainable, i.aliases) for i in inputs
        ),
        ops=tuple(_op(name, op, names, sources) for name, op in zip(op_names, ops, strict=True)),
        loss=names[outputs.loss],
        gradients={
            path: None if number is None else names[number]
            for path, number in outputs.gradients.items()
        },
        buffer_updates={path: names[number] for path, number in outputs.buffers.items()},
        ragged=ragged,
        assumptions=tuple(
            Assumption(text, source(module, line)) for text, line, module in lengths.taken
        ),
    )
    real = {item.path: recording.constants[item.number] for item in constants}
    return program, real, tuple(op.sequence for op in ops)


@dataclass(frozen=True, slots=True)
class _LengthOf:
    """`times` the length of a recorded list."""

    number: int
    times: int


def _with_lengths(ops: list[RecordedOp], lengths: Ragged) -> list[RecordedOp]:
    """The ops with symbolic sizes among their arguments told by list, or as plain numbers."""
    if not lengths.used:
        return ops

    def told(item: Any, op: RecordedOp) -> Any:
        if isinstance(item, tuple):
            return tuple(told(part, op) for part in item)
        if isinstance(item, (SymInt, SymFloat)):
            try:
                found = lengths.length(item)
            except CaptureError as error:
                where = located(source(op.module, op.line))
                raise CaptureError(f"{error.message} It is given to {op.func} in {where}",
                                   error.remedy) from None  # fmt: skip
            return found if isinstance(found, int) else _LengthOf(found[0].lists[0], found[1])
        return item

    return [
        replace(
            op, args=told(op.args, op), kwargs={key: told(v, op) for key, v in op.kwargs.items()}
        )
        for op in ops
    ]


def _live_ops(ops: list[RecordedOp], outputs: Outputs) -> list[RecordedOp]:
    needed = {outputs.loss, *outputs.buffers.values()}
    needed |= {number for number in outputs.gradients.values() if number is not None}
    live: list[RecordedOp] = []
    drawn = False
    for op in reversed(ops):
        # The k-th random op of a Program is the k-th draw of the step: one that nothing
        # uses is only left out where no other follows.
        draw = draws(op.func, op.args, op.kwargs)
        if not needed.isdisjoint(op.results) or (draw and drawn):
            drawn = drawn or draw
            live.append(op)
            needed |= _numbers(op.args, op.kwargs)
    live.reverse()
    return live


def _numbers(args: Any, kwargs: Mapping[str, Any]) -> set[int]:
    found: set[int] = set()
    pending: list[Any] = [args, *kwargs.values()]
    while pending:
        item = pending.pop()
        if isinstance(item, (Slot, _LengthOf)):
            found.add(item.number)
        elif isinstance(item, tuple):
            pending.extend(item)
    return found


class _Names:
    """Names of values, by number; see `program.names`."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._given = Names()

    def __getitem__(self, number: int) -> str:
        return self._names[number]

    def give(self, number: int, wanted: str) -> None:
        self._names[number] = self._given.give(wanted)

    def give_op(self, op: RecordedOp) -> str:
        place = op.module if op.in_model else "loss"
        schema = op.func._schema.name.partition("::")[2]
        name = self._given.give(op_name(place, op.phase == "backward", schema))
        for index, number in enumerate(op.results):
            if number is not None:
                self._names[number] = result_name(name, index)
        return name


def _op(name: str, op: RecordedOp, names: _Names, sources: dict[tuple[str, Line], Source]) -> Op:
    key = op.module, op.line
    if key not in sources:
        sources[key] = source(*key)
    return Op(
        name=name,
        target=str(op.func),
        args=tuple(_argument(item, names, op) for item in op.args),
        kwargs=tuple((key, _argument(item, names, op)) for key, item in op.kwargs.items()),
        results=tuple(None if number is None else names[number] for number in op.results),
        returns_tuple=op.returns_tuple,
        phase=op.phase,
        source=sources[key],
    )


def _argument(item: Any, names: _Names, op: RecordedOp) -> Argument:
    if isinstance(item, Slot):
        return Ref(names[item.number])
    if isinstance(item, _LengthOf):
        return Length(names[item.number], item.times)
    if isinstance(item, tuple):
        return tuple(_argument(part, names, op) for part in item)
    if item is None or isinstance(item, (bool, int, float, str, complex)):
        return item
    if isinstance(item, torch.dtype):
        return Symbol("dtype", _dtype(item))
    if isinstance(item, torch.device):
        return Symbol("device", item.type)
    if isinstance(item, torch.layout):
        return Symbol("layout", str(item).removeprefix("torch."))
    if isinstance(item, torch.memory_format):
        return Symbol("memory_format", str(item).removeprefix("torch."))
    raise CaptureError(
        f"A {type(item).__name__}, which a Program can't hold, is given to {op.func} "
        f"in {located(source(op.module, op.line))}",
        "Draw random numbers from the default generator, and pass plain numbers and tensors.",
    )


def _dtype(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise CaptureError(
            f"The step holds a tensor of dtype {name}, which Meshwright doesn't know.",
            f"Use one of {', '.join(ITEM_BYTES)}.",
        )
    return name
