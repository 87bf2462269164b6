"""What makes a Program legal, as code that checks it."""

from __future__ import annotations

from collections.abc import Iterator

from meshwright.program.types import ITEM_BYTES, Argument, Op, Program, Symbol

SYMBOL_KINDS = frozenset({"dtype", "device", "layout", "memory_format"})


class IllegalProgram(AssertionError):
    """A Program breaks a rule: a mistake of ours, never of the user's."""


def verify_program(program: Program) -> None:
    """Raises IllegalProgram with everything that is wrong with a Program."""
    problems = list(problems_of(program))
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise IllegalProgram(f"The Program is not legal:\n{shown}{more}")


def problems_of(program: Program) -> Iterator[str]:
    """One sentence for each rule broken, none for a legal Program.

    - Every value has a legal type, and exactly one definition: an input, or a result of an op.
    - An op uses values that are defined before it; the forward comes first and
      uses nothing of the backward, nor the tangent.
    - A storage is named by a value that owns itself and is defined no later
      than the values that lie on it.
    - The loss is a floating-point scalar of the forward.
    - Exactly the trainable parameters have gradients, of their shape and dtype.
    - Buffer updates are forward values of the shape and dtype of their buffer.
    """
    yield from _values(program)
    yield from _definitions(program)
    yield from _inputs(program)
    yield from _outputs(program)


def _values(program: Program) -> Iterator[str]:
    for name, value in program.values.items():
        if value.name != name:
            yield f"value {name} calls itself {value.name}"
        if value.dtype not in ITEM_BYTES:
            yield f"value {name} has the unknown dtype {value.dtype!r}"
        if any(type(size) is not int or size < 0 for size in value.shape):
            yield f"value {name} has the shape {value.shape}"
        owner = program.values.get(value.storage)
        if owner is None:
            yield f"value {name} lies on the storage of {value.storage}, which is no value"
        elif owner.is_view:
            yield f"value {name} lies on the storage of {value.storage}, itself a view"


def _definitions(program: Program) -> Iterator[str]:
    defined: set[str] = set()
    backward = {item.value for item in program.inputs_of("tangent")}
    op_names: set[str] = set()
    in_backward = False
    for item in program.inputs:
        yield from _define(program, item.value, f"input {item.path}", defined)
    for op in program.ops:
        if op.name in op_names:
            yield f"two ops are named {op.name}"
        op_names.add(op.name)
        if op.phase == "forward" and in_backward:
            yield f"op {op.name} of the forward comes after the backward began"
        in_backward = in_backward or op.phase == "backward"
        for name in op.operands():
            if name not in defined:
                yield f"op {op.name} uses {name}, which is not defined before it"
            if op.phase == "forward" and name in backward:
                yield f"op {op.name} of the forward uses {name} of the backward"
        for result in op.results:
            if result is not None:
                yield from _define(program, result, f"op {op.name}", defined)
                if op.phase == "backward":
                    backward.add(result)
        yield from _form(op)
    for name in program.values.keys() - defined:
        yield f"value {name} is defined nowhere"


def _define(program: Program, name: str, by: str, defined: set[str]) -> Iterator[str]:
    if name in defined:
        yield f"{by} defines {name} a second time"
    defined.add(name)
    value = program.values.get(name)
    if value is None:
        yield f"{by} defines {name}, which has no type"
    elif value.storage not in defined:
        yield f"{by} defines {name} on the storage of {value.storage}, which is defined later"


def _form(op: Op) -> Iterator[str]:
    if op.target.count(".") < 1:
        yield f"op {op.name} has the target {op.target!r}"
    if not op.returns_tuple and (len(op.results) != 1 or op.results[0] is None):
        yield f"op {op.name} returns one tensor but has the results {op.results}"
    if op.phase not in ("forward", "backward"):
        yield f"op {op.name} has the phase {op.phase!r}"
    keys = [key for key, _ in op.kwargs]
    if len(set(keys)) != len(keys):
        yield f"op {op.name} has a keyword twice"
    for argument in (*op.args, *(argument for _, argument in op.kwargs)):
        for symbol in _symbols(argument):
            if symbol.kind not in SYMBOL_KINDS:
                yield f"op {op.name} has a symbol of the unknown kind {symbol.kind!r}"


def _symbols(argument: Argument) -> Iterator[Symbol]:
    if isinstance(argument, Symbol):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _symbols(item)


def _inputs(program: Program) -> Iterator[str]:
    paths: set[tuple[str, str]] = set()
    for item in program.inputs:
        for path in (item.path, *item.aliases):
            if (item.kind, path) in paths:
                yield f"two inputs are the {item.kind} {path}"
            paths.add((item.kind, path))
        if item.trainable and item.kind != "parameter":
            yield f"the {item.kind} {item.path} is marked as trainable"
    tangents = program.inputs_of("tangent")
    if len(tangents) > 1:
        yield "there is more than one tangent"
    for item in tangents:
        value, loss = program.values.get(item.value), program.values.get(program.loss)
        if value and loss and (value.shape, value.dtype) != (loss.shape, loss.dtype):
            yield f"the tangent is {value.dtype}{value.shape}, the loss {loss.dtype}{loss.shape}"


def _outputs(program: Program) -> Iterator[str]:
    backward = {item.value for item in program.inputs_of("tangent")}
    backward |= {name for op in program.phase_ops("backward") for name in op.results if name}
    loss = program.values.get(program.loss)
    if loss is None:
        yield f"the loss {program.loss} is no value"
    elif loss.shape != () or not loss.dtype.startswith(("float", "bfloat")):
        yield f"the loss is {loss.dtype}{loss.shape}, not a floating-point scalar"
    if program.loss in backward:
        yield f"the loss {program.loss} is a value of the backward"

    inputs = {(item.kind, item.path): item for item in program.inputs}
    trainable = {item.path for item in program.inputs if item.trainable}
    for path in sorted(trainable ^ program.gradients.keys()):
        yield f"{path} is trainable or has a gradient, but not both"
    for path, name in program.gradients.items():
        if name is not None and ("parameter", path) in inputs:
            yield from _alike(program, inputs["parameter", path].value, name, "gradient")
    for path, name in program.buffer_updates.items():
        if ("buffer", path) not in inputs:
            yield f"the buffer update of {path} is of no buffer"
            continue
        if name in backward:
            yield f"the buffer update of {path} is a value of the backward"
        yield from _alike(program, inputs["buffer", path].value, name, "update")


def _alike(program: Program, input_name: str, name: str, what: str) -> Iterator[str]:
    expected, value = program.values.get(input_name), program.values.get(name)
    if value is None:
        yield f"the {what} of {input_name} is {name}, which is no value"
    elif expected and (value.shape, value.dtype) != (expected.shape, expected.dtype):
        yield (
            f"the {what} of {input_name} is {value.dtype}{value.shape}, "
            f"not {expected.dtype}{expected.shape}"
        )
