"""The Program: one microbatch of a training step as SSA ops over typed values.

Pure data, without torch. A Program is what capture produces, what the rules,
layouts, costs and the search read, and (with local shapes and collectives
added) what lowering produces and the executor runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Phase = Literal["forward", "backward"]
InputKind = Literal["parameter", "buffer", "batch", "constant", "tangent"]

ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the step.

    `shape` is in elements, outermost dim first. `storage` names the value that
    owns the memory: the value itself, or the one that it is a view of.
    `dtype` is PyTorch's name without the prefix, as in `float32`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: str

    @property
    def numel(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]

    @property
    def is_view(self) -> bool:
        return self.storage != self.name


@dataclass(frozen=True, slots=True)
class Ref:
    """The use of a value inside an op's arguments."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A PyTorch literal that has no JSON form, such as a dtype: `Symbol("dtype", "float32")`.

    `kind` is one of `dtype`, `device`, `layout`, `memory_format`.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Length:
    """A whole number known only when the step runs: `times` the length of the list `value`."""

    value: str
    times: int = 1


Argument = (
    Ref | Symbol | Length | int | float | bool | str | None | complex | tuple["Argument", ...]
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where an op comes from: the module's fully qualified name and the user's source line.

    A backward op carries the source of the forward op that it differentiates.
    """

    module: str
    file: str = ""
    line: int = 0
    code: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else "an unknown line"
        return f"{self.module or 'the top module'} ({where})"


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    `target` is the full name of an ATen overload (`aten.mm.default`) or, in a
    lowered program, of one of Meshwright's own ops (`mesh.all_reduce`).
    `results` names the values produced, None where PyTorch returns None.
    `returns_tuple` is true when the op returns a tuple or list of tensors.
    """

    name: str
    target: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]
    results: tuple[str | None, ...]
    returns_tuple: bool
    phase: Phase
    source: Source = field(default=Source(""), compare=False)
    # Found when first asked for: lowering and simulation ask for them many times.
    _used: tuple[str, ...] | None = field(default=None, init=False, compare=False, repr=False)

    def operands(self) -> Iterator[str]:
        """Names of the values used, in argument order, repeats included."""
        if self._used is None:
            used = [name for argument in self.args for name in refs(argument)]
            used += [name for _, argument in self.kwargs for name in refs(argument)]
            object.__setattr__(self, "_used", tuple(used))
        return iter(self._used or ())


def refs(argument: Argument) -> Iterator[str]:
    """Names of the values used inside one argument, depth first."""
    if isinstance(argument, Ref):
        yield argument.name
    elif isinstance(argument, tuple):
        for item in argument:
            yield from refs(item)


def renamed(op: Op, names: Mapping[str, str]) -> Op:
    """The op with what it uses under other names; a name that is no key stays."""
    if not any(name in names for name in op.operands()):
        return op

    def rename(argument: Argument) -> Argument:
        if isinstance(argument, Ref):
            return Ref(names.get(argument.name, argument.name))
        if isinstance(argument, tuple):
            return tuple(rename(item) for item in argument)
        return argument

    kwargs = tuple((key, rename(item)) for key, item in op.kwargs)
    return replace(op, args=tuple(rename(item) for item in op.args), kwargs=kwargs)


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the Program.

    `path` is the fully qualified name for parameters and buffers, the pytree
    path for batch leaves (`batch[0]`, `batch['ids']`), and a name otherwise.
    The one input of kind `tangent` is the gradient of the loss itself, a
    scalar: it carries the microbatch's weight and the loss scale.
    """

    value: str
    kind: InputKind
    path: str
    trainable: bool = False
    aliases: tuple[str, ...] = ()  # further names of a tied parameter


@dataclass(frozen=True, slots=True)
class Assumption:
    """Something taken for granted while capturing, since values decide it; and where."""

    text: str
    source: Source


@dataclass(frozen=True)
class Program:
    """The step of one microbatch: forward ops, then backward ops.

    `gradients` maps each trainable parameter's path to the value holding its
    gradient, or None when the loss does not depend on it. `buffer_updates`
    maps a mutated buffer's path to the value that it holds after the forward.

    `ragged` names, for values with dims whose size is only known when the step
    runs, the list that such a dim is as long as (or a multiple of); None for
    the other dims. The value's `shape` has the largest size possible.
    `assumptions` are what capture took for granted.
    """

    values: Mapping[str, Value]
    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    loss: str
    gradients: Mapping[str, str | None]
    buffer_updates: Mapping[str, str]
    ragged: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    assumptions: tuple[Assumption, ...] = ()

    def phase_ops(self, phase: Phase) -> tuple[Op, ...]:
        return tuple(op for op in self.ops if op.phase == phase)

    def inputs_of(self, kind: InputKind) -> tuple[Input, ...]:
        return tuple(item for item in self.inputs if item.kind == kind)
