"""A Program for another number of examples, worked out from two captured ones.

Sizes in a captured step are straight lines in the number of examples of the microbatch: dims,
strides and arguments such as the shapes of views. Where two captures say the same but for
whole numbers, a third follows from them. A model may do otherwise at that number (one example
is often special), so what is planned with such a Program is captured in the end, and compared
by `difference`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from meshwright.program.types import Length, Op, Program, Value

_OnNumbers = Callable[[int, int], int]


class Apart(Exception):
    """Two Programs differ in more than whole numbers, or a size would not be one."""


def between(one: Program, other: Program, examples: tuple[int, int], wanted: int) -> Program:
    """The Program for `wanted` examples. examples: those of `one` and of `other`, which differ.

    Numbers with a fraction, such as an average's divisor, stay those of `one`: no size and no
    cost depends on them. Raises Apart.
    """
    first, second = examples

    def line(mine: int, theirs: int) -> int:
        found, rest = divmod((theirs - mine) * (wanted - first), second - first)
        if rest or mine + found < 0 <= min(mine, theirs):
            raise Apart(f"{mine} and {theirs} say nothing of {wanted} examples")
        return mine + found

    return _joined(one, other, line)


def difference(one: Program, other: Program) -> str:
    """In what two Programs differ beside numbers with a fraction; nothing where they do not."""

    def equal(mine: int, theirs: int) -> int:
        if mine != theirs:
            raise Apart(f"{mine} is not {theirs}")
        return mine

    try:
        _joined(one, other, equal)
    except Apart as error:
        return str(error)
    return ""


def _joined(one: Program, other: Program, on: _OnNumbers) -> Program:
    if one.ragged or other.ragged:
        raise Apart("sizes depend on values")
    if len(one.ops) != len(other.ops):
        raise Apart(f"{len(one.ops)} ops are not {len(other.ops)}")
    if list(one.values) != list(other.values) or one.inputs != other.inputs:
        raise Apart("values differ")
    outputs = (one.loss, one.gradients, one.buffer_updates)
    if outputs != (other.loss, other.gradients, other.buffer_updates):
        raise Apart("outputs differ")
    return replace(
        one,
        values={
            name: _value(value, other.values[name], on) for name, value in one.values.items()
        },
        ops=tuple(_op(mine, theirs, on) for mine, theirs in zip(one.ops, other.ops, strict=True)),
    )  # fmt: skip


def _value(mine: Value, theirs: Value, on: _OnNumbers) -> Value:
    if mine == theirs:
        return mine
    joined = replace(mine, shape=_argument(mine.shape, theirs.shape, on))
    if replace(theirs, shape=joined.shape) != joined:
        raise Apart(f"{mine.name} differs in more than its shape")
    return joined


def _op(mine: Op, theirs: Op, on: _OnNumbers) -> Op:
    if mine == theirs:
        return mine
    joined = replace(
        mine,
        args=_argument(mine.args, theirs.args, on),
        kwargs=_argument(mine.kwargs, theirs.kwargs, on),
    )
    if replace(theirs, args=joined.args, kwargs=joined.kwargs) != joined:
        raise Apart(f"{mine.name} is not {theirs.name}")
    return joined


def _argument(mine: Any, theirs: Any, on: _OnNumbers) -> Any:
    if type(mine) is not type(theirs):
        raise Apart(f"{mine} is not {theirs}")
    if isinstance(mine, tuple):
        return tuple(_each(mine, theirs, on))
    if isinstance(mine, Length):
        raise Apart("sizes depend on values")
    if mine == theirs or isinstance(mine, float):
        return mine
    if isinstance(mine, int) and not isinstance(mine, bool):
        return on(mine, theirs)
    raise Apart(f"{mine} is not {theirs}")


def _each(mine: tuple[Any, ...], theirs: tuple[Any, ...], on: _OnNumbers) -> Iterable[Any]:
    if len(mine) != len(theirs):
        raise Apart(f"{mine} is not {theirs}")
    for one, other in zip(mine, theirs, strict=True):
        yield _argument(one, other, on)
