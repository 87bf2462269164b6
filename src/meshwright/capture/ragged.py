"""Sizes that values decide: lists of positions, and what is as long as they are.

`nonzero` of a mask gives lists whose length nobody knows before the step runs.
While capturing, such a length is a symbolic size, which PyTorch carries through
shapes, views and gradients. What the Program needs to know of it is kept here:
which list a size belongs to, which dim of which mask a list runs along, and
what the user's code took for granted when it asked for a length's value.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import SymFloat, SymInt, Tensor
from torch.overrides import TorchFunctionMode

from meshwright import own_ops
from meshwright.capture.location import Line, Lines
from meshwright.errors import CaptureError
from meshwright.torch_private import (
    FakeTensorMode,
    LengthsEnvironment,
    OpOverload,
    from_functional,
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

# A loop over the positions of a mask is captured as a loop over all that could be there.
MOST_CANDIDATES = 4096

_NEW = {
    _aten.new_zeros.default: 0.0, _aten.new_ones.default: 1.0, _aten.new_empty.default: 0.0,
}  # fmt: skip


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
        self._mode = mode
        self._environment: _Lengths | None = None
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
        if func in _INDEXED:
            return _INDEXED[func](self, func, args, kwargs)
        if func is _aten.masked_scatter_backward.default and self.used:
            picked = self._masked_select(func, args[:2], {})
            return self._viewed(picked, args[2])
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
            self._environment = _Lengths(self._asked)
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

    def _positions(
        self, indices: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], ListOf | None, list[int]]:
        """Indices with masks replaced by their lists.

        Where all are lists of one mask, that mask's lists and which one each is.
        """
        plain: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                plain += [self._recorder.fake(number) for number in self.lists(index).lists]
            else:
                plain.append(index)
        which: list[tuple[ListOf, int] | None] = []
        for index in plain:
            if index is not None:
                number = self._recorder.number_of(index)
                which.append(self._of_list.get(number) if number is not None else None)
        known = [item for item in which if item is not None]
        same = bool(known) and len(known) == len(which) and len({i[0].lists for i in known}) == 1
        distinct = len({item[1] for item in known}) == len(known)
        if same and distinct:
            return plain, known[0][0], [item[1] for item in known]
        return plain, None, []

    def _index(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if not masked and not self.used:
            return NotImplemented
        plain, lists, which = self._positions(args[1])
        if lists is None and not masked:
            return NotImplemented
        output = _aten.index.Tensor(args[0], plain)
        if lists is None:
            self._recorder.record(_aten.index.Tensor, (args[0], plain), {}, output)
        else:
            given = (args[0], plain, list(lists.shape), which)
            self._recorder.record(own_ops.take, given, {}, output)
        return output

    def _index_put(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        x, indices, values = args[:3]
        accumulate = args[3] if len(args) > 3 else kwargs.get("accumulate", False)
        masked = [i for i in indices if i is not None and i.dtype in (torch.bool, torch.uint8)]
        if not masked and not self.used:
            return NotImplemented
        if masked and len(indices) == 1 and values.numel() == 1 and not accumulate:
            # One number everywhere: no position needs to be known.
            mask = masked[0]
            wide = _aten.view.default(mask, [*mask.shape, *[1] * (x.dim() - mask.dim())])
            self._recorder.record(_aten.view.default, (mask, list(wide.shape)), {}, wide)
            number = values
            if values.dim():
                number = _aten.view.default(values, [])
                self._recorder.record(_aten.view.default, (values, []), {}, number)
            output = _aten.where.self(wide, number, x)
            self._recorder.record(_aten.where.self, (wide, number, x), {}, output)
            return output
        plain, lists, which = self._positions(indices)
        if lists is None and not masked:
            return NotImplemented
        output = _aten.empty_like.default(x)
        if lists is None:
            given: tuple[Any, ...] = (x, plain, values, accumulate)
            self._recorder.record(_aten.index_put.default, given, {}, output)
        else:
            given = (x, plain, values, accumulate, list(lists.shape), which)
            self._recorder.record(own_ops.put, given, {}, output)
        return output

    def _index_select(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        x, dim, index = args
        plain, lists, which = self._positions([index]) if self.used else ([], None, [])
        if lists is None:
            return NotImplemented
        output = func(*args, **kwargs)
        indices = [*[None] * (dim % x.dim()), *plain]
        given = (x, indices, list(lists.shape), which)
        self._recorder.record(own_ops.take, given, {}, output)
        return output

    def _index_add(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        x, dim, index, source = args[:4]
        plain, lists, which = self._positions([index]) if self.used else ([], None, [])
        if lists is None or kwargs.get("alpha", 1) != 1:
            return NotImplemented
        output = func(*args, **kwargs)
        indices = [*[None] * (dim % x.dim()), *plain]
        given = (x, indices, source, func is _aten.index_add.default, list(lists.shape), which)
        self._recorder.record(own_ops.put, given, {}, output)
        return output

    def _masked_select(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        x, mask = args
        shape = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            x.shape, mask.shape
        )
        taken = self._index(
            _aten.index.Tensor, (self._expanded(x, shape), [self._leading(mask, shape)]), {}
        )
        if taken.dim() == 1:
            return taken  # type: ignore[no-any-return]
        return self._viewed(taken, [taken.numel()])

    def _viewed(self, x: Tensor, sizes: Sequence[int | SymInt]) -> Tensor:
        made: Tensor = _aten.view.default(x, list(sizes))
        self._recorder.record(_aten.view.default, (x, list(sizes)), {}, made)
        return made

    def _masked_scatter(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Of a source that is as long as the mask's own list, as in a gradient."""
        x, mask, source = args
        if source not in self:
            return NotImplemented
        mask = self._leading(mask, x.shape)
        rest = list(x.shape[mask.dim() :])
        lists = self.lists(mask)
        wanted = [self._recorder.fake(lists.lists[0]).shape[0], *rest]
        if self.dims(source.shape)[0] != lists.lists[0]:
            return NotImplemented
        values = source
        if list(source.shape) != wanted:
            values = _aten.view.default(source, wanted)
            self._recorder.record(_aten.view.default, (source, wanted), {}, values)
        return self._index_put(_aten.index_put.default, (x, [mask], values, False), {})

    def _leading(self, mask: Tensor, shape: Sequence[int]) -> Tensor:
        """The part of a mask before the last dims along which it is the same everywhere."""
        while mask.dim() > 1 and (
            (mask.shape[-1] == 1 and shape[-1] != 1) or mask.stride()[-1] == 0
        ):
            known = self._narrow.get(self._recorder.number(mask))
            if known is not None:
                narrow = self._recorder.fake(known)
            else:
                narrow = _aten.select.int(mask, -1, 0)
                self._recorder.record(_aten.select.int, (mask, -1, 0), {}, narrow)
            mask, shape = narrow, shape[:-1]
        return self._expanded(mask, shape)

    def _expanded(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        if tuple(x.shape) == tuple(shape):
            return x
        made: Tensor = _aten.expand.default(x, list(shape))
        self._recorder.record(_aten.expand.default, (x, list(shape)), {}, made)
        return made

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


class CandidatesForLists(TorchFunctionMode):
    """A loop over positions runs for every position there could be; `if mask.any()` is true.

    Both hold where the body does nothing for a mask that selects nothing, as that of a
    mixture of experts. It is noted as taken for granted.
    """

    def __init__(self, ragged: Ragged) -> None:
        super().__init__()
        self._ragged = ragged

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        ragged = self._ragged
        if func is torch.nn.functional.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        if (
            func is Tensor.__getitem__
            and args[1] == slice(None)
            and from_functional(args[0]) in ragged
        ):
            return args[0]
        if func in _LOOPS and args and (func not in _UNBINDS or _first_dim(args, kwargs)):
            found = ragged.candidates(from_functional(args[0]))
            if found is not None:
                if len(found) > MOST_CANDIDATES:
                    raise CaptureError(
                        f"The step loops over the positions of a mask that has {len(found)}.",
                        "Work on all of them at once, with the positions as an index.",
                    )
                ragged.note(
                    f"the loop runs for all {len(found)} positions that the mask could select, "
                    "and does nothing for those that it does not"
                )
                matrix = args[0].dim() == 2
                if func is Tensor.tolist:
                    return [list(item) if matrix else item[0] for item in found]
                made = [torch.tensor(list(item) if matrix else item[0]) for item in found]
                return iter(made) if func is Tensor.__iter__ else tuple(made)
        elif func in _TRUTHS and ragged.whether(from_functional(args[0])):
            ragged.note("some position is selected, or the branch does nothing for none")
            return True
        return func(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """What PyTorch's does, without looking whether the classes are in range."""
    if num_classes < 1:
        return torch.nn.functional.one_hot(tensor, num_classes)
    classes = torch.arange(num_classes, dtype=tensor.dtype, device=tensor.device)
    return (tensor.unsqueeze(-1) == classes).to(torch.int64)


_UNBINDS = frozenset({Tensor.unbind, torch.unbind})
_LOOPS = frozenset({Tensor.__iter__, Tensor.tolist}) | _UNBINDS
_TRUTHS = frozenset({Tensor.__bool__, Tensor.item})


def _first_dim(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> bool:
    dim: int = args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)
    return dim == 0


_SYMBOLIC = ("torch/fx/experimental/", "torch/utils/_sympy/", "sympy/", "/torch_private.py")
_ASKING = ("torch/__init__.py", "torch/_tensor.py")


class _Lengths(LengthsEnvironment):
    """Answers for every length with its stand-in, and tells when the user's code asked.

    PyTorch's own questions (is it contiguous, is it broadcast) have the same answer for
    every length. A condition in the user's code may not: it is told to `asked`.
    """

    def __init__(self, asked: Any) -> None:
        super().__init__(specialize_zero_one=False, duck_shape=False)
        self.hints: dict[Any, Any] = {}  # what stands for each length in conditions
        self.bounds: dict[Any, Any] = {}  # the largest that each can be
        self._values: dict[Any, Any] = {}
        self._parts: dict[str, str] = {}  # what part of PyTorch a file is
        self._asked = asked
        self._lines = Lines()

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        value = self._values.get(orig_expr)
        if value is None:
            value = orig_expr.xreplace(self.hints) if orig_expr.free_symbols else orig_expr
            self._values[orig_expr] = value
        if not value.is_Boolean and not orig_expr.free_symbols:
            return value
        by, line = self._asker()
        if by in ("__bool__", "bool_") and line:
            self._asked(f"a condition on a length is {bool(value)}")
        elif not value.is_Boolean:
            if not line:
                raise CaptureError(
                    "An op needs to know a length that is only known when the step runs.",
                    "Write it with ops that take any number of rows, such as indexing, "
                    "matrix products and index_add.",
                )
            self._asked("a length is used as a plain number, the largest it can be")
            value = orig_expr.xreplace(self.bounds)
        return value

    def _asker(self) -> tuple[str, bool]:
        """How a Python number was asked for, and whether the user's own line did."""
        frame = sys._getframe(2)
        by = ""
        while frame is not None and self._part(frame.f_code.co_filename) == "symbolic":
            frame = frame.f_back  # type: ignore[assignment]
        while frame is not None and self._part(frame.f_code.co_filename) == "asking":
            by = by or frame.f_code.co_name
            frame = frame.f_back  # type: ignore[assignment]
        return by, bool(by) and frame is not None and self._lines.is_user(frame.f_code)

    def _part(self, file: str) -> str:
        found = self._parts.get(file)
        if found is None:
            symbolic = any(part in file for part in _SYMBOLIC)
            found = "symbolic" if symbolic else "asking" if file.endswith(_ASKING) else "other"
            self._parts[file] = found
        return found


_RESHAPES = frozenset({
    _aten.squeeze.dim, _aten.squeeze.dims, _aten.squeeze.default, _aten.view.default,
    _aten._unsafe_view.default, _aten.reshape.default, _aten.clone.default,
})  # fmt: skip

_INDEXED = {
    _aten.index.Tensor: Ragged._index,
    _aten._unsafe_index.Tensor: Ragged._index,
    _aten.index_put.default: Ragged._index_put,
    _aten._unsafe_index_put.default: Ragged._index_put,
    _aten.index_select.default: Ragged._index_select,
    _aten.index_add.default: Ragged._index_add,
    _aten.index_copy.default: Ragged._index_add,
    _aten.masked_select.default: Ragged._masked_select,
    _aten.masked_scatter.default: Ragged._masked_scatter,
}
