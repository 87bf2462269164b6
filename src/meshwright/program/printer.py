"""A Program as text, to read and to diff."""

from __future__ import annotations

from collections.abc import Iterator

from meshwright.program.types import Argument, Length, Op, Program, Ref, Symbol, Value

_SHORT = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16",
    "complex64": "c64", "complex128": "c128",
    "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8", "uint8": "u8", "bool": "b8",
}  # fmt: skip


def format_program(program: Program, *, sources: bool = False) -> str:
    """One line an input, op and output; with `sources`, the user's line beside each op.

    A value reads `name: f32[8, 16]`, with `~base` when it is a view.
    """
    return "\n".join(_lines(program, sources)) + "\n"


def _lines(program: Program, sources: bool) -> Iterator[str]:
    for item in program.inputs:
        notes = ", ".join(
            [*(["trainable"] if item.trainable else []), *(f"also {a}" for a in item.aliases)]
        )
        yield f"{item.kind} {_typed(program.values[item.value])}{f'  ({notes})' if notes else ''}"
    for phase in ("forward", "backward"):
        ops = [op for op in program.ops if op.phase == phase]
        yield ""
        yield f"{phase}: {len(ops)} ops"
        for op in ops:
            line = "  " + format_op(op, program)
            yield f"{line}  # {op.source}" if sources else line
    yield ""
    yield f"loss {program.loss}"
    for path, name in program.gradients.items():
        yield f"gradient of {path}: {'none' if name is None else name}"
    for path, name in program.buffer_updates.items():
        yield f"update of {path}: {name}"


def format_op(op: Op, program: Program) -> str:
    """`result: type = target(arguments)`."""
    results = ", ".join(
        "_" if name is None else _typed(program.values[name]) for name in op.results
    )
    arguments = [_argument(item) for item in op.args]
    arguments += [f"{key}={_argument(item)}" for key, item in op.kwargs]
    return f"{results} = {op.target.removesuffix('.default')}({', '.join(arguments)})"


def format_type(value: Value) -> str:
    """`f32[8, 16]`."""
    return f"{_SHORT.get(value.dtype, value.dtype)}[{', '.join(map(str, value.shape))}]"


def _typed(value: Value) -> str:
    base = f" ~{value.storage}" if value.is_view else ""
    return f"{value.name}: {format_type(value)}{base}"


def _argument(argument: Argument) -> str:
    if isinstance(argument, Ref):
        return f"%{argument.name}"
    if isinstance(argument, Symbol):
        return argument.text
    if isinstance(argument, Length):
        times = f"{argument.times}*" if argument.times != 1 else ""
        return f"{times}length(%{argument.value})"
    if isinstance(argument, tuple):
        return f"[{', '.join(map(_argument, argument))}]"
    return repr(argument)
