"""Sizes that values decide: lists of positions, and what is as long as they are.

`nonzero` of a mask gives lists whose length nobody knows before the step runs.
While capturing, such a length is a symbolic size, which PyTorch carries through
shapes, views and gradients. What the Program needs to know of it is kept here:
which list a size belongs to, which dim of which mask a list runs along, and
what the user's code took for granted when it asked for a length's value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import SymFloat, SymInt, Tensor

from meshwright import own_ops
from meshwright.capture.lengths import Lengths
from meshwright.capture.location import Line, Lines
from meshwright.capture.ragged_indexing import Indexing
from meshwright.errors import CaptureError
from meshwright.torch_private import (
    FakeTensorMode,
    OpOverload,
    give_lengths,
    length_terms,
    new_length,
    remember_ops,
)

if TYPE_CHECKING:
    from meshwright.capture.recorder import RecordedOp, Recorder

_aten = torch.ops.aten

# The smallest stand-in for a length. Each list gets a prime of its own beyond it and
# beyond the list's bound, so that no two lengths, nor one and a real size, seem equal.
_LEAST = 11

_NEW = {
    _aten.new_zeros.default: 0.0, _aten.new_ones.default: 1.0, _aten.new_empty.default: 0.0,
}  # fmt: skip


_RESHAPES = frozenset({
    _aten.squeeze.dim, _aten.squeeze.dims, _aten.squeeze.default, _aten.view.default,
    _aten._unsafe_view.default, _aten.reshape.default, _aten.clone.default,
})  # fmt: skip


@dataclass(frozen=True)
class ListOf:
    """The lists of one mask, by number. `shape` is the mask's, at its largest."""

    lists: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def bound(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


class Ragged:
    """What the recorder knows of lists and lengths."""

    def __init__(self, recorder: Recorder, mode: FakeTensorMode, stop: CodeType) -> None:
        self._recorder = recorder
        self._indexing = Indexing(self, recorder)
        self._mode = mode
        self._environment: Lengths | None = None
        self._stop = stop
        self.taken: list[tuple[str, Line, str]] = []  # what was taken for granted, where
        self._of_mask: dict[int, ListOf] = {}  # mask -> its lists
        self._of_matrix: dict[int, ListOf] = {}  # what nonzero returns -> its lists
        self._of_list: dict[int, tuple[ListOf, int]] = {}  # list -> (its mask's lists, which)
        self._of_symbol: dict[Any, ListOf] = {}
        self._computed: dict[Any, int] = {}  # what an op computes -> the first value that is it
        self._first: dict[int, int] = {}  # value -> the first that is computed alike
        self._narrow: dict[int, int] = {}  # value -> what it is but for a last dim
        self._any: set[int] = set()  # bools that say whether a mask has anything at all
        self._last_hint = 0

    @property
    def used(self) -> bool:
        return self._environment is not None

    def close(self) -> None:
        give_lengths(self._mode, None)
        remember_ops(self._mode, True)

    # What the Program is told.

    def shape(self, sizes: Sequence[int | SymInt]) -> tuple[int, ...]:
        """Sizes at their largest."""
        return tuple(self.largest(size) for size in sizes)

    def largest(self, size: int | SymInt) -> int:
        if not isinstance(size, SymInt):
            return int(size)
        found = self.length(size)
        return found if isinstance(found, int) else found[0].bound * found[1]

    def dims(self, sizes: Sequence[int | SymInt]) -> tuple[int | None, ...]:
        """For each dim the list that it is as long as, or a multiple of."""
        found: list[int | None] = []
        for size in sizes:
            length = self.length(size) if isinstance(size, SymInt) else 0
            found.append(None if isinstance(length, int) else length[0].lists[0])
        return tuple(found)

    def length(self, size: SymInt | SymFloat) -> int | tuple[ListOf, int]:
        """A symbolic size as a number, or as (lists, times their length)."""
        expression, symbols = length_terms(size)
        if not symbols:
            return int(expression)
        if len(symbols) == 1:
            ratio = expression / symbols[0]
            if ratio.is_Integer and ratio > 0:
                return self._of_symbol[symbols[0]], int(ratio)
        raise CaptureError(
            f"A size of the step is {expression}, of lengths that are only known when it runs.",
            "Sizes may be the number of positions that one mask selects, or a multiple of it. "
            "Keep the parts apart, or work on the whole tensor with the mask as a factor.",
        )

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether a fake has a dim of unknown size."""
        return self.used and any(isinstance(size, SymInt) for size in tensor.shape)

    # Ops.

    def prepare(self, args: tuple[Any, ...]) -> None:
        """Let the ops of sizes that are seen once not be remembered."""
        if self.used:
            remember_ops(self._mode, not any(self._concerns(item) for item in args))

    def _concerns(self, item: Any) -> bool:
        if isinstance(item, Tensor):
            return any(isinstance(size, SymInt) for size in item.shape)
        if isinstance(item, (list, tuple)):
            return any(self._concerns(part) for part in item)
        return isinstance(item, SymInt)

    def dispatch(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Record an op in the form that knows about lists; NotImplemented for all others."""
        if func is _aten.nonzero.default:
            return self._matrix(args[0])
        indexed = self._indexing.dispatch(func, args, kwargs)
        if indexed is not NotImplemented:
            return indexed
        if func in _NEW and args[0] in self:
            return self._new(func, args, kwargs)
        if func is _aten.any.default or func is _aten.any.dim or func is _aten.any.dims:
            return self._whether_any(func, args, kwargs)
        if self.used and args and isinstance(args[0], Tensor):
            return self._column(func, args, kwargs)
        return NotImplemented

    def _matrix(self, mask: Tensor) -> Tensor:
        """[positions, dims of the mask], as PyTorch's nonzero returns it."""
        found = self.lists(mask)
        sizes = (self._recorder.fake(found.lists[0]).shape[0], len(found.lists))
        matrix: Tensor = _aten.empty.memory_format(sizes, dtype=torch.int64, device=mask.device)
        self._recorder.record(
            _aten.stack.default, ([self._recorder.fake(n) for n in found.lists], 1), {}, matrix
        )
        number = self._recorder.number_of(matrix)
        assert number is not None
        self._of_matrix[number] = found
        return matrix

    def lists(self, mask: Tensor) -> ListOf:
        """The lists of a mask, made once."""
        number = self._same(self._recorder.number(mask))
        found = self._of_mask.get(number)
        if found is not None:
            return found
        if mask.dim() == 0:
            raise CaptureError(
                "A mask without dims is asked for its positions.",
                "Use torch.where(mask, a, b), which needs none.",
            )
        shape = self.shape(mask.shape)
        if self._environment is None:
            self._environment = Lengths(self._asked)
            give_lengths(self._mode, self._environment)
        bound = max(ListOf((), shape).bound, _LEAST)
        hint = self._last_hint = _prime_beyond(max(self._last_hint, bound))
        size, symbol, stand_in = new_length(self._environment, hint)
        self._environment.hints[symbol] = stand_in
        self._environment.bounds[symbol] = stand_in + (ListOf((), shape).bound - hint)
        made = [
            _aten.empty.memory_format((size,), dtype=torch.int64, device=mask.device) for _ in shape
        ]
        self._recorder.record(own_ops.nonzero, (mask,), {}, made)
        numbers = tuple(self._recorder.number(item) for item in made)
        found = self._of_mask[number] = self._of_symbol[symbol] = ListOf(numbers, shape)
        for position, item in enumerate(numbers):
            self._of_list[item] = found, position
        return found

    def recorded(self, op: RecordedOp) -> None:
        """Masks that are computed alike are the same mask, whose lists are made once."""
        if len(op.results) != 1 or op.results[0] is None:
            return
        if torch.Tag.nondeterministic_seeded in op.func.tags:
            return
        self._note_widened(op.func, op.args, op.results[0])
        key = (op.func, self._plain(op.args), self._plain(tuple(op.kwargs.items())))
        try:
            first = self._computed.setdefault(key, op.results[0])
        except TypeError:  # a symbolic size has no hash
            return
        if first != op.results[0]:
            self._first[op.results[0]] = first

    def _note_widened(self, func: OpOverload, args: tuple[Any, ...], result: int) -> None:
        """Remember what was given a last dim of size 1, expanded or not."""
        if func is _aten.unsqueeze.default:
            rank = self._recorder.fake(result).dim()
            if args[1] in (-1, rank - 1):
                self._narrow[result] = args[0].number
        elif func is _aten.expand.default:
            narrow = self._narrow.get(args[0].number)
            wide, before = self._recorder.fake(result), self._recorder.fake(args[0].number)
            if narrow is not None and wide.shape[:-1] == before.shape[:-1]:
                self._narrow[result] = narrow

    def _same(self, number: int) -> int:
        return self._first.get(number, number)

    def _plain(self, item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(self._plain(part) for part in item)
        number = getattr(item, "number", None)
        if number is not None:
            return ("value", self._same(number))
        return type(item), item

    def _column(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What only takes a column out of the matrix, or views a list, is that list."""
        number = self._recorder.number_of(args[0])
        matrix = self._of_matrix.get(number) if number is not None else None
        if func is _aten.unbind.int and matrix is not None and args[1:] in ((1,), (-1,)):
            outputs = func(*args, **kwargs)
            for output, item in zip(outputs, matrix.lists, strict=True):
                self._recorder.bind(output, item)
            return outputs
        if func in _RESHAPES and number in self._of_list:
            column = number
        elif matrix is not None and func is _aten.select.int and args[1] in (1, -1):
            column = matrix.lists[args[2]]
        elif matrix is not None and func in _RESHAPES and len(matrix.lists) == 1:
            column = matrix.lists[0]
        else:
            return NotImplemented
        output = func(*args, **kwargs)
        if output.dim() == 1:
            assert column is not None
            self._recorder.bind(output, column)
        else:
            self._recorder.record(func, args, kwargs, output)
        return output

    def _new(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """A tensor that takes only its dtype from one of unknown size: made from nothing."""
        output: Tensor = func(*args, **kwargs)
        options = {"dtype": output.dtype, "device": output.device}
        self._recorder.record(_aten.full.default, (list(args[1]), _NEW[func]), options, output)
        return output

    def list_at(self, number: int | None) -> tuple[ListOf, int] | None:
        """The lists that a value belongs to, and which of them it is."""
        return None if number is None else self._of_list.get(number)

    def narrow(self, number: int) -> int | None:
        """The value that this one is but for an expanded last dim."""
        return self._narrow.get(number)

    # Questions that only values could answer.

    def _whether_any(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        output: Tensor = func(*args, **kwargs)
        self._recorder.record(func, args, kwargs, output)
        number = self._recorder.number_of(output)
        if output.dim() == 0 and number is not None:
            self._any.add(number)
        return output

    def whether(self, tensor: Tensor) -> bool:
        """Whether the truth of a fake may be taken for granted: some position is selected."""
        number = self._recorder.number_of(tensor)
        if number is None or number not in self._any:
            return False
        return self._recorder.value_of(tensor) is None  # else it is known, and not granted

    def candidates(self, tensor: Tensor) -> list[tuple[int, ...]] | None:
        """All positions that could be in a list, or in the matrix of them; None for others."""
        number = self._recorder.number_of(tensor)
        if number is None:
            return None
        if number in self._of_matrix:
            return _grid(self._of_matrix[number].shape)
        if number in self._of_list:
            lists, position = self._of_list[number]
            if len(lists.shape) == 1:
                return [(k,) for k in range(lists.shape[position])]
        return None

    def note(self, text: str) -> None:
        """Keep what is taken for granted, with the user's line that is running."""
        line = Lines().running(self._stop)
        entry = (text, line, self._recorder.where())
        if entry not in self.taken:
            self.taken.append(entry)

    def _asked(self, text: str) -> None:
        self.note(text)


def _grid(shape: Sequence[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for size in shape:
        found = [(*head, k) for head in found for k in range(size)]
    return found


def _prime_beyond(number: int) -> int:
    number += 1
    while not all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number
