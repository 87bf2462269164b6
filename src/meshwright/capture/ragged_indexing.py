"""Indexing by masks and by their lists, recorded as ops that know which list it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import SymInt, Tensor

from meshwright import own_ops
from meshwright.torch_private import OpOverload

if TYPE_CHECKING:
    from meshwright.capture.ragged import ListOf, Ragged
    from meshwright.capture.recorder import Recorder

_aten = torch.ops.aten


class Indexing:
    """What indexes with a mask, or with all of the lists of one, in the form with the lists."""

    def __init__(self, ragged: Ragged, recorder: Recorder) -> None:
        self._ragged = ragged
        self._recorder = recorder

    def dispatch(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Record an op of this kind; NotImplemented for all others."""
        if func in _INDEXED:
            return _INDEXED[func](self, func, args, kwargs)
        if func is _aten.masked_scatter_backward.default and self._ragged.used:
            picked = self.masked_select(func, args[:2], {})
            return self.viewed(picked, args[2])
        return NotImplemented

    def _positions(
        self, indices: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], ListOf | None, list[int]]:
        """Indices with masks replaced by their lists.

        Where all are lists of one mask, that mask's lists and which one each is.
        """
        plain: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                plain += [self._recorder.fake(number) for number in self._ragged.lists(index).lists]
            else:
                plain.append(index)
        which: list[tuple[ListOf, int] | None] = []
        for index in plain:
            if index is not None:
                number = self._recorder.number_of(index)
                which.append(self._ragged.list_at(number))
        known = [item for item in which if item is not None]
        same = bool(known) and len(known) == len(which) and len({i[0].lists for i in known}) == 1
        distinct = len({item[1] for item in known}) == len(known)
        if same and distinct:
            return plain, known[0][0], [item[1] for item in known]
        return plain, None, []

    def _index(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if not masked and not self._ragged.used:
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
        if not masked and not self._ragged.used:
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
        plain, lists, which = self._positions([index]) if self._ragged.used else ([], None, [])
        if lists is None:
            return NotImplemented
        output = func(*args, **kwargs)
        indices = [*[None] * (dim % x.dim()), *plain]
        given = (x, indices, list(lists.shape), which)
        self._recorder.record(own_ops.take, given, {}, output)
        return output

    def _index_add(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        x, dim, index, source = args[:4]
        plain, lists, which = self._positions([index]) if self._ragged.used else ([], None, [])
        if lists is None or kwargs.get("alpha", 1) != 1:
            return NotImplemented
        output = func(*args, **kwargs)
        indices = [*[None] * (dim % x.dim()), *plain]
        given = (x, indices, source, func is _aten.index_add.default, list(lists.shape), which)
        self._recorder.record(own_ops.put, given, {}, output)
        return output

    def masked_select(
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
        return self.viewed(taken, [taken.numel()])

    def viewed(self, x: Tensor, sizes: Sequence[int | SymInt]) -> Tensor:
        made: Tensor = _aten.view.default(x, list(sizes))
        self._recorder.record(_aten.view.default, (x, list(sizes)), {}, made)
        return made

    def _masked_scatter(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Of a source that is as long as the mask's own list, as in a gradient."""
        x, mask, source = args
        if source not in self._ragged:
            return NotImplemented
        mask = self._leading(mask, x.shape)
        rest = list(x.shape[mask.dim() :])
        lists = self._ragged.lists(mask)
        wanted = [self._recorder.fake(lists.lists[0]).shape[0], *rest]
        if self._ragged.dims(source.shape)[0] != lists.lists[0]:
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
            known = self._ragged.narrow(self._recorder.number(mask))
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


_INDEXED = {
    _aten.index.Tensor: Indexing._index,
    _aten._unsafe_index.Tensor: Indexing._index,
    _aten.index_put.default: Indexing._index_put,
    _aten._unsafe_index_put.default: Indexing._index_put,
    _aten.index_select.default: Indexing._index_select,
    _aten.index_add.default: Indexing._index_add,
    _aten.index_copy.default: Indexing._index_add,
    _aten.masked_select.default: Indexing.masked_select,
    _aten.masked_scatter.default: Indexing._masked_scatter,
}
