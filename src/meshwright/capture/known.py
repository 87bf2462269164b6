"""Values of a step that depend on nothing but its shapes, computed when the code reads them.

A model may read such a value: the length of an `arange`, the largest of its
position numbers, whether a mask of its own holds anything. It is the same in
every step of these shapes, so that reading it is no branch on data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor

from meshwright.capture.random import draws
from meshwright.torch_private import OpOverload, without_modes

if TYPE_CHECKING:
    from meshwright.capture.recorder import RecordedOp, Recording

_aten = torch.ops.aten

# Ops that give Python numbers for the values of tensors.
READS = frozenset({_aten._local_scalar_dense.default, _aten.equal.default})

_MOST_ELEMENTS = 1 << 24  # of one value: a mask of 4,096 by 4,096
_MOST_OPS = 10_000


class KnownValues:
    """Finds values among what a Recording has so far."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._made_by: dict[int, int] = {}  # value -> index of the op that makes it
        self._seen = 0
        self._unknown: set[int] = set()  # they depend on inputs or draws

    def read(self, func: OpOverload, numbers: list[int | None]) -> Any:
        """What one of READS gives for values by number; NotImplemented when they aren't known."""
        values = [None if number is None else self.value(number) for number in numbers]
        if any(value is None for value in values):
            return NotImplemented
        with without_modes():
            return func(*values)

    def value(self, number: int) -> Tensor | None:
        """The value, when it depends on constants and shapes alone."""
        for index in range(self._seen, len(self._recording.ops)):
            for made in self._recording.ops[index].results:
                if made is not None:
                    self._made_by[made] = index
        self._seen = len(self._recording.ops)
        needed = self._slice(number)
        if needed is None:
            return None
        found: dict[int, Tensor] = {}
        with without_modes(), torch.no_grad():
            for index in needed:
                self._run(self._recording.ops[index], found)
            return self._get(number, found)

    def _slice(self, number: int) -> list[int] | None:
        """The ops that a value is made by, in order; None when it depends on more than those."""
        ops: set[int] = set()
        pending = [number]
        while pending:
            value = pending.pop()
            if value in self._recording.constants:
                continue
            index = self._made_by.get(value)
            op = None if index is None else self._recording.ops[index]
            known = op is not None and value not in self._unknown and self._is_plain(op)
            if not known or len(ops) > _MOST_OPS:
                self._unknown.add(value)
                self._unknown.add(number)
                return None
            assert index is not None and op is not None
            if index not in ops:
                ops.add(index)
                pending.extend(_slots((op.args, tuple(op.kwargs.values()))))
        return sorted(ops)

    def _is_plain(self, op: RecordedOp) -> bool:
        if draws(op.func, op.args, op.kwargs) or op.func.namespace != "aten":
            return False
        shapes = [self._recording.values[k].shape for k in op.results if k is not None]
        lengths = [n for shape in shapes for n in shape]
        if any(isinstance(n, SymInt) for n in lengths) or _is_symbolic((op.args, op.kwargs)):
            return False
        return all(shape.numel() <= _MOST_ELEMENTS for shape in shapes)

    def _run(self, op: RecordedOp, found: dict[int, Tensor]) -> None:
        args = self._filled(op.args, found)
        kwargs = {key: self._filled(item, found) for key, item in op.kwargs.items()}
        output = op.func(*args, **kwargs)
        outputs = tuple(output) if op.returns_tuple else (output,)
        for number, item in zip(op.results, outputs, strict=True):
            if number is not None:
                found[number] = item

    def _get(self, number: int, found: dict[int, Tensor]) -> Tensor:
        value = found.get(number)
        return self._recording.constants[number] if value is None else value

    def _filled(self, item: Any, found: dict[int, Tensor]) -> Any:
        number = getattr(item, "number", None)
        if number is not None:
            return self._get(number, found)
        if isinstance(item, (list, tuple)):
            return tuple(self._filled(part, found) for part in item)
        return item


def _slots(item: Any) -> list[int]:
    if hasattr(item, "number"):
        return [item.number]
    return [n for part in item for n in _slots(part)] if isinstance(item, (list, tuple)) else []


def _is_symbolic(item: Any) -> bool:
    if isinstance(item, dict):
        item = tuple(item.values())
    if isinstance(item, (list, tuple)):
        return any(_is_symbolic(part) for part in item)
    return isinstance(item, (SymInt, SymFloat, SymBool))
